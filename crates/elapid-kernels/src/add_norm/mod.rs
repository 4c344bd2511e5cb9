//! Residual add and RMSNorm in one pass (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4):
//!
//! s = x + residual, rstd = 1 / sqrt(mean(s²) + eps), y = s · rstd · weight.
//!
//! The sum continues as the residual stream, so it is an output too. Backward, derived in `docs/math/add_norm.md`: with ŝ =
//! s · rstd and g = dy · weight, ds = rstd (g - ŝ mean(g ŝ)) + dsum, dweight += Σ_rows dy ŝ.
//!
//! A row's result depends only on the row, not on the number of rows or threads.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::{self, Check};
use crate::view::Shaped;
use crate::{DType, Isa, View, ViewMut};

const CHECK: Check = Check("add_norm");

/// Adds the residual and normalises.
///
/// `x` `[m d]`, `residual` `[m d]` f32, `weight` `[d]` f32; `y` `[m d]` (=) normalised, of the format of x, `sum` `[m d]` f32
/// (=) x + residual, `rstd` `[m]` f32 (=).
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'a>(
    x: impl Into<View<'a>>,
    residual: Option<View<'a>>,
    weight: impl Into<View<'a>>,
    eps: f32,
    y: impl Into<ViewMut<'a>>,
    sum: impl Into<ViewMut<'a>>,
    rstd: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (x, weight, y, sum, rstd) = (x.into(), weight.into(), y.into(), sum.into(), rstd.into());
    let (m, d) = x.shape();
    if let Some(residual) = &residual {
        stream("residual", residual, (m, d))?;
    }
    CHECK.flat("weight", &weight, d)?;
    CHECK.matrix("y", &y, (m, d))?;
    CHECK.dtype("y", &y, x.dtype())?;
    stream("sum", &sum, (m, d))?;
    CHECK.flat("rstd", &rstd, m)?;
    match y {
        ViewMut::Host(y) => {
            let (x, weight) = (CHECK.host("x", x)?, CHECK.host("weight", weight)?.as_slice());
            let residual = residual.map(|residual| CHECK.host("residual", residual)).transpose()?;
            let (sum, rstd) = (CHECK.host_mut("sum", sum)?, CHECK.host_mut("rstd", rstd)?.into_slice());
            cpu::forward(Isa::best(), x, residual, weight, eps, y, sum, rstd);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            let (x, weight) = (CHECK.device("x", x, gpu)?, CHECK.device("weight", weight, gpu)?);
            let residual = residual.map(|residual| CHECK.device("residual", residual, gpu)).transpose()?;
            let (sum, rstd) = (CHECK.device_mut("sum", sum, gpu)?, CHECK.device_mut("rstd", rstd, gpu)?);
            cuda::forward(x, residual, weight, eps, y, sum, rstd)?;
        }
    }
    Ok(())
}

/// Recomputes the y of [`forward`] bit for bit from its `sum` and `rstd`.
///
/// `sum` `[m d]`, `weight` `[d]` and `rstd` `[m]` f32, `y` `[m d]` (=) of the format that it had.
///
/// # Errors
/// As [`forward`].
pub fn scale<'a>(
    sum: impl Into<View<'a>>,
    weight: impl Into<View<'a>>,
    rstd: impl Into<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (sum, weight, rstd, y) = (sum.into(), weight.into(), rstd.into(), y.into());
    check_saved(&sum, &weight, &rstd)?;
    CHECK.matrix("y", &y, sum.shape())?;
    match y {
        ViewMut::Host(y) => {
            let (weight, rstd) = (CHECK.host("weight", weight)?.as_slice(), CHECK.host("rstd", rstd)?.as_slice());
            cpu::scale(Isa::best(), CHECK.host("sum", sum)?, weight, rstd, y);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            let (weight, rstd) = (CHECK.device("weight", weight, gpu)?, CHECK.device("rstd", rstd, gpu)?);
            cuda::scale(CHECK.device("sum", sum, gpu)?, weight, rstd, y)?;
        }
    }
    Ok(())
}

/// The gradient of [`forward`], from its `sum` and `rstd`.
///
/// `sum` `[m d]`, `weight` `[d]` and `rstd` `[m]` f32, `dy` `[m d]`; `dsum` `[m d]` f32 is the gradient that arrives at `sum`
/// from later layers. `dx` `[m d]` (=) of the format of dy is the gradient of both `x` and `residual`; `dresidual` `[m d]` f32
/// (=) is the same once more, for callers whose two gradients cannot share memory; `dweight` `[d]` f32 (+=).
///
/// # Errors
/// As [`forward`], or if there is too little memory.
pub fn backward<'a>(
    sum: impl Into<View<'a>>,
    weight: impl Into<View<'a>>,
    rstd: impl Into<View<'a>>,
    dy: impl Into<View<'a>>,
    dsum: Option<View<'a>>,
    dx: impl Into<ViewMut<'a>>,
    dresidual: Option<ViewMut<'a>>,
    dweight: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (sum, weight, rstd, dy, dx) = (sum.into(), weight.into(), rstd.into(), dy.into(), dx.into());
    let (shape, dweight) = (sum.shape(), dweight.into());
    check_saved(&sum, &weight, &rstd)?;
    CHECK.matrix("dy", &dy, shape)?;
    if let Some(dsum) = &dsum {
        stream("dsum", dsum, shape)?;
    }
    CHECK.matrix("dx", &dx, shape)?;
    CHECK.dtype("dx", &dx, dy.dtype())?;
    if let Some(dresidual) = &dresidual {
        stream("dresidual", dresidual, shape)?;
    }
    CHECK.flat("dweight", &dweight, shape.1)?;
    match dx {
        ViewMut::Host(dx) => {
            let (weight, rstd) = (CHECK.host("weight", weight)?.as_slice(), CHECK.host("rstd", rstd)?.as_slice());
            let (sum, dy) = (CHECK.host("sum", sum)?, CHECK.host("dy", dy)?);
            let dsum = dsum.map(|dsum| CHECK.host("dsum", dsum)).transpose()?;
            let dresidual = dresidual.map(|m| CHECK.host_mut("dresidual", m)).transpose()?;
            let dweight = CHECK.host_mut("dweight", dweight)?.into_slice();
            cpu::backward(Isa::best(), sum, weight, rstd, dy, dsum, (dx, dresidual), dweight);
        }
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            let (weight, rstd) = (CHECK.device("weight", weight, gpu)?, CHECK.device("rstd", rstd, gpu)?);
            let (sum, dy) = (CHECK.device("sum", sum, gpu)?, CHECK.device("dy", dy, gpu)?);
            let dsum = dsum.map(|dsum| CHECK.device("dsum", dsum, gpu)).transpose()?;
            let dresidual = dresidual.map(|m| CHECK.device_mut("dresidual", m, gpu)).transpose()?;
            let dweight = CHECK.device_mut("dweight", dweight, gpu)?;
            cuda::backward(sum, weight, rstd, dy, dsum, dx, dresidual, dweight)?;
        }
    }
    Ok(())
}

/// The residual stream is f32, whatever the format of activations.
fn stream(name: &'static str, m: &impl Shaped, shape: (usize, usize)) -> error::Result<()> {
    CHECK.matrix(name, m, shape)?;
    CHECK.dtype(name, m, DType::F32)
}

fn check_saved(sum: &View<'_>, weight: &View<'_>, rstd: &View<'_>) -> error::Result<()> {
    CHECK.dtype("sum", sum, DType::F32)?;
    CHECK.flat("weight", weight, sum.shape().1)?;
    CHECK.flat("rstd", rstd, sum.shape().0)
}
