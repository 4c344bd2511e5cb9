//! The memory of gradients, by slot. A variable has a slot, or columns of one.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use elapid_kernels::DType;

use crate::params::{ParamGrads, ParamId};
use crate::{Device, Result, Tensor};

/// The gradients of a tape's variables while [`Tape::backward`](super::Tape::backward) runs.
pub struct Grads {
    pub(super) forms: Vec<Form>,
    pub(super) slots: Vec<Option<Slot>>,
    /// The pass that they belong to: its variables share this flag.
    pub(super) alive: Arc<AtomicBool>,
    /// Gradients of parameters from recomputed segments; see [`checkpoint`](super::checkpoint).
    pub(super) recomputed: ParamGrads,
}

/// The form of a gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) device: Device,
    pub(super) dtype: DType,
    /// The parameter that it is the gradient of.
    pub(super) param: Option<ParamId>,
}

impl Form {
    pub(super) fn of(value: &Tensor) -> Self {
        let (rows, cols) = (value.row_count(), value.cols());
        Self { rows, cols, device: value.device(), dtype: value.dtype(), param: None }
    }

    /// A matrix of `cols` columns: zeros on the CPU, uninitialised on a GPU.
    pub(super) fn matrix(&self, cols: usize) -> Result<Tensor> {
        Tensor::output(self.device, self.dtype, &[self.rows, cols])
    }
}

/// One gradient. Columns that were not written are 0 on the CPU, and uninitialised on a GPU.
pub(super) struct Slot {
    pub(super) data: Tensor,
    /// Disjoint column ranges that hold something.
    pub(super) written: Vec<(usize, usize)>,
}

impl Slot {
    /// Sets the unwritten columns of `from..to` to 0 and marks them as written.
    pub(super) fn fill(&mut self, from: usize, to: usize) -> Result<()> {
        let mut written = self.written.clone();
        written.sort_unstable();
        let mut at = from;
        for (start, end) in written.into_iter().chain([(to, to)]) {
            let gap = start.min(to);
            if gap > at {
                if let Some(gpu) = self.data.gpu() {
                    gpu.zero(self.data.mat_mut().columns(at, gap - at))?;
                }
                self.written.push((at, gap));
            }
            at = at.max(end);
        }
        Ok(())
    }
}

impl Grads {
    pub(super) fn new(forms: Vec<Form>, alive: Arc<AtomicBool>) -> Self {
        let slots = forms.iter().map(|_| None).collect();
        Self { forms, slots, alive, recomputed: ParamGrads::default() }
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.slots[slot].is_some()
    }

    pub(super) fn forget(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    pub(super) fn put_whole(&mut self, slot: usize, data: Tensor) {
        let cols = self.forms[slot].cols;
        self.slots[slot] = Some(Slot { data, written: vec![(0, cols)] });
    }

    pub(super) fn take_whole(&mut self, index: usize) -> Result<Option<Tensor>> {
        let Some(mut slot) = self.slots[index].take() else { return Ok(None) };
        slot.fill(0, self.forms[index].cols)?;
        Ok(Some(slot.data))
    }
}
