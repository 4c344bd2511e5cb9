//! A = -exp(A_log).

use elapid_kernels::neg_exp as kernel;

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// -exp(x), element by element: how A stays negative (Mamba, section 3.6).
///
/// # Errors
/// Never: its shapes always fit.
pub fn neg_exp(x: &Var) -> Result<Var> {
    let y = Tensor::filled(x.shape(), |y| kernel::forward(x.value().as_slice(), y.into_slice()))?;
    let (kept, value) = (x.clone(), y.clone());
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y) else { return Ok(()) };
        grads.write([Want::Add(&kept)], |[dx]| kernel::backward(value.as_slice(), dy.as_slice(), dx.into_slice()))
    });
    Ok(y)
}
