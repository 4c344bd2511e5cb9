//! cuBLASLt's handle and its workspace.

use cudarc::cublaslt::{result, sys};

use super::memory::Pool;
use super::{Buffer, Error, Gpu, Result};

/// What NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
}

// SAFETY: handles may be used from any thread; calls on one stream are ordered.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    pub(super) fn new(gpu: Gpu) -> Result<Self> {
        let failed = |error: result::CublasError| Error::Call { call: "cublasLtCreate", reason: format!("{error:?}") };
        // A pool of its own: it lives longer than any graph.
        Ok(Self { handle: result::create_handle().map_err(failed)?, workspace: Pool::new(gpu).alloc(WORKSPACE)? })
    }

    pub(super) fn handle(&self) -> sys::cublasLtHandle_t {
        self.handle
    }

    pub(super) fn workspace(&self) -> &Buffer {
        &self.workspace
    }
}
