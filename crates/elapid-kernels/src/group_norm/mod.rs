//! Normalisation of groups of channels, with a gate: the gated RMSNorm of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section
//! 7.1), the norm of heads in RetNet (arXiv 2307.08621, equation 8) and GLA (arXiv 2312.06635, section 4.4), and group
//! normalisation (Wu and He 2018, arXiv 1803.08494, equation 7).
//!
//! A row of d channels is `groups` groups. For each of them, with a gate z before or after the norm:
//!
//! - u = x, or x silu(z) with the gate before
//! - û = (u - mean(u)) rstd, rstd = 1 / sqrt(mean((u - mean(u))²) + eps); RMS: the same without the mean
//! - y = û weight + bias, times silu(z) with the gate after
//!
//! Backward, derived in `docs/math/group_norm.md`: with dn the gradient of û weight + bias and g = dn weight,
//! du = rstd (g - mean(g) - û mean(g û)), without mean(g) for RMS. It recomputes û, so that nothing is saved.
//!
//! A row's result depends only on the row, not on the number of rows or threads.

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
pub use args::{Args, Gate, Grads, Place};

/// Normalises.
///
/// `y` `[m d]` (=), of the format of x.
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'a, 'y>(args: impl Into<Args<View<'a>>>, y: impl Into<ViewMut<'y>>) -> Result<()> {
    let (args, y) = (args.into(), y.into());
    check(&args)?;
    activation("y", &y, &args.x)?;
    match y {
        ViewMut::Host(y) => cpu::forward(Isa::best(), &args.host()?, y),
        ViewMut::Device(y) => cuda::forward(&args.device(y.gpu())?, y)?,
    }
    Ok(())
}

/// The gradient of [`forward`] for the same `args`; `dy` `[m d]` of the format of x.
///
/// # Errors
/// As [`forward`], or if a gradient is asked for of what is not there, or there is too little memory.
pub fn backward<'a, 'y, 'g>(
    args: impl Into<Args<View<'a>>>,
    dy: impl Into<View<'y>>,
    grads: impl Into<Grads<ViewMut<'g>>>,
) -> Result<()> {
    let (args, dy, grads) = (args.into(), dy.into(), grads.into());
    check(&args)?;
    activation("dy", &dy, &args.x)?;
    activation("dx", &grads.dx, &args.x)?;
    if let Some(dz) = &grads.dz {
        activation("dz", dz, &args.x)?;
        CHECK.that(args.gate.is_some(), "dz", || "a gate to be given".into(), || "none".into())?;
    }
    for (name, m, of) in [("dweight", &grads.dweight, &args.weight), ("dbias", &grads.dbias, &args.bias)] {
        if let Some(m) = m {
            CHECK.flat(name, m, of.as_ref().map_or(0, elements))?;
        }
    }
    match dy {
        View::Host(dy) => cpu::backward(Isa::best(), &args.host()?, dy, grads.host()?)?,
        View::Device(dy) => cuda::backward(&args.device(dy.gpu())?, dy, grads.device(dy.gpu())?)?,
    }
    Ok(())
}

fn check(args: &Args<View<'_>>) -> error::Result<()> {
    let (d, groups) = (args.x.shape().1, args.groups);
    let divides = groups >= 1 && d.is_multiple_of(groups);
    CHECK.that(divides, "groups", || format!("a divisor of {d}"), || groups.to_string())?;
    if let Some(gate) = &args.gate {
        activation("z", &gate.z, &args.x)?;
    }
    for (name, m) in [("weight", &args.weight), ("bias", &args.bias)] {
        let Some(m) = m else { continue };
        let len = elements(m);
        CHECK.that(
            len == d || len == d / groups,
            name,
            || format!("{d} elements, or {}", d / groups),
            || len.to_string(),
        )?;
        CHECK.flat(name, m, len)?;
    }
    Ok(())
}

fn elements(m: &View<'_>) -> usize {
    m.shape().0 * m.shape().1
}

/// A matrix beside x: of its shape and format.
fn activation(name: &'static str, m: &impl Shaped, x: &View<'_>) -> error::Result<()> {
    CHECK.matrix(name, m, x.shape())?;
    CHECK.dtype(name, m, x.dtype())
}
