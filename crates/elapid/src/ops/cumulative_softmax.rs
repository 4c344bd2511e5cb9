//! Part of a softmax over rows.

use elapid_kernels::cumulative_softmax as kernel;

use crate::autograd::{Var, record};
use crate::{DType, Result, Tensor};

/// y `[d]` = Σ_{1 ≤ m ≤ i} softmax(p)_m, column by column, of p `[rows d]`, f32.
///
/// # Errors
/// If there is no row i; if a device failed, or has too little memory.
pub fn cumulative_softmax(p: &Var, i: usize) -> Result<Var> {
    let mut y = Tensor::output(p.value().device(), DType::F32, &[p.value().cols()])?;
    kernel::forward(i, p.value().view(), y.view_mut())?;
    let kept = p.clone();
    let [y] = record(&[p], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.add_by(&kept, |dp| kernel::backward(i, kept.value().view(), dy.view(), dp))
    });
    Ok(y)
}
