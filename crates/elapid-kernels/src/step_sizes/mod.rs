//! Step sizes and decays of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060), of each head and position: Δ = softplus(x + bias), between
//! limits, and ΔA, the logarithm of the decay, with A = -exp(A_log).

mod args;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::view::Shaped;
use crate::{View, ViewMut};

use args::CHECK;
pub use args::{Args, Grads};

/// Δ `[m h]` f32 (=) and ΔA `[m h]` f32 (=).
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'a>(args: Args<View<'a>>, delta: impl Into<ViewMut<'a>>, decay: impl Into<ViewMut<'a>>) -> Result<()> {
    let (delta, decay) = (delta.into(), decay.into());
    check(&args)?;
    each(&[("delta", &delta), ("decay", &decay)], args.x.shape())?;
    match delta {
        ViewMut::Host(delta) => {
            naive::forward(host(args)?, delta, CHECK.host_mut("decay", decay)?);
            Ok(())
        }
        ViewMut::Device(delta) => {
            let gpu = delta.gpu();
            let on = |name, m| CHECK.device(name, m, gpu);
            let Args { x, bias, a_log, limits } = args;
            let args = Args { x: on("x", x)?, bias: on("bias", bias)?, a_log: on("a_log", a_log)?, limits };
            cuda::forward(args, delta, CHECK.device_mut("decay", decay, gpu)?)
        }
    }
}

/// The gradients of the inputs from those of Δ and ΔA, both `[m h]` f32.
///
/// # Errors
/// As [`forward`].
pub fn backward<'a>(
    args: Args<View<'a>>,
    ddelta: impl Into<View<'a>>,
    ddecay: impl Into<View<'a>>,
    grads: Grads<ViewMut<'a>>,
) -> Result<()> {
    let (ddelta, ddecay) = (ddelta.into(), ddecay.into());
    let Grads { dx, dbias, da_log } = grads;
    check(&args)?;
    each(&[("ddelta", &ddelta), ("ddecay", &ddecay)], args.x.shape())?;
    CHECK.matrix("dx", &dx, args.x.shape())?;
    CHECK.dtype("dx", &dx, args.x.dtype())?;
    for (name, m) in [("dbias", &dbias), ("da_log", &da_log)] {
        if let Some(m) = m {
            CHECK.flat(name, m, args.x.shape().1)?;
        }
    }
    match dx {
        ViewMut::Host(dx) => {
            let dbias = dbias.map(|m| CHECK.host_flat_mut("dbias", m)).transpose()?;
            let da_log = da_log.map(|m| CHECK.host_flat_mut("da_log", m)).transpose()?;
            let (ddelta, ddecay) = (CHECK.host("ddelta", ddelta)?, CHECK.host("ddecay", ddecay)?);
            naive::backward(host(args)?, ddelta, ddecay, dx, dbias, da_log);
            Ok(())
        }
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            let on = |name, m| CHECK.device(name, m, gpu);
            let to = |name, m: Option<ViewMut<'a>>| m.map(|m| CHECK.device_mut(name, m, gpu)).transpose();
            let Args { x, bias, a_log, limits } = args;
            let args = Args { x: on("x", x)?, bias: on("bias", bias)?, a_log: on("a_log", a_log)?, limits };
            let grads = Grads { dx, dbias: to("dbias", dbias)?, da_log: to("da_log", da_log)? };
            cuda::backward(args, on("ddelta", ddelta)?, on("ddecay", ddecay)?, grads)
        }
    }
}

fn host<'a>(args: Args<View<'a>>) -> error::Result<Args<crate::Rows<'a>>> {
    Ok(Args {
        x: CHECK.host("x", args.x)?,
        bias: CHECK.host_flat("bias", args.bias)?,
        a_log: CHECK.host_flat("a_log", args.a_log)?,
        limits: args.limits,
    })
}

fn check(args: &Args<View<'_>>) -> error::Result<()> {
    let h = args.x.shape().1;
    CHECK.flat("bias", &args.bias, h)?;
    CHECK.flat("a_log", &args.a_log, h)?;
    let (low, high) = args.limits;
    CHECK.that(low <= high, "limits", || "the smaller one first".into(), || format!("{low} and {high}"))
}

/// Matrices of f32 in a shape.
fn each(all: &[(&'static str, &dyn Shaped)], shape: (usize, usize)) -> error::Result<()> {
    for (name, m) in all {
        let got = m.shape();
        CHECK.that(got == shape, name, || format!("{shape:?}"), || format!("{got:?}"))?;
        CHECK.that(m.dtype() == crate::DType::F32, name, || "f32".into(), || m.dtype().to_string())?;
    }
    Ok(())
}
