//! The short causal convolution.

use elapid_kernels::reuse::List;
use elapid_kernels::{View, causal_conv1d as kernel};
use kernel::{Args, Dims, Grads};

use super::place::state_after;
use crate::autograd::{Var, Want, record};
use crate::{Layout, Result, Tensor};

/// y = conv(x) + bias, per channel, over the current and the k-1 earlier inputs; with `silu` the silu of it.
///
/// x `[b l d]`, weight `[d 1 k]` (its last tap multiplies the current input), `window` `[b k-1 d]`: the inputs before the
/// first position. Returns y and the window after the last position; a GPU may write that into the memory of `window` if
/// `in_place`, at a length of 1 and without gradients.
///
/// # Errors
/// If shapes do not fit.
pub fn causal_conv1d(
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    (window, silu): (&Var, bool),
    in_place: bool,
    layout: &Layout,
) -> Result<(Var, Var)> {
    let dims = Dims { b: layout.b, l: layout.l, d: x.value().cols(), k: weight.value().cols() };
    let inputs: List<&Var> = [x, weight, window].into_iter().chain(bias).collect();
    let recorded = inputs.iter().any(|x| x.wants_grad());
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), x.shape())?;
    let mut last = state_after(window, dims.l, in_place, recorded)?;
    kernel::forward(dims, args(x, weight, bias, (window, silu), layout), y.view_mut(), last.view_mut())?;
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    let (window, layout) = (window.clone(), layout.clone());
    let [y, last] = record(&inputs, [y, last], move |grads, [y, last]| {
        let dlast = grads.take(last)?;
        let dy = grads.take_or_zeros(y)?;
        let wants = [Want::Set(&x), Want::Add(&weight), Want::add(bias.as_ref()), Want::set(Some(&window))];
        grads.write(wants, |[dx, dweight, dbias, dinitial]| {
            let (Some(dx), Some(dweight)) = (dx, dweight) else { return Ok(()) };
            kernel::backward(
                dims,
                args(&x, &weight, bias.as_ref(), (&window, silu), &layout),
                dy.view(),
                dlast.as_ref().map(Tensor::view),
                Grads { dx, dweight, dbias, dinitial },
            )
        })
    });
    Ok((y, last))
}

fn args<'a>(
    x: &'a Var,
    weight: &'a Var,
    bias: Option<&'a Var>,
    (window, silu): (&'a Var, bool),
    layout: &'a Layout,
) -> Args<View<'a>> {
    Args {
        x: x.value().view(),
        weight: weight.value().view_flat(),
        bias: bias.map(|b| b.value().view_flat()),
        initial: Some(window.value().view_flat()),
        segments: layout.view(x.value().device()),
        silu,
    }
}
