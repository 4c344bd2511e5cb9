//! Where operations run, and where they write.

use crate::autograd::Var;
use crate::{DType, Result, Tensor};

/// Where the state after `l` positions goes: into the memory of the one `before`, where that is asked for and possible
/// (clones share memory, nobody reads it any more), else into memory of its own.
pub(super) fn state_after(before: &Var, l: usize, in_place: bool, recorded: bool) -> Result<Tensor> {
    let device = before.value().device();
    match in_place && l == 1 && !recorded && !device.copies_on_write() {
        true => Ok(before.value().clone()),
        false => Tensor::output(device, DType::F32, before.shape()),
    }
}
