//! Linear attention with decay: per head a matrix S `[k v]` that every position decays, writes to and reads (Katharopoulos et al.
//! 2020, arXiv 2006.16236; RetNet, arXiv 2307.08621; GLA, arXiv 2312.06635; Mamba-2's SSD, arXiv 2405.21060; RWKV-5 and 6,
//! arXiv 2404.05892; Based, arXiv 2402.18668).
//!
//! - S_t = diag(g_t) S_{t-1} + w_t k_t v_tᵀ // b h k v
//! - y_t = scale S_tᵀ q_t + skip v_t // b h k v, b l (g k) -> b l (h v)
//! - with a bonus u: y_t = scale (S_{t-1} + diag(u) w_t k_t v_tᵀ)ᵀ q_t + skip v_t; position t decays the state after it has read it
//! - with a normaliser: the state has one column more, z_t = diag(g_t) z_{t-1} + w_t k_t, and the product is divided by
//!   scale q_t z_t + ε (with a bonus, by what v = 1 would give, plus ε)
//!
//! The logarithm of g is a [`Decay`]: none, a constant or a value for each position, of each head or of each row of the state. w is
//! one value for each head and position, Mamba-2's Δ; skip is its D.
//!
//! Activations are channels-last: q and k are `[b l (g k)]` with `groups` heads, v and y are `[b l (h v)]`. The state is f32,
//! `[b h k v]`, or `[b h k v+1]` with z last. `initial` is the state before position 0, `last` is the one for the next chunk, and
//! [`step`] advances it by one position. Where [`Segments`](crate::Segments) reset, the state before that position counts as 0,
//! including `initial`. Positions at or after a row's length have output 0 and no gradient, and `last` is the state before them.
//!
//! Results do not depend on the number of threads. On the CPU a row of a batch has the bits of the row alone.
//!
//! The backward is derived in `docs/math/linear_attention.md`.

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
use crate::{DType, Isa, View, ViewMut};

use args::CHECK;
pub use args::{Args, Decay, Dims, Grads, Outputs};
use saved::Kept;
pub use saved::Saved;

/// Attends.
///
/// `y` `[b l (h v)]` (=) of the format of v, `last` f32 (=), of the shape of the state: the state after each row's last position.
/// `saved` is for [`backward`].
///
/// # Errors
/// If shapes, formats or devices differ, a size is 0 or too large, or a device failed or has too little memory.
pub fn forward<'a, 'y>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    y: impl Into<ViewMut<'y>>,
    last: impl Into<ViewMut<'y>>,
    saved: Option<&mut Saved>,
) -> Result<()> {
    let (args, y, last) = (args.into(), y.into(), last.into());
    check(dims, &args)?;
    activation("y", &y, &args.q, dims.heads * dims.v)?;
    CHECK.flat("last", &last, dims.states(args.normaliser.is_some()))?;
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
/// As [`forward`], or if `saved` is of other sizes or another device, or a gradient is asked for of what is not given.
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
    let normalised = args.normaliser.is_some();
    match (outputs.dy, &saved.0) {
        (View::Host(_), Kept::Host(saved)) if saved.is_for(dims, normalised) => {
            let outputs = outputs.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x))?;
            let grads = grads.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))?;
            cpu::backward(Isa::best(), dims, &args.host()?, saved, &outputs, grads);
            Ok(())
        }
        (View::Device(dy), Kept::Device(saved)) if saved.is_for(dims, normalised, dy.gpu()) => {
            let gpu = dy.gpu();
            let (read, write) = (|name, x| CHECK.device(name, x, gpu), |name, m| CHECK.device_mut(name, m, gpu));
            let outputs = outputs.map(read, read)?;
            cuda::backward(dims, &args.device(gpu)?, saved, &outputs, grads.map(write, write)?)
        }
        (_, kept) => {
            let wanted = format!("what a forward of {dims:?} left on the same device");
            Err(CHECK.fault("saved", wanted, kept.to_string()).into())
        }
    }
}

/// One position of every row: what [`forward`] gives for it, up to rounding. On the CPU it reads and writes the state once.
///
/// `args` is that of [`forward`] with a length of 1 and without `initial`; `state` is updated in place, `y` `[b (h v)]` (=). A row
/// of length 0 gets output 0 and keeps its state.
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
    activation("y", &y, &args.q, dims.heads * dims.v)?;
    CHECK.flat("state", &state, dims.states(args.normaliser.is_some()))?;
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

fn check(dims: Dims, args: &Args<View<'_>>) -> error::Result<()> {
    let Dims { b, l, groups, heads, k, v } = dims;
    for (name, size) in [("groups", groups), ("heads", heads), ("k", k), ("v", v)] {
        CHECK.that(size >= 1, name, || "at least 1".into(), || "0".into())?;
    }
    CHECK.that(heads.is_multiple_of(groups), "groups", || format!("a divisor of {heads}"), || groups.to_string())?;
    let columns = v.saturating_add(usize::from(args.normaliser.is_some()));
    let states = CHECK.product("initial", &[b, heads, k, columns])?;
    let (rows, queries) = (CHECK.product("q", &[b, l])?, CHECK.product("q", &[groups, k])?);
    let (values, keys) = (CHECK.product("v", &[heads, v])?, CHECK.product("decay", &[heads, k])?);
    CHECK.matrix("q", &args.q, (rows, queries))?;
    activation("k", &args.k, &args.q, queries)?;
    activation("v", &args.v, &args.q, values)?;
    match &args.decay {
        Decay::None => {}
        Decay::Head(x) => CHECK.flat("decay", x, heads)?,
        Decay::HeadVarying(x) => per_head("decay", x, &args.q, heads)?,
        Decay::Key(x) => CHECK.flat("decay", x, keys)?,
        Decay::KeyVarying(x) => {
            CHECK.matrix("decay", x, (rows, keys))?;
            if Shaped::dtype(x) != DType::F32 {
                CHECK.dtype("decay", x, args.q.dtype())?;
            }
        }
    }
    if let Some(write) = &args.write {
        per_head("write", write, &args.q, heads)?;
    }
    for (name, m, len) in [("bonus", &args.bonus, keys), ("initial", &args.initial, states)] {
        if let Some(m) = m {
            CHECK.flat(name, m, len)?;
        }
    }
    if let Some(skip) = &args.skip {
        let (rows, cols) = skip.shape();
        let len = if rows * cols == heads { heads } else { values };
        CHECK.flat("skip", skip, len)?;
    }
    args.segments.check(CHECK.0, b, l)
}

fn check_backward(
    dims: Dims,
    args: &Args<View<'_>>,
    outputs: &Outputs<View<'_>>,
    grads: &Grads<ViewMut<'_>>,
) -> error::Result<()> {
    let Dims { groups, heads, k, v, .. } = dims;
    let states = dims.states(args.normaliser.is_some());
    for (name, m) in [("y", &outputs.y), ("dy", &outputs.dy)] {
        activation(name, m, &args.q, heads * v)?;
    }
    if let Some(dlast) = &outputs.dlast {
        CHECK.flat("dlast", dlast, states)?;
    }
    for (name, m, cols) in [("dq", &grads.dq, groups * k), ("dk", &grads.dk, groups * k), ("dv", &grads.dv, heads * v)]
    {
        activation(name, m, &args.q, cols)?;
    }
    let given = |name, given: bool| CHECK.that(given, name, || "what it is the gradient of".into(), || "none".into());
    if let Some(ddecay) = &grads.ddecay {
        let (Decay::HeadVarying(x) | Decay::KeyVarying(x)) = &args.decay else { return given("ddecay", false) };
        CHECK.matrix("ddecay", ddecay, x.shape())?;
        CHECK.dtype("ddecay", ddecay, Shaped::dtype(x))?;
    }
    if let Some(ddecay) = &grads.ddecay_constant {
        let (Decay::Head(x) | Decay::Key(x)) = &args.decay else { return given("ddecay_constant", false) };
        CHECK.flat("ddecay_constant", ddecay, x.shape().0 * x.shape().1)?;
    }
    if let Some(dwrite) = &grads.dwrite {
        given("dwrite", args.write.is_some())?;
        per_head("dwrite", dwrite, &args.q, heads)?;
    }
    if let Some(dbonus) = &grads.dbonus {
        given("dbonus", args.bonus.is_some())?;
        CHECK.flat("dbonus", dbonus, heads * k)?;
    }
    if let Some(dskip) = &grads.dskip {
        let Some(skip) = &args.skip else { return given("dskip", false) };
        CHECK.flat("dskip", dskip, skip.shape().0 * skip.shape().1)?;
    }
    grads.dinitial.as_ref().map_or(Ok(()), |dinitial| CHECK.flat("dinitial", dinitial, states))
}

/// A matrix beside q: as many rows, of the same format.
fn activation(name: &'static str, m: &impl Shaped, q: &View<'_>, cols: usize) -> error::Result<()> {
    CHECK.matrix(name, m, (q.shape().0, cols))?;
    CHECK.dtype(name, m, q.dtype())
}

/// f32 values of every head and position.
fn per_head(name: &'static str, m: &impl Shaped, q: &View<'_>, heads: usize) -> error::Result<()> {
    CHECK.matrix(name, m, (q.shape().0, heads))?;
    CHECK.dtype(name, m, DType::F32)
}
