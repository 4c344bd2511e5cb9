//! Residual add and RMSNorm in one pass.

use elapid_kernels::add_norm as kernel;
use elapid_kernels::reuse::List;

use crate::autograd::{Var, Want, record};
use crate::{DType, Result, Tensor};

/// s = x + r and y = s / rms(s) · w; returns (y, s). Without a residual r, s is x. On a GPU x and y are of the activations'
/// format, r and s f32.
///
/// On the tape no operation keeps y: the backward pass makes it again from s, which is kept, bit for bit.
///
/// # Errors
/// If shapes do not fit.
pub fn add_norm(x: &Var, residual: Option<&Var>, weight: &Var, eps: f32) -> Result<(Var, Var)> {
    let (device, dtype) = (x.value().device(), x.value().dtype());
    let mut y = Tensor::output(device, dtype, x.shape())?;
    let mut sum = Tensor::output(device, DType::F32, x.shape())?;
    let mut rstd = Tensor::output(device, DType::F32, &[x.value().row_count()])?;
    kernel::forward(
        x.value().view(),
        residual.map(|r| r.value().view()),
        weight.value().view_flat(),
        eps,
        y.view_mut(),
        sum.view_mut(),
        rstd.view_mut(),
    )?;
    let inputs: List<&Var> = [x, weight].into_iter().chain(residual).collect();
    let (x, residual, weight) = (x.without_numbers(), residual.map(Var::without_numbers), weight.clone());
    let kept_sum = sum.clone();
    let [again_sum, again_weight, again_rstd] = [&sum, weight.value(), &rstd].map(Tensor::clone);
    let [y, sum] = record(&inputs, [y, sum], move |grads, [y, sum]| {
        let dsum = grads.take(sum)?;
        let dy = grads.take_or_zeros(y)?;
        let mut dx = Tensor::output(device, dtype, x.shape())?;
        // x and the residual have the same gradient: one tensor where the first to write to it copies it, else two.
        let second = residual.as_ref().filter(|_| !device.copies_on_write());
        let mut second = second.map(|r| Tensor::output(device, DType::F32, r.shape())).transpose()?;
        grads.write([Want::Add(&weight)], |[dweight]| {
            let Some(dweight) = dweight else { return Ok(()) };
            kernel::backward(
                kept_sum.view(),
                weight.value().view_flat(),
                rstd.view(),
                dy.view(),
                dsum.as_ref().map(Tensor::view),
                dx.view_mut(),
                second.as_mut().map(Tensor::view_mut),
                dweight,
            )
        })?;
        let Some(residual) = &residual else { return grads.give(&x, dx) };
        let dresidual = second.unwrap_or_else(|| dx.clone());
        grads.give(&x, dx)?;
        grads.give(residual, dresidual)
    });
    let again = move || {
        let mut y = Tensor::output(device, dtype, again_sum.shape())?;
        kernel::scale(again_sum.view(), again_weight.view_flat(), again_rstd.view(), y.view_mut())?;
        Ok(y)
    };
    Ok((y.recomputed_by(again), sum))
}
