//! Tracing a pass: values inside mixers, as they are computed.

use std::sync::{Mutex, PoisonError};

use crate::{Result, Tensor};

/// Values of one kind from the mixers of a pass, one per layer, on the CPU.
///
/// ```
/// use std::sync::Arc;
///
/// use elapid::Layout;
/// use elapid::trace::{DELTA, Trace};
///
/// # fn main() -> elapid::Result<()> {
/// let model = elapid::embedded::model()?;
/// let trace = Arc::new(Trace::of(DELTA));
/// let cx = model.inference(Layout::new(1, 5)).traced(&trace);
/// model.hidden(&cx, &[84, 111, 32, 98, 101], &model.zero_state(1)?, false)?;
/// assert_eq!(trace.take().len(), model.config().n_layer());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Trace {
    name: &'static str,
    values: Mutex<Vec<Tensor>>,
}

/// Δ of Mamba, `[b l d_inner]`: the step size of each channel at each position, after bias and softplus. Near 0 the state
/// stays unchanged and the input is skipped; a large Δ forgets the state and absorbs the input.
pub const DELTA: &str = "delta";

impl Trace {
    /// A trace of the values of that name, such as [`DELTA`].
    pub fn of(name: &'static str) -> Self {
        Self { name, values: Mutex::default() }
    }

    /// The values so far, one per layer, in order.
    pub fn take(&self) -> Vec<Tensor> {
        std::mem::take(&mut *self.values.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn add(&self, name: &str, value: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if name == self.name {
            let value = value()?;
            self.values.lock().unwrap_or_else(PoisonError::into_inner).push(value);
        }
        Ok(())
    }
}
