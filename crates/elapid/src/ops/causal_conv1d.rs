//! The short causal convolution.

use elapid_kernels::causal_conv1d as kernel;
use elapid_kernels::cuda::Gpu;
use kernel::{Args, Dims};

use super::place::state_after;
use crate::autograd::{Var, Want, record};
use crate::{Layout, Result, Tensor};

/// y = silu(conv(x) + bias), per channel, over the current and the k-1 earlier inputs.
///
/// x `[b l d]`, weight `[d 1 k]` (its last tap multiplies the current input), `window` `[b k-1 d]`: the inputs before the
/// first position. Returns y and the window after the last position. With `in_place`, a GPU may update `window` in place, at
/// a length of 1 and without gradients.
///
/// # Errors
/// If shapes do not fit.
pub fn causal_conv1d(
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    window: &Var,
    in_place: bool,
    layout: &Layout,
) -> Result<(Var, Var)> {
    let dims = Dims { b: layout.b, l: layout.l, d: x.value().cols(), k: weight.value().cols() };
    match x.value().gpu() {
        None => on_cpu(dims, x, weight, bias, window, layout),
        Some(gpu) => on_cuda(gpu, dims, x, weight, bias, window, in_place, layout),
    }
}

fn on_cuda(
    gpu: Gpu,
    dims: Dims,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    window: &Var,
    in_place: bool,
    layout: &Layout,
) -> Result<(Var, Var)> {
    let inputs: Vec<&Var> = [x, weight, window].into_iter().chain(bias).collect();
    let recorded = inputs.iter().any(|x| x.wants_grad());
    let mut y = Tensor::uninit(gpu, x.value().dtype(), x.shape())?;
    let mut last = state_after(gpu, window, dims.l, in_place, recorded)?;
    kernel::cuda::forward(&gpu, dims, &device_args(x, weight, bias, window, layout), y.mat_mut(), last.mat_mut())?;
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    let (window, layout) = (window.clone(), layout.clone());
    let [y, last] = record(&inputs, [y, last], move |grads, [y, last]| {
        let dlast = grads.take(last)?;
        let dy = grads.take_or_zeros(y)?;
        let carried = window.wants_grad().then_some(&window);
        let wants = [Want::Set(&x), Want::Add(&weight), Want::add(bias.as_ref()), Want::set(carried)];
        grads.write_cuda(wants, |[dx, dweight, dbias, dinitial]| {
            let (Some(dx), Some(dweight)) = (dx, dweight) else { return Ok(()) };
            kernel::cuda::backward(
                &gpu,
                dims,
                &device_args(&x, &weight, bias.as_ref(), &window, &layout),
                dy.mat(),
                dlast.as_ref().map(Tensor::mat),
                kernel::cuda::Grads { dx, dweight, dbias, dinitial },
            )
        })
    });
    Ok((y, last))
}

fn device_args<'a>(
    x: &'a Var,
    weight: &'a Var,
    bias: Option<&'a Var>,
    window: &'a Var,
    layout: &'a Layout,
) -> kernel::cuda::Args<'a> {
    kernel::cuda::Args {
        x: x.value().mat(),
        weight: weight.value().mat(),
        bias: bias.map(|b| b.value().flat()),
        initial: Some(window.value().mat()),
        segments: layout.device_segments(),
        silu: true,
    }
}

fn on_cpu(dims: Dims, x: &Var, weight: &Var, bias: Option<&Var>, window: &Var, layout: &Layout) -> Result<(Var, Var)> {
    let mut last = elapid_kernels::zeros(window.value().len())?;
    let y = Tensor::filled(x.shape(), |y| kernel::forward(dims, &args(x, weight, bias, window, layout), y, &mut last))?;
    let last = Tensor::new(last, window.shape());
    let inputs: Vec<&Var> = [x, weight, window].into_iter().chain(bias).collect();
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    let (window, layout) = (window.clone(), layout.clone());
    let [y, last] = record(&inputs, [y, last], move |grads, [y, last]| {
        let dlast = grads.take(last)?;
        let dy = grads.take_or_zeros(y)?;
        let wants = [Want::Set(&x), Want::Add(&weight), Want::add(bias.as_ref()), Want::Set(&window)];
        grads.write(wants, |[dx, dweight, dbias, dinitial]| {
            kernel::backward(
                dims,
                &args(&x, &weight, bias.as_ref(), &window, &layout),
                dy.rows(),
                dlast.as_ref().map(Tensor::as_slice),
                kernel::Grads {
                    dx,
                    dweight: dweight.into_slice(),
                    dbias: bias.is_some().then(|| dbias.into_slice()),
                    dinitial: window.wants_grad().then(|| dinitial.into_slice()),
                },
            )
        })
    });
    Ok((y, last))
}

fn args<'a>(x: &'a Var, weight: &'a Var, bias: Option<&'a Var>, window: &'a Var, layout: &'a Layout) -> Args<'a> {
    Args {
        x: x.value().rows(),
        weight: weight.value().as_slice(),
        bias: bias.map(|b| b.value().as_slice()),
        initial: Some(window.value().as_slice()),
        segments: layout.segments(),
        silu: true,
    }
}
