//! Looking into a pass: values inside mixers, as they are computed.

use std::sync::{Mutex, PoisonError};

use crate::{Result, Tensor};

/// Values of one kind that the mixers of a pass handed over, one a layer, on the processor.
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

/// Δ of Mamba, `[b l d_inner]`: how long a step each channel takes at each position, after bias and softplus. Near 0 the
/// state stays as it is and the position is passed over; a large one forgets the state and takes the position in.
pub const DELTA: &str = "delta";

impl Trace {
    /// A trace of the values of that name, such as [`DELTA`].
    pub fn of(name: &'static str) -> Self {
        Self { name, values: Mutex::default() }
    }

    /// The values so far, a layer each, in order.
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
