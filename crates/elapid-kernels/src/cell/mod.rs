//! Recurrent cells, whose gates read their own last output: the vanilla RNN (Elman 1990), the LSTM (Hochreiter and
//! Schmidhuber 1997) with forget gates (Gers et al. 2000), the GRU (Cho et al. 2014, arXiv 1406.1078) as cuDNN and PyTorch
//! have it, and the sLSTM (Beck et al. 2024, arXiv 2405.04517, equations 8 to 17).
//!
//! x_t are the gates' inputs, W times the layer's input, computed before for all positions. With a_t = x_t + q_t and
//! q_t = U h_{t-1} + bias, one vector `[d]` for each gate, in this order:
//!
//! - tanh, relu: h = f(a)
//! - lstm (i f g o): c = σ(f) c + σ(i) tanh(g), h = σ(o) tanh(c)
//! - gru (r z n): n = tanh(x_n + σ(r) q_n), h = (1 - σ(z)) n + σ(z) h
//! - slstm (i f z o): m' = max(i, log σ(f) + m), i' = exp(i - m'), f' = exp(log σ(f) + m - m'), c = f' c + i' tanh(z),
//!   n = f' n + i', h = σ(o) c / n. Where n is 0, at the start, m' = i and f' is at most 1.
//!
//! U is block-diagonal: `heads` blocks, each from the channels of a head to all gates of these channels. One head is a full
//! matrix.
//!
//! Activations are channels-last: `[b l (gate d)]` is `b * l` rows. The state is `[b s d]`: h; h and c; h; h, c, n and m.
//! `initial` is the state before position 0, zeros if absent, and `last` is the one for the next chunk. A whole sequence, its
//! chunks and its single positions agree bit for bit (on a GPU in f32); so do a row of a batch and the row alone, and any numbers of
//! threads. Where [`Segments`](crate::Segments) reset, the state before that position counts as 0, including `initial`.
//! Positions at or after a row's length have output 0 and no gradient, and `last` is the state before them.
//!
//! The backward, derived in `docs/math/cell.md`, reads what [`forward`] left in [`Saved`]: a and the states c, n, m of every
//! position.

mod args;
mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
mod saved;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::view::Shaped;
use crate::{Isa, View, ViewMut};

use args::CHECK;
pub use args::{Args, Dims, Grads, Kind, Outputs};
use saved::Kept;
pub use saved::Saved;

/// Runs the cells.
///
/// `y` `[b l d]` (=): h of every position; `last` `[b s d]` f32 (=): the state after each row's last position. `saved` is for
/// [`backward`].
///
/// # Errors
/// If shapes, formats or devices differ, `d` is 0 or no multiple of `heads`.
pub fn forward<'a, 'y>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    y: impl Into<ViewMut<'y>>,
    last: impl Into<ViewMut<'y>>,
    saved: Option<&mut Saved>,
) -> Result<()> {
    let (args, y, last) = (args.into(), y.into(), last.into());
    check(dims, &args)?;
    activation("y", &y, &args.x, dims.d)?;
    CHECK.flat("last", &last, dims.states(args.kind))?;
    match y {
        ViewMut::Host(y) => {
            let last = CHECK.host_flat_mut("last", last)?;
            cpu::forward(Isa::best(), dims, &args.host()?, y, last, saved.map(Saved::host));
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            let last = CHECK.device_mut("last", last, gpu)?;
            let kept = cuda::forward(dims, &args.device(gpu)?, y, last, saved.is_some())?;
            if let (Some(saved), Some(kept)) = (saved, kept) {
                saved.0 = Kept::Device(kept);
            }
        }
    }
    Ok(())
}

/// The gradient of [`forward`]; `saved` is what that left for the same `dims` and `args`.
///
/// # Errors
/// As [`forward`], or if `saved` is of other sizes, of another kind, or of another device.
pub fn backward<'a, 'y, 'g>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    saved: &Saved,
    outputs: impl Into<Outputs<View<'y>>>,
    grads: impl Into<Grads<ViewMut<'g>>>,
) -> Result<()> {
    let (args, outputs, grads) = (args.into(), outputs.into(), grads.into());
    check(dims, &args)?;
    check_backward(dims, &args, &outputs, &grads)?;
    match (outputs.dy, &saved.0) {
        (View::Host(_), Kept::Host(saved)) if saved.is_for(dims, args.kind) => {
            let outputs = outputs.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x))?;
            let grads = grads.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))?;
            cpu::backward(Isa::best(), dims, &args.host()?, saved, &outputs, grads);
            Ok(())
        }
        (View::Device(dy), Kept::Device(saved)) if saved.is_for(dims, args.kind, dy.gpu()) => {
            let gpu = dy.gpu();
            let (read, write) = (|name, x| CHECK.device(name, x, gpu), |name, m| CHECK.device_mut(name, m, gpu));
            let outputs = outputs.map(read, read)?;
            cuda::backward(dims, &args.device(gpu)?, saved, &outputs, grads.map(write, write)?)
        }
        (_, kept) => {
            let wanted = format!("what a forward of {:?} and {dims:?} left on the same device", args.kind);
            Err(CHECK.fault("saved", wanted, kept.to_string()).into())
        }
    }
}

fn check(dims: Dims, args: &Args<View<'_>>) -> error::Result<()> {
    let Dims { b, l, d, heads } = dims;
    CHECK.that(d >= 1, "d", || "at least 1".into(), || "0".into())?;
    let divides = heads >= 1 && d.is_multiple_of(heads);
    CHECK.that(divides, "heads", || format!("a divisor of {d}"), || heads.to_string())?;
    let gates = CHECK.product("x", &[args.kind.gates(), d])?;
    let states = CHECK.product("initial", &[b, args.kind.states(), d])?;
    CHECK.product("recurrent", &[gates, d / heads])?;
    CHECK.matrix("x", &args.x, (CHECK.product("x", &[b, l, gates])? / gates, gates))?;
    CHECK.matrix("recurrent", &args.recurrent, (gates, d / heads))?;
    CHECK.dtype("recurrent", &args.recurrent, args.x.dtype())?;
    let contiguous = args.recurrent.is_contiguous();
    CHECK.that(contiguous, "recurrent", || "no gaps between rows".into(), || "gaps".into())?;
    for (name, m, len) in [("bias", &args.bias, gates), ("initial", &args.initial, states)] {
        if let Some(m) = m {
            CHECK.flat(name, m, len)?;
        }
    }
    args.segments.check(CHECK.0, b, l)
}

fn check_backward(
    dims: Dims,
    args: &Args<View<'_>>,
    outputs: &Outputs<View<'_>>,
    grads: &Grads<ViewMut<'_>>,
) -> error::Result<()> {
    let (gates, states) = (args.kind.gates() * dims.d, dims.states(args.kind));
    for (name, m) in [("y", &outputs.y), ("dy", &outputs.dy)] {
        activation(name, m, &args.x, dims.d)?;
    }
    if let Some(dlast) = &outputs.dlast {
        CHECK.flat("dlast", dlast, states)?;
    }
    activation("dx", &grads.dx, &args.x, gates)?;
    CHECK.flat("drecurrent", &grads.drecurrent, gates * (dims.d / dims.heads))?;
    for (name, m, len) in [("dbias", &grads.dbias, gates), ("dinitial", &grads.dinitial, states)] {
        if let Some(m) = m {
            CHECK.flat(name, m, len)?;
        }
    }
    Ok(())
}

/// A matrix beside x: as many rows, of the same format.
fn activation(name: &'static str, m: &impl Shaped, x: &View<'_>, cols: usize) -> error::Result<()> {
    CHECK.matrix(name, m, (x.shape().0, cols))?;
    CHECK.dtype(name, m, x.dtype())
}
