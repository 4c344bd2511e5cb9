//! Residual add and RMSNorm in one pass.

use elapid_kernels::add_norm as kernel;
use elapid_kernels::cuda::Gpu;

use crate::autograd::{Var, Want, record};
use crate::{DType, Result, Tensor};

/// s = x + r and y = s / rms(s) · w; returns (y, s). Without a residual r, s is x.
///
/// On the tape no operation stores y: the backward pass recomputes it, bit for bit, from s, which is stored.
///
/// # Errors
/// If shapes do not fit.
pub fn add_norm(x: &Var, residual: Option<&Var>, weight: &Var, eps: f32) -> Result<(Var, Var)> {
    match x.value().gpu() {
        None => add_norm_cpu(x, residual, weight, eps),
        Some(gpu) => add_norm_cuda(gpu, x, residual, weight, eps),
    }
}

/// On a GPU x and y have the activations' dtype, r and s are f32.
fn add_norm_cuda(gpu: Gpu, x: &Var, residual: Option<&Var>, weight: &Var, eps: f32) -> Result<(Var, Var)> {
    let mut y = Tensor::uninit(gpu, x.value().dtype(), x.shape())?;
    let mut sum = Tensor::uninit(gpu, DType::F32, x.shape())?;
    let mut rstd = Tensor::uninit(gpu, DType::F32, &[x.value().row_count()])?;
    let r = residual.map(|r| r.value().mat());
    kernel::cuda::forward(
        &gpu,
        x.value().mat(),
        r,
        weight.value().flat(),
        eps,
        y.mat_mut(),
        sum.mat_mut(),
        rstd.mat_mut(),
    )?;
    let inputs: Vec<&Var> = [x, weight].into_iter().chain(residual).collect();
    let (x, residual, weight) = (x.without_numbers(), residual.map(Var::without_numbers), weight.clone());
    let (kept_sum, dtype) = (sum.clone(), y.dtype());
    let [again_sum, again_weight, again_rstd] = [&sum, weight.value(), &rstd].map(Tensor::clone);
    let [y, sum] = record(&inputs, [y, sum], move |grads, [y, sum]| {
        let dsum = grads.take(sum)?;
        let dy = grads.take_or_zeros(y)?;
        let mut dx = Tensor::uninit(gpu, x.value().dtype(), x.shape())?;
        let mut dresidual = residual.as_ref().map(|r| Tensor::uninit(gpu, DType::F32, r.shape())).transpose()?;
        grads.write_cuda([Want::Add(&weight)], |[dweight]| {
            let Some(dweight) = dweight else { return Ok(()) };
            kernel::cuda::backward(
                &gpu,
                kept_sum.mat(),
                weight.value().flat(),
                rstd.mat(),
                dy.mat(),
                dsum.as_ref().map(Tensor::mat),
                dx.mat_mut(),
                dresidual.as_mut().map(Tensor::mat_mut),
                dweight,
            )
        })?;
        grads.give(&x, dx)?;
        match (&residual, dresidual) {
            (Some(residual), Some(dresidual)) => grads.give(residual, dresidual),
            _ => Ok(()),
        }
    });
    let again = move || {
        let mut y = Tensor::uninit(gpu, dtype, again_sum.shape())?;
        kernel::cuda::scale(&gpu, again_sum.mat(), again_weight.flat(), again_rstd.mat(), y.mat_mut())?;
        Ok(y)
    };
    Ok((y.recomputed_by(again), sum))
}

fn add_norm_cpu(x: &Var, residual: Option<&Var>, weight: &Var, eps: f32) -> Result<(Var, Var)> {
    let rows = x.value().row_count();
    let mut rstd = elapid_kernels::zeros(rows)?;
    let mut sum = elapid_kernels::zeros(x.value().len())?;
    let y = Tensor::filled(x.shape(), |y| {
        kernel::forward(
            x.value().rows(),
            residual.map(|r| r.value().rows()),
            weight.value().as_slice(),
            eps,
            y,
            elapid_kernels::RowsMut::new(&mut sum, x.value().cols()),
            &mut rstd,
        )
    })?;
    let [sum, rstd] = [Tensor::new(sum, x.shape()), Tensor::new(rstd, &[rows])];
    let inputs: Vec<&Var> = [x, weight].into_iter().chain(residual).collect();
    let (x, residual, weight) = (x.without_numbers(), residual.map(Var::without_numbers), weight.clone());
    let kept_sum = sum.clone();
    let [again_sum, again_weight, again_rstd] = [&sum, weight.value(), &rstd].map(Tensor::clone);
    let [y, sum] = record(&inputs, [y, sum], move |grads, [y, sum]| {
        let dsum = grads.take(sum)?;
        let dy = grads.take_or_zeros(y)?;
        let mut dx = Tensor::zeros(x.shape())?;
        grads.write_rows([Want::Add(&weight)], |[dweight]| {
            let dx = elapid_kernels::RowsMut::new(dx.make_mut(), y.value().cols());
            let dsum = dsum.as_ref().map(Tensor::rows);
            kernel::backward(
                kept_sum.rows(),
                weight.value().as_slice(),
                rstd.as_slice(),
                dy.rows(),
                dsum,
                dx,
                dweight.into_slice(),
            )
        })?;
        // x and the residual have the same gradient.
        match &residual {
            Some(residual) => {
                grads.give(&x, dx.clone())?;
                grads.give(residual, dx)
            }
            None => grads.give(&x, dx),
        }
    });
    let again = move || {
        Tensor::filled(again_sum.shape(), |y| {
            kernel::scale(again_sum.rows(), again_weight.as_slice(), again_rstd.as_slice(), y)
        })
    };
    Ok((y.recomputed_by(again), sum))
}
