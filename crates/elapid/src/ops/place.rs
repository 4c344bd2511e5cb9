//! Where operations run, and where they write.

use elapid_kernels::cuda::Gpu;

use crate::autograd::Var;
use crate::{DType, Device, Error, Result, Tensor};

/// On a GPU, the buffer for the state after `l` positions: reuses the buffer of `before` if allowed and not recorded;
/// otherwise allocates.
pub(super) fn state_after(gpu: Gpu, before: &Var, l: usize, in_place: bool, recorded: bool) -> Result<Tensor> {
    match in_place && l == 1 && !recorded {
        true => Ok(before.value().clone()),
        false => Tensor::uninit(gpu, DType::F32, before.shape()),
    }
}

/// Refuses an operation that has no GPU kernel yet.
pub(super) fn on_cpu(op: &'static str, x: &Var) -> Result<()> {
    match x.value().device() {
        Device::Cpu => Ok(()),
        device => Err(Error::Missing { op, device: device.to_string() }),
    }
}
