//! A = -exp(A_log).

use elapid_kernels::neg_exp as kernel;

use crate::autograd::{Var, Want, record};
use crate::{DType, Result, Tensor};

/// -exp(x), elementwise, which keeps A negative (Mamba, section 3.6).
///
/// # Errors
/// If a device has too little memory.
pub fn neg_exp(x: &Var) -> Result<Var> {
    let y = match x.value().gpu() {
        None => Tensor::filled(x.shape(), |y| kernel::forward(x.value().as_slice(), y.into_slice()))?,
        Some(gpu) => {
            let mut y = Tensor::uninit(gpu, DType::F32, x.shape())?;
            kernel::cuda::forward(&gpu, x.value().mat(), y.mat_mut())?;
            y
        }
    };
    let (kept, value) = (x.clone(), y.clone());
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        match value.gpu() {
            None => grads
                .write([Want::Add(&kept)], |[dx]| kernel::backward(value.as_slice(), dy.as_slice(), dx.into_slice())),
            Some(gpu) => grads.write_cuda([Want::Add(&kept)], |[dx]| {
                dx.map_or(Ok(()), |dx| kernel::cuda::backward(&gpu, value.mat(), dy.mat(), dx))
            }),
        }
    });
    Ok(y)
}
