//! The feature map of Based.

use elapid_kernels::taylor_map as kernel;
pub use elapid_kernels::taylor_map::features as taylor_features;

use crate::autograd::{Var, record};
use crate::{Result, Tensor};

/// φ(x) `[.. heads·features(f)]` of heads of f columns `[.. heads·f]`, with φ(q)ᵀφ(k) = 1 + s + s²/2 for s = qᵀk / √f.
///
/// # Errors
/// If the columns are no whole heads of 1 to 64; if a device failed, or has too little memory.
pub fn taylor_map(x: &Var, f: usize) -> Result<Var> {
    let mut shape = x.shape().to_vec();
    let heads = x.value().cols() / f.max(1);
    *shape.last_mut().unwrap_or(&mut 0) = heads * taylor_features(f);
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), &shape)?;
    kernel::forward(f, x.value().view(), y.view_mut())?;
    let kept = x.clone();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.set_by(&kept, |dx| kernel::backward(f, kept.value().view(), dy.view(), dx))
    });
    Ok(y)
}
