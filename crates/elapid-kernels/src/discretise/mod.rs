//! A diagonal linear system in discrete time: what a [`diagonal_scan`](crate::diagonal_scan) multiplies its states and its inputs
//! by, from the parameters of n complex modes. With B `[n d]`:
//!
//! | [`Form`] | parameters | ā | b̄ |
//! |---|---|---|---|
//! | S5, zero-order hold | Re λ, Im λ, log Δ | exp(λΔ) | (ā - 1) / λ B |
//! | S5, bilinear | the same | (1 + λΔ/2) / (1 - λΔ/2) | Δ / (1 - λΔ/2) B |
//! | S5, exponential Euler | the same | exp(λΔ) | Δ B |
//! | LRU | log ν, log θ, log γ | exp(-ν + iθ) | γ B |
//!
//! S5 is Smith et al. 2023 (arXiv 2208.04933, section 3.2), Δ times `rescale` for inputs sampled at another rate; with `clip` Re λ
//! is at most -1e-4, without a gradient beyond. The LRU is Orvieto et al. 2023 (arXiv 2303.06349, sections 3.3 and 3.4).
//!
//! A complex array has all real parts, then all imaginary ones: B is `[(2 n) d]`. ā and b̄ are written as their conjugates, so that
//! the states of the scan are conjugated too, and the product behind it, Re(C x), is one matrix `[Re C, Im C]` times a row.
//!
//! Factors are computed in f64 on every device: (ā - 1) / λ and its derivative cancel where λΔ is small.

mod args;
mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::{DType, View, ViewMut, error};

use args::CHECK;
pub use args::{Args, Form, Grads};

/// The conjugates of ā `[2 n]` f32 (=) and b̄ `[(2 n) d]` (=), f32 or bf16.
///
/// # Errors
/// If shapes, dtypes or devices differ, or a device failed.
pub fn forward<'a, 'y>(
    form: Form,
    args: impl Into<Args<View<'a>>>,
    a: impl Into<ViewMut<'y>>,
    b: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let (args, a, b) = (args.into(), a.into(), b.into());
    let n = check(&args)?;
    CHECK.flat("a", &a, 2 * n)?;
    CHECK.matrix("b", &b, args.b.shape())?;
    match b {
        ViewMut::Host(b) => cpu::forward(form, &args.host()?, CHECK.host_flat_mut("a", a)?, b),
        ViewMut::Device(b) => {
            let gpu = b.gpu();
            cuda::forward(form, &args.device(gpu)?, CHECK.device_mut("a", a, gpu)?, b)?;
        }
    }
    Ok(())
}

/// The gradients of parameters and B, from those of ā `[2 n]` f32 and b̄ `[(2 n) d]`, f32 or bf16, as [`forward`] wrote them. The
/// gradient of a complex number has the derivative with respect to its real part, and that with respect to its imaginary part.
///
/// # Errors
/// As [`forward`].
pub fn backward<'a, 'y, 'g>(
    form: Form,
    args: impl Into<Args<View<'a>>>,
    da: impl Into<View<'y>>,
    db: impl Into<View<'y>>,
    grads: impl Into<Grads<ViewMut<'g>>>,
) -> Result<()> {
    let (args, da, db, grads) = (args.into(), da.into(), db.into(), grads.into());
    let n = check(&args)?;
    CHECK.flat("da", &da, 2 * n)?;
    CHECK.matrix("db", &db, args.b.shape())?;
    for d in &grads.params {
        CHECK.flat("dparams", d, n)?;
    }
    CHECK.matrix("dB", &grads.db, args.b.shape())?;
    CHECK.dtype("dB", &grads.db, DType::F32)?;
    match db {
        View::Host(db) => {
            let grads = grads.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))?;
            cpu::backward(form, &args.host()?, CHECK.host_flat("da", da)?, db, grads);
        }
        View::Device(db) => {
            let gpu = db.gpu();
            let to = |name, m| CHECK.device_mut(name, m, gpu);
            cuda::backward(form, &args.device(gpu)?, CHECK.device("da", da, gpu)?, db, grads.map(to, to)?)?;
        }
    }
    Ok(())
}

/// The number of modes.
fn check(args: &Args<View<'_>>) -> error::Result<usize> {
    let rows = args.b.shape().0;
    CHECK.that(rows.is_multiple_of(2), "B", || "real rows, then as many imaginary ones".into(), || rows.to_string())?;
    CHECK.dtype("B", &args.b, DType::F32)?;
    for x in &args.params {
        CHECK.flat("params", x, rows / 2)?;
    }
    Ok(rows / 2)
}
