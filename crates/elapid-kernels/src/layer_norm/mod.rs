//! Residual add and layer normalisation in one pass (Ba et al. 2016, arXiv 1607.06450, equation 4):
//!
//! s = keep r + scale x, y = (s - mean) rstd · weight + bias with rstd = 1 / sqrt(variance + eps).
//!
//! The sum continues as the residual stream, so it is an output too. Backward: with ŝ = (s - mean) rstd and g = dy · weight,
//! ds = rstd (g - mean(g) - ŝ mean(g ŝ)) + dsum, dx = scale ds, dr = keep ds, dweight += Σ_rows dy ŝ, dbias += Σ_rows dy.
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
use crate::{DType, View, ViewMut};

use args::CHECK;
pub use args::{Args, Grads, Residual, Saved};

/// Adds the residual and normalises.
///
/// `y` `[m d]` (=) of the format of x, `sum` `[m d]` f32 (=), there if and only if there is a residual, and `statistics`
/// `[m 2]` f32 (=), which the backward reads: mean and rstd of each row.
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'y>(
    args: Args<View<'_>>,
    y: impl Into<ViewMut<'y>>,
    sum: Option<ViewMut<'y>>,
    statistics: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let (y, statistics) = (y.into(), statistics.into());
    let (m, d) = args.x.shape();
    CHECK.matrix("y", &y, (m, d))?;
    CHECK.dtype("y", &y, args.x.dtype())?;
    let both = sum.is_some() == args.residual.is_some();
    CHECK.that(both, "sum", || "one beside a residual, else none".into(), || "the other".into())?;
    if let Some(Residual { r, .. }) = &args.residual {
        stream("residual", r, (m, d))?;
    }
    if let Some(sum) = &sum {
        stream("sum", sum, (m, d))?;
    }
    CHECK.flat("statistics", &statistics, 2 * m)?;
    for (name, v) in [("weight", &args.weight), ("bias", &args.bias)] {
        if let Some(v) = v {
            CHECK.flat(name, v, d)?;
        }
    }
    match y {
        ViewMut::Host(y) => {
            let sum = sum.map(|sum| CHECK.host_mut("sum", sum)).transpose()?;
            cpu::forward(&args.host()?, y, sum, CHECK.host_flat_mut("statistics", statistics)?);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            let sum = sum.map(|sum| CHECK.device_mut("sum", sum, gpu)).transpose()?;
            cuda::forward(&args.device(gpu)?, y, sum, CHECK.device_mut("statistics", statistics, gpu)?)?;
        }
    }
    Ok(())
}

/// The gradient of [`forward`].
///
/// `dy` `[m d]`; `dsum` `[m d]` f32 is the gradient that arrives at the sum from later layers.
///
/// # Errors
/// As [`forward`], or if there is too little memory.
pub fn backward<'a>(
    saved: Saved<View<'_>>,
    dy: impl Into<View<'a>>,
    dsum: Option<View<'a>>,
    grads: Grads<ViewMut<'_>>,
) -> Result<()> {
    let dy = dy.into();
    let (m, d) = saved.s.shape();
    if saved.s.dtype() != DType::F32 {
        CHECK.dtype("s", &saved.s, dy.dtype())?;
    }
    CHECK.matrix("dy", &dy, (m, d))?;
    CHECK.flat("statistics", &saved.statistics, 2 * m)?;
    if let Some(weight) = &saved.weight {
        CHECK.flat("weight", weight, d)?;
    }
    if let Some(dsum) = &dsum {
        stream("dsum", dsum, (m, d))?;
    }
    CHECK.matrix("dx", &grads.dx, (m, d))?;
    CHECK.dtype("dx", &grads.dx, dy.dtype())?;
    if let Some(dresidual) = &grads.dresidual {
        stream("dresidual", dresidual, (m, d))?;
    }
    for (name, v) in [("dweight", &grads.dweight), ("dbias", &grads.dbias)] {
        if let Some(v) = v {
            CHECK.flat(name, v, d)?;
        }
    }
    match dy {
        View::Host(dy) => {
            let dsum = dsum.map(|dsum| CHECK.host("dsum", dsum)).transpose()?;
            naive::backward(&saved.host()?, dy, dsum, grads.host()?);
        }
        View::Device(dy) => {
            let gpu = dy.gpu();
            let dsum = dsum.map(|dsum| CHECK.device("dsum", dsum, gpu)).transpose()?;
            cuda::backward(&saved.device(gpu)?, dy, dsum, grads.device(gpu)?)?;
        }
    }
    Ok(())
}

/// The residual stream is f32, whatever the format of activations.
fn stream(name: &'static str, m: &impl Shaped, shape: (usize, usize)) -> error::Result<()> {
    CHECK.matrix(name, m, shape)?;
    CHECK.dtype(name, m, DType::F32)
}
