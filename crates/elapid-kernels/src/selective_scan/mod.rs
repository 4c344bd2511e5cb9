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
pub use args::{Args, Dims, Discretisation, Grads, Outputs};
use saved::Kept;
pub use saved::Saved;

/// Scans.
///
/// `y` `[b l d]` (=) of the format of u, `last` `[b d n]` f32 (=): the state after each row's last position. `saved` is for
/// [`backward`]. On a GPU `last` may be the memory of `initial` at a length of 1 without `saved`.
///
/// # Errors
/// If shapes, formats or devices differ, `d` or `n` is 0 or too large, or a device failed or has too little memory.
pub fn forward<'a, 'y>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    y: impl Into<ViewMut<'y>>,
    last: impl Into<ViewMut<'y>>,
    saved: Option<&mut Saved>,
) -> Result<()> {
    let (args, y, last) = (args.into(), y.into(), last.into());
    check(dims, &args)?;
    activation("y", &y, &args.u, dims.d)?;
    CHECK.flat("last", &last, dims.states())?;
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
/// As [`forward`], or if `saved` is of other sizes or another device, or `dz` is asked for without `z`.
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
    let Outputs { y, dy, dlast } = outputs;
    match (dy, &saved.0) {
        (View::Host(dy), Kept::Host(saved)) if saved.is_for(dims, Isa::best()) => {
            let dlast = dlast.map(|dlast| CHECK.host_flat("dlast", dlast)).transpose()?;
            let grads = grads.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))?;
            cpu::backward(Isa::best(), dims, &args.host()?, saved, dy, dlast, grads);
            Ok(())
        }
        (View::Device(dy), Kept::Device(saved)) if saved.is_for(dims, dy.gpu()) => {
            let gpu = dy.gpu();
            let dlast = dlast.map(|dlast| CHECK.device("dlast", dlast, gpu)).transpose()?;
            let outputs = Outputs { y: CHECK.device("y", y, gpu)?, dy, dlast };
            let on = |name, m| CHECK.device_mut(name, m, gpu);
            cuda::backward(dims, &args.device(gpu)?, saved, outputs, grads.map(on, on)?)
        }
        (_, kept) => {
            let wanted = format!("states of a forward of {dims:?} on the same device");
            Err(CHECK.fault("saved", wanted, kept.to_string()).into())
        }
    }
}

/// One position of every row: what [`forward`] gives for it, on the CPU bit for bit. Allocates nothing there.
///
/// `args` is that of [`forward`] with a length of 1 and without `initial`; `state` `[b d n]` is updated in place, `y`
/// `[b d]` (=). A row of length 0 gets output 0 and keeps its state.
///
/// # Errors
/// As [`forward`], or if `args.initial` is given.
pub fn step<'a, 'y>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    state: impl Into<ViewMut<'y>>,
    y: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let dims = Dims { l: 1, ..dims };
    let (args, state, y) = (args.into(), state.into(), y.into());
    check(dims, &args)?;
    CHECK.that(args.initial.is_none(), "initial", || "none: the state is `state`".into(), || "some".into())?;
    activation("y", &y, &args.u, dims.d)?;
    CHECK.flat("state", &state, dims.states())?;
    match y {
        ViewMut::Host(y) => {
            cpu::step(Isa::best(), dims, &args.host()?, CHECK.host_flat_mut("state", state)?, y);
            Ok(())
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::step(dims, &args.device(gpu)?, CHECK.device_mut("state", state, gpu)?, y)
        }
    }
}

impl Dims {
    /// Elements of all states, once [`check`] has seen that they can be counted.
    fn states(self) -> usize {
        self.b * self.d * self.n
    }
}

fn check(dims: Dims, args: &Args<View<'_>>) -> error::Result<()> {
    let Dims { b, l, d, n } = dims;
    CHECK.that(d >= 1, "d", || "at least 1".into(), || "0".into())?;
    CHECK.that(n >= 1, "n", || "at least 1".into(), || "0".into())?;
    let states = CHECK.product("initial", &[b, d, n])?;
    CHECK.matrix("u", &args.u, (CHECK.product("u", &[b, l])?, d))?;
    for (name, m, cols) in [("delta", &args.delta, d), ("b", &args.b, n), ("c", &args.c, n)] {
        activation(name, m, &args.u, cols)?;
    }
    if let Some(z) = &args.z {
        activation("z", z, &args.u, d)?;
    }
    CHECK.flat("a", &args.a, CHECK.product("a", &[d, n])?)?;
    for (name, m, len) in
        [("delta_bias", &args.delta_bias, d), ("skip", &args.skip, d), ("initial", &args.initial, states)]
    {
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
    let Dims { d, n, .. } = dims;
    for (name, m) in [("y", &outputs.y), ("dy", &outputs.dy)] {
        activation(name, m, &args.u, d)?;
    }
    for (name, m, cols) in
        [("du", &grads.du, d), ("ddelta", &grads.ddelta, d), ("db", &grads.db, n), ("dc", &grads.dc, n)]
    {
        activation(name, m, &args.u, cols)?;
    }
    if let Some(dz) = &grads.dz {
        activation("dz", dz, &args.u, d)?;
        CHECK.that(args.z.is_some(), "dz", || "z to be given".into(), || "no z".into())?;
    }
    if let Some(dlast) = &outputs.dlast {
        CHECK.flat("dlast", dlast, dims.states())?;
    }
    CHECK.flat("da", &grads.da, d * n)?;
    for (name, m, len) in [
        ("ddelta_bias", &grads.ddelta_bias, d),
        ("dskip", &grads.dskip, d),
        ("dinitial", &grads.dinitial, dims.states()),
    ] {
        if let Some(m) = m {
            CHECK.flat(name, m, len)?;
        }
    }
    Ok(())
}

/// A matrix beside u: as many rows, of the same format.
fn activation(name: &'static str, m: &impl Shaped, u: &View<'_>, cols: usize) -> error::Result<()> {
    CHECK.matrix(name, m, (u.shape().0, cols))?;
    CHECK.dtype(name, m, u.dtype())
}
