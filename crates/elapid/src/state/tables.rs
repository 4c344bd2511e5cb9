//! Where the steps of a batch on a GPU read and write its caches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use elapid_kernels::attention::paged::{Past, Tables};
use elapid_kernels::cuda::{Buffer, Gpu};

/// The tables of all caches of a batch.
#[derive(Debug)]
pub(crate) struct InPlace {
    tables: Mutex<Tables>,
    /// `[rows]` u64: the position that each row reads next.
    positions: Arc<Buffer>,
}

impl InPlace {
    pub(super) fn new(tables: Tables, positions: &Arc<Buffer>) -> Self {
        Self { tables: Mutex::new(tables), positions: positions.clone() }
    }

    pub(super) fn gpu(&self) -> Gpu {
        self.positions.gpu()
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a step reads of the caches `caches`.
    pub(crate) fn with<R>(&self, caches: [usize; 2], step: impl FnOnce(Past<'_>) -> R) -> R {
        step(Past { tables: &self.tables(), caches, positions: &self.positions })
    }
}
