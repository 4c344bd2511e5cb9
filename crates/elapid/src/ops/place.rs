//! Where operations run and write.

use elapid_kernels::cuda::Gpu;

use crate::autograd::Var;
use crate::{DType, Device, Error, Result, Tensor};

/// On a GPU, where the state after `l` positions goes: to the memory of the one `before`, if that is wished and nobody needs
/// it any more, else to memory of its own.
pub(super) fn state_after(gpu: Gpu, before: &Var, l: usize, in_place: bool, recorded: bool) -> Result<Tensor> {
    match in_place && l == 1 && !recorded {
        true => Ok(before.value().clone()),
        false => Tensor::uninit(gpu, DType::F32, before.shape()),
    }
}

/// Refuses an operation that a GPU does not have yet.
pub(super) fn on_cpu(op: &'static str, x: &Var) -> Result<()> {
    match x.value().device() {
        Device::Cpu => Ok(()),
        device => Err(Error::Missing { op, device: device.to_string() }),
    }
}
