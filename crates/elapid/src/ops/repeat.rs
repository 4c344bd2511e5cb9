//! One row for every position.

use elapid_kernels::{elementwise, linear as kernel};

use crate::autograd::{Var, record};
use crate::{Result, Tensor};

/// y = x at every position, x `[n]`, y `[.. n]` in the dtype and on the device of `like` `[.. d]`: a parameter in place of a
/// function of the input. dx is the sum over positions, in an order that depends only on their number.
///
/// # Errors
/// If a device has too little memory.
pub fn repeat(x: &Var, like: &Var) -> Result<Var> {
    let mut shape = like.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 1) = x.value().len();
    let mut y = Tensor::output(like.value().device(), like.value().dtype(), &shape)?;
    elementwise::repeat(x.value().view_flat(), y.view_mut())?;
    let kept = x.without_numbers();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.add_by(&kept, |dx| kernel::backward_bias(dy.view(), dx))
    });
    Ok(y)
}
