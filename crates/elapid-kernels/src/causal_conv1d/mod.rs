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
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::view::Shaped;
use crate::{Isa, Rows, RowsMut, Segments, View, ViewMut};

use args::CHECK;
pub use args::{Args, Dims, Grads};

/// Convolves.
///
/// `y` `[b l d]` (=) of the format of x, `last` `[b k-1 d]` f32 (=): the last raw inputs of each row, oldest first. On a GPU
/// `last` may be the memory of `initial` at a length of 1.
///
/// # Errors
/// If shapes, formats or devices differ, `k` is 0, or a device failed.
pub fn forward<'a, 'y>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    y: impl Into<ViewMut<'y>>,
    last: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let (args, y, last) = (args.into(), y.into(), last.into());
    let window = check(dims, &args)?;
    CHECK.matrix("y", &y, args.x.shape())?;
    CHECK.dtype("y", &y, args.x.dtype())?;
    CHECK.flat("last", &last, window)?;
    match y {
        ViewMut::Host(y) => cpu::forward(Isa::best(), dims, &args.host()?, y, CHECK.host_flat_mut("last", last)?),
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::forward(dims, &args.device(gpu)?, y, CHECK.device_mut("last", last, gpu)?)?;
        }
    }
    Ok(())
}

/// The gradient of [`forward`].
///
/// `dy` `[b l d]` of the format of x; `dlast` `[b k-1 d]` f32 is the gradient that arrives at `last` from a next chunk.
///
/// # Errors
/// As [`forward`], or if there is too little memory.
pub fn backward<'a, 'y, 'g>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    dy: impl Into<View<'y>>,
    dlast: Option<View<'y>>,
    grads: impl Into<Grads<ViewMut<'g>>>,
) -> Result<()> {
    let (args, dy, grads) = (args.into(), dy.into(), grads.into());
    let window = check(dims, &args)?;
    let (shape, dtype) = (args.x.shape(), args.x.dtype());
    CHECK.matrix("dy", &dy, shape)?;
    CHECK.dtype("dy", &dy, dtype)?;
    if let Some(dlast) = &dlast {
        CHECK.flat("dlast", dlast, window)?;
    }
    CHECK.matrix("dx", &grads.dx, shape)?;
    CHECK.dtype("dx", &grads.dx, dtype)?;
    CHECK.flat("dweight", &grads.dweight, dims.d * dims.k)?;
    for (name, m, len) in [("dbias", &grads.dbias, dims.d), ("dinitial", &grads.dinitial, window)] {
        if let Some(m) = m {
            CHECK.flat(name, m, len)?;
        }
    }
    match dy {
        View::Host(dy) => {
            let dlast = dlast.map(|dlast| CHECK.host_flat("dlast", dlast)).transpose()?;
            let grads = grads.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))?;
            cpu::backward(Isa::best(), dims, &args.host()?, dy, dlast, grads);
        }
        View::Device(dy) => {
            let gpu = dy.gpu();
            let dlast = dlast.map(|dlast| CHECK.device("dlast", dlast, gpu)).transpose()?;
            let on = |name, m| CHECK.device_mut(name, m, gpu);
            cuda::backward(dims, &args.device(gpu)?, dy, dlast, grads.map(on, on)?)?;
        }
    }
    Ok(())
}

/// One position on the CPU: what [`forward`] gives for it, bit for bit. Allocates nothing.
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
) -> error::Result<()> {
    let dims = Dims { l: 1, ..dims };
    let args = Args { x, weight, bias, initial: None, segments: Segments::default(), silu };
    CHECK.len("state", state.len(), check(dims, &args.into())?)?;
    CHECK.shape("y", y.shape(), (dims.b, dims.d))?;
    cpu::step(Isa::best(), dims, x, weight, bias, silu, state, y);
    Ok(())
}

/// Checks the arguments; returns the number of elements of all windows.
fn check(dims: Dims, args: &Args<View<'_>>) -> error::Result<usize> {
    let Dims { b, l, d, k } = dims;
    CHECK.that(k > 0, "k", || "at least 1".into(), || "0".into())?;
    let window = CHECK.product("initial", &[b, k - 1, d])?;
    CHECK.matrix("x", &args.x, (CHECK.product("x", &[b, l])?, d))?;
    CHECK.flat("weight", &args.weight, CHECK.product("weight", &[d, k])?)?;
    for (name, m, len) in [("bias", &args.bias, d), ("initial", &args.initial, window)] {
        if let Some(m) = m {
            CHECK.flat(name, m, len)?;
        }
    }
    args.segments.check(CHECK.0, b, l)?;
    Ok(window)
}
