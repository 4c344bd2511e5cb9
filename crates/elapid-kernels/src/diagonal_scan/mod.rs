//! The linear recurrence with a diagonal matrix, of S5 (Smith et al. 2023, arXiv 2208.04933, section 2.2), the LRU (Orvieto et
//! al. 2023, arXiv 2303.06349, equation 5) and gated linear RNNs:
//!
//! - h_t = a_t h_{t-1} + x_t // b l d
//! - in reverse h_t = a_t h_{t+1} + x_t
//!
//! for every channel, real or complex. a is constant or varies with time; [`Decay`] has its forms. One is the RG-LRU of
//! Griffin (De et al. 2024, arXiv 2402.19427, equations 1 to 4):
//!
//! - r_t = σ(recurrence_t), i_t = σ(input_t), a_t = exp(-8 r_t softplus(Λ))
//! - h_t = a_t h_{t-1} + sqrt(1 - a_t²) i_t x_t
//!
//! At the start of a segment, which is also the first position if there is no `initial`, a_t is 0 and the root counts as one.
//! The gradient of the root is at most 1000, as in Griffin's code. A caller that keeps a state of zeros from the beginning says
//! so by a reset at position 0. In reverse a segment starts at its last position: a chunk that ends there must be given no
//! `initial`.
//!
//! Activations are channels-last: `[b l (p d)]` is `b * l` rows, with p parts of a channel. A row of complex numbers has all
//! real parts and then all imaginary ones, so that the product behind a scan, Re(C h), is one matrix `[Re C, -Im C]` times
//! the row, and both parts have vectors of neighbouring channels.
//!
//! The state is `[b (p d)]` f32: `initial` before the first position, `last` for the next chunk (in reverse, the chunk before).
//! A whole sequence, its chunks and its steps agree bit for bit on the CPU; so do a row of a batch and the row alone, and
//! any numbers of threads. Where [`Segments`](crate::Segments) reset before position t, nothing passes between t - 1 and t,
//! whatever the direction; before position 0 that is from `initial`, in reverse to `last`. Positions at or after a row's
//! length have output 0 and no gradient, and the state passes by them.
//!
//! The backward, derived in `docs/math/diagonal_scan.md`, reads h as [`forward`] wrote it: nothing else is saved.

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
use crate::{Isa, View, ViewMut};

use args::CHECK;
pub use args::{Args, Decay, DecayGrads, Dims, Field, Grads, Outputs, RgLru};

/// Scans.
///
/// `h` `[b l (p d)]` (=) of the format of x; `last` `[b (p d)]` f32 (=): the state behind each row.
///
/// # Errors
/// If shapes, formats or devices differ, `d` is 0, a form of a is not for the field, or a device failed or has too little memory.
pub fn forward<'a, 'y>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    h: impl Into<ViewMut<'y>>,
    last: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let (args, h, last) = (args.into(), h.into(), last.into());
    check(dims, &args)?;
    activation("h", &h, &args.x, dims.columns(&args))?;
    CHECK.flat("last", &last, dims.b * dims.columns(&args))?;
    match h {
        ViewMut::Host(h) => {
            cpu::forward(Isa::best(), dims, &args.host()?, h, CHECK.host_flat_mut("last", last)?);
            Ok(())
        }
        ViewMut::Device(h) => {
            let gpu = h.gpu();
            cuda::forward(dims, &args.device(gpu)?, h, CHECK.device_mut("last", last, gpu)?)
        }
    }
}

/// The gradient of [`forward`] for the same `dims` and `args`.
///
/// # Errors
/// As [`forward`], or if the gradients of a are in another form than a.
pub fn backward<'a, 'y, 'g>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    outputs: impl Into<Outputs<View<'y>>>,
    grads: impl Into<Grads<ViewMut<'g>>>,
) -> Result<()> {
    let (args, outputs, grads) = (args.into(), outputs.into(), grads.into());
    check(dims, &args)?;
    check_backward(dims, &args, &outputs, &grads)?;
    match outputs.dh {
        View::Host(_) => {
            let outputs = outputs.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x))?;
            let grads = grads.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))?;
            cpu::backward(Isa::best(), dims, &args.host()?, &outputs, grads);
            Ok(())
        }
        View::Device(dh) => {
            let gpu = dh.gpu();
            let (read, write) = (|name, x| CHECK.device(name, x, gpu), |name, m| CHECK.device_mut(name, m, gpu));
            cuda::backward(dims, &args.device(gpu)?, &outputs.map(read, read)?, grads.map(write, write)?)
        }
    }
}

/// One position of every row: what [`forward`] gives for it, on the CPU bit for bit.
///
/// `args` is that of [`forward`] with a length of 1 and without `initial`; `state` `[b (p d)]` is updated in place, `h`
/// `[b (p d)]` (=). A row of length 0 gets output 0 and keeps its state.
///
/// # Errors
/// As [`forward`], or if `args.initial` is given.
pub fn step<'a, 'y>(
    dims: Dims,
    args: impl Into<Args<View<'a>>>,
    state: impl Into<ViewMut<'y>>,
    h: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let dims = Dims { l: 1, ..dims };
    let (args, state, h) = (args.into(), state.into(), h.into());
    check(dims, &args)?;
    CHECK.that(args.initial.is_none(), "initial", || "none: the state is `state`".into(), || "some".into())?;
    activation("h", &h, &args.x, dims.columns(&args))?;
    CHECK.flat("state", &state, dims.b * dims.columns(&args))?;
    match h {
        ViewMut::Host(h) => {
            cpu::step(Isa::best(), dims, &args.host()?, CHECK.host_flat_mut("state", state)?, h);
            Ok(())
        }
        ViewMut::Device(h) => {
            let gpu = h.gpu();
            cuda::step(dims, &args.device(gpu)?, CHECK.device_mut("state", state, gpu)?, h)
        }
    }
}

impl Dims {
    /// Columns of x, once [`check`] has seen that they can be counted.
    fn columns<V: crate::view::Matrix>(self, args: &Args<V>) -> usize {
        self.d * args.field.parts()
    }
}

fn check(dims: Dims, args: &Args<View<'_>>) -> error::Result<()> {
    let Dims { b, l, d } = dims;
    CHECK.that(d >= 1, "d", || "at least 1".into(), || "0".into())?;
    let columns = CHECK.product("x", &[d, args.field.parts()])?;
    let states = CHECK.product("initial", &[b, columns])?;
    CHECK.matrix("x", &args.x, (CHECK.product("x", &[b, l, columns])? / columns, columns))?;
    let real = |name| CHECK.that(args.field == Field::Real, name, || "a real field".into(), || "a complex one".into());
    match &args.decay {
        Decay::Constant(a) => CHECK.flat("a", a, columns)?,
        Decay::Values(a) => activation("a", a, &args.x, columns)?,
        Decay::Logs(a) => {
            real("a")?;
            activation("a", a, &args.x, d)?;
        }
        Decay::RgLru(RgLru { recurrence, input, lambda }) => {
            real("recurrence")?;
            activation("recurrence", recurrence, &args.x, d)?;
            activation("input", input, &args.x, d)?;
            CHECK.flat("lambda", lambda, d)?;
        }
    }
    if let Some(initial) = &args.initial {
        CHECK.flat("initial", initial, states)?;
    }
    args.segments.check(CHECK.0, b, l)
}

fn check_backward(
    dims: Dims,
    args: &Args<View<'_>>,
    outputs: &Outputs<View<'_>>,
    grads: &Grads<ViewMut<'_>>,
) -> error::Result<()> {
    let columns = dims.columns(args);
    for (name, m) in [("h", &outputs.h), ("dh", &outputs.dh)] {
        activation(name, m, &args.x, columns)?;
    }
    if let Some(dlast) = &outputs.dlast {
        CHECK.flat("dlast", dlast, dims.b * columns)?;
    }
    activation("dx", &grads.dx, &args.x, columns)?;
    if let Some(dinitial) = &grads.dinitial {
        CHECK.flat("dinitial", dinitial, dims.b * columns)?;
    }
    match (&args.decay, &grads.decay) {
        (_, None) => Ok(()),
        (Decay::Constant(_), Some(DecayGrads::Constant(da))) => CHECK.flat("da", da, columns),
        (Decay::Values(_) | Decay::Logs(_), Some(DecayGrads::Varying(da))) => activation("da", da, &args.x, columns),
        (Decay::RgLru(_), Some(DecayGrads::RgLru { drecurrence, dinput, dlambda })) => {
            activation("drecurrence", drecurrence, &args.x, dims.d)?;
            activation("dinput", dinput, &args.x, dims.d)?;
            CHECK.flat("dlambda", dlambda, dims.d)
        }
        _ => Err(CHECK.fault("decay", "gradients in the form of a".into(), "another form".into())),
    }
}

/// A matrix beside x: as many rows, of the same format.
fn activation(name: &'static str, m: &impl Shaped, x: &View<'_>, cols: usize) -> error::Result<()> {
    CHECK.matrix(name, m, (x.shape().0, cols))?;
    CHECK.dtype(name, m, x.dtype())
}
