//! Depthwise causal convolution over time, with an optional SiLU (Gu and Dao 2023, arXiv 2312.00752, figure 3; the
//! tap order is that of the reference `causal_conv1d`):
//!
//! y_t = act(bias + Σ_j weight_j x_{t-(k-1)+j}), so `weight[.., k-1]` multiplies the current input.
//!
//! Activations are channels-last. The window of `k - 1` raw inputs is the state: `initial` is the window before position 0,
//! `last` is the one for the next chunk, and [`step`] advances it by one position. A whole sequence, its chunks and its
//! steps agree bit for bit. Where [`Segments`] reset, earlier inputs count as zeros, including `initial`. Positions at or
//! after a row's length have output 0 and no gradient, and `last` is the window before them.
//!
//! The backward, derived in `docs/math/causal_conv1d.md`, recomputes the values before the SiLU.

mod args;
mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::{Isa, Rows, RowsMut, Segments};

pub use args::{Args, Dims, Grads};

/// Convolves.
///
/// `y` `[b l d]` (=), `last` `[b k-1 d]` (=): the last raw inputs of each row, oldest first.
///
/// # Errors
/// If shapes differ, or `k` is 0.
pub fn forward(dims: Dims, args: &Args<'_>, y: RowsMut<'_>, last: &mut [f32]) -> Result<()> {
    let check = check_args(dims, args)?;
    check.shape("y", y.shape(), (dims.b * dims.l, dims.d))?;
    check.len("last", last.len(), dims.b * (dims.k - 1) * dims.d)?;
    cpu::forward(Isa::best(), dims, args, y, last);
    Ok(())
}

/// The gradient of [`forward`].
///
/// `dy` `[b l d]`; `dlast` `[b k-1 d]` is the gradient of `last` from the next chunk.
///
/// # Errors
/// If shapes differ, or `k` is 0.
pub fn backward(dims: Dims, args: &Args<'_>, dy: Rows<'_>, dlast: Option<&[f32]>, grads: Grads<'_>) -> Result<()> {
    let check = check_args(dims, args)?;
    let Dims { b, l, d, k } = dims;
    check.shape("dy", dy.shape(), (b * l, d))?;
    if let Some(dlast) = dlast {
        check.len("dlast", dlast.len(), b * (k - 1) * d)?;
    }
    check.shape("dx", grads.dx.shape(), (b * l, d))?;
    check.len("dweight", grads.dweight.len(), d * k)?;
    if let Some(dbias) = &grads.dbias {
        check.len("dbias", dbias.len(), d)?;
    }
    if let Some(dinitial) = &grads.dinitial {
        check.len("dinitial", dinitial.len(), b * (k - 1) * d)?;
    }
    cpu::backward(Isa::best(), dims, args, dy, dlast, grads);
    Ok(())
}

/// One position: the result of [`forward`] for it, bit for bit. Allocates nothing.
///
/// `x` `[b d]`, `weight` `[d k]`, `bias` `[d]`, `state` `[b k-1 d]` the window, advanced in place, `y` `[b d]` (=).
///
/// # Errors
/// If shapes differ, or `k` is 0.
pub fn step(
    dims: Dims,
    x: Rows<'_>,
    weight: &[f32],
    bias: Option<&[f32]>,
    silu: bool,
    state: &mut [f32],
    y: RowsMut<'_>,
) -> Result<()> {
    let dims = Dims { l: 1, ..dims };
    let args = Args { x, weight, bias, initial: None, segments: Segments::default(), silu };
    let check = check_args(dims, &args)?;
    check.len("state", state.len(), dims.b * (dims.k - 1) * dims.d)?;
    check.shape("y", y.shape(), (dims.b, dims.d))?;
    cpu::step(Isa::best(), dims, x, weight, bias, silu, state, y);
    Ok(())
}

fn check_args(dims: Dims, args: &Args<'_>) -> Result<Check> {
    let Dims { b, l, d, k } = dims;
    let check = Check("causal_conv1d");
    check.that(k > 0, "k", || "at least 1".into(), || "0".into())?;
    check.sizes([b, l, d, k])?;
    check.shape("x", args.x.shape(), (b * l, d))?;
    check.len("weight", args.weight.len(), d * k)?;
    if let Some(bias) = args.bias {
        check.len("bias", bias.len(), d)?;
    }
    if let Some(initial) = args.initial {
        check.len("initial", initial.len(), b * (k - 1) * d)?;
    }
    args.segments.check("causal_conv1d", b, l)?;
    Ok(check)
}
