//! A = -exp(A_log).

use elapid_kernels::neg_exp as kernel;

use crate::autograd::{Var, record};
use crate::{DType, Result, Tensor};

/// -exp(x), elementwise, which keeps A negative (Mamba, section 3.6).
///
/// # Errors
/// If a device has too little memory.
pub fn neg_exp(x: &Var) -> Result<Var> {
    let mut y = Tensor::output(x.value().device(), DType::F32, x.shape())?;
    kernel::forward(x.value().view(), y.view_mut())?;
    let (kept, value) = (x.without_numbers(), y.clone());
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.add_by(&kept, |dx| kernel::backward(value.view(), dy.view(), dx))
    });
    Ok(y)
}
