//! The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, algorithm 2 and equations 2a, 4):
//!
//! - Δ_t = softplus(delta_t + bias), or delta_t + bias
//! - h_t = Ā_t h_{t-1} + B̄_t u_t, with Ā and B̄ from Δ_t, A and B_t by a [`Discretisation`] // b l d n
//! - y_t = (Σ_n C_t h_t + D u_t) silu(z_t) // b l n, b l d n -> b l d
//!
//! Activations are channels-last: `[b l d]` is `b * l` rows of `d`. B_t and C_t are shared by all channels.
//!
//! The state is `[b d n]`: `initial` is the state before position 0, `last` is the one for the next chunk, and [`step`]
//! advances it by one position. A whole sequence, its chunks and its steps agree bit for bit; so do a row of a batch and a
//! batch of one, and any numbers of threads. Where [`Segments`](crate::Segments) reset, the state before that position
//! counts as 0, including `initial`. Positions at or after a row's length have output 0 and no gradient, and `last` is the
//! state before them.
//!
//! The backward, derived in `docs/math/selective_scan.md`, reruns the recurrence from the states that [`forward`] stored in
//! [`Saved`]; h is never stored for all positions.

mod args;
mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::{Isa, Rows, RowsMut};

use args::OP;
pub use args::{Args, Dims, Discretisation, Grads, Saved};

/// Scans.
///
/// `y` `[b l d]` (=), `last` `[b d n]` (=): the state after each row's last position. `saved` is for [`backward`].
///
/// # Errors
/// If shapes differ, or `d` or `n` is 0.
pub fn forward(dims: Dims, args: &Args<'_>, y: RowsMut<'_>, last: &mut [f32], saved: Option<&mut Saved>) -> Result<()> {
    forward_on(Isa::best(), dims, args, y, last, saved)
}

fn forward_on(
    isa: Isa,
    dims: Dims,
    args: &Args<'_>,
    y: RowsMut<'_>,
    last: &mut [f32],
    saved: Option<&mut Saved>,
) -> Result<()> {
    let check = check_args(dims, args)?;
    check.shape("y", y.shape(), (dims.b * dims.l, dims.d))?;
    check.len("last", last.len(), dims.b * dims.d * dims.n)?;
    cpu::forward(isa, dims, args, y, last, saved);
    Ok(())
}

/// The gradient of [`forward`].
///
/// `saved` is from `forward` with the same `dims` and `args`; `dy` `[b l d]`; `dlast` `[b d n]` is the gradient of `last`
/// from the next chunk.
///
/// # Errors
/// If shapes differ, `d` or `n` is 0, `saved` has other sizes, or `dz` is requested without `z`.
pub fn backward(
    dims: Dims,
    args: &Args<'_>,
    saved: &Saved,
    dy: Rows<'_>,
    dlast: Option<&[f32]>,
    grads: Grads<'_>,
) -> Result<()> {
    backward_on(Isa::best(), dims, args, saved, dy, dlast, grads)
}

fn backward_on(
    isa: Isa,
    dims: Dims,
    args: &Args<'_>,
    saved: &Saved,
    dy: Rows<'_>,
    dlast: Option<&[f32]>,
    grads: Grads<'_>,
) -> Result<()> {
    let check = check_args(dims, args)?;
    let Dims { b, l, d, n } = dims;
    check.shape("dy", dy.shape(), (b * l, d))?;
    if let Some(dlast) = dlast {
        check.len("dlast", dlast.len(), b * d * n)?;
    }
    check.shape("du", grads.du.shape(), (b * l, d))?;
    check.shape("ddelta", grads.ddelta.shape(), (b * l, d))?;
    if let Some(ddelta_bias) = &grads.ddelta_bias {
        check.len("ddelta_bias", ddelta_bias.len(), d)?;
    }
    check.len("da", grads.da.len(), d * n)?;
    check.shape("db", grads.db.shape(), (b * l, n))?;
    check.shape("dc", grads.dc.shape(), (b * l, n))?;
    if let Some(dskip) = &grads.dskip {
        check.len("dskip", dskip.len(), d)?;
    }
    if let Some(dz) = &grads.dz {
        check.shape("dz", dz.shape(), (b * l, d))?;
        check.that(args.z.is_some(), "dz", || "z to be given".into(), || "no z".into())?;
    }
    if let Some(dinitial) = &grads.dinitial {
        check.len("dinitial", dinitial.len(), b * d * n)?;
    }
    check.that(
        saved.made_for == Some((dims, isa.lanes())),
        "saved",
        || format!("states of a forward of {dims:?}"),
        || format!("{:?}", saved.made_for.map(|m| m.0)),
    )?;
    cpu::backward(isa, dims, args, saved, dy, dlast, grads);
    Ok(())
}

/// One position of every row: the result of [`forward`] for it, bit for bit. Allocates nothing.
///
/// `args` is that of [`forward`] with a length of 1 and without `initial`; `state` `[b d n]` is updated in place, `y`
/// `[b d]` (=). A row of length 0 gets output 0 and keeps its state.
///
/// # Errors
/// If shapes differ, `d` or `n` is 0, or `args.initial` is given.
pub fn step(dims: Dims, args: &Args<'_>, state: &mut [f32], y: RowsMut<'_>) -> Result<()> {
    step_on(Isa::best(), dims, args, state, y)
}

fn step_on(isa: Isa, dims: Dims, args: &Args<'_>, state: &mut [f32], y: RowsMut<'_>) -> Result<()> {
    let dims = Dims { l: 1, ..dims };
    let check = check_args(dims, args)?;
    check.that(args.initial.is_none(), "initial", || "none: the state is `state`".into(), || "some".into())?;
    check.shape("y", y.shape(), (dims.b, dims.d))?;
    check.len("state", state.len(), dims.b * dims.d * dims.n)?;
    cpu::step(isa, dims, args, state, y);
    Ok(())
}

fn check_args<T: Copy>(dims: Dims, args: &Args<'_, T>) -> Result<Check> {
    let check = Check(OP);
    let Dims { b, l, d, n } = dims;
    check.that(d >= 1, "d", || "at least 1".into(), || "0".into())?;
    check.that(n >= 1, "n", || "at least 1".into(), || "0".into())?;
    check.sizes([b, l, d, n])?;
    check.shape("u", args.u.shape(), (b * l, d))?;
    check.shape("delta", args.delta.shape(), (b * l, d))?;
    if let Some(delta_bias) = args.delta_bias {
        check.len("delta_bias", delta_bias.len(), d)?;
    }
    check.len("a", args.a.len(), d * n)?;
    check.shape("b", args.b.shape(), (b * l, n))?;
    check.shape("c", args.c.shape(), (b * l, n))?;
    if let Some(skip) = args.skip {
        check.len("skip", skip.len(), d)?;
    }
    if let Some(z) = args.z {
        check.shape("z", z.shape(), (b * l, d))?;
    }
    if let Some(initial) = args.initial {
        check.len("initial", initial.len(), b * d * n)?;
    }
    args.segments.check(OP, b, l)?;
    Ok(check)
}
