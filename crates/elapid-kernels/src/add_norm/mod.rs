//! Residual add and RMSNorm in one pass (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4):
//!
//! s = x + residual, rstd = 1 / sqrt(mean(s²) + eps), y = s · rstd · weight.
//!
//! The sum continues as the residual stream, so it is an output too. Backward, derived in `docs/math/add_norm.md`: with ŝ =
//! s · rstd and g = dy · weight, ds = rstd (g - ŝ mean(g ŝ)) + dsum, dweight += Σ_rows dy ŝ.
//!
//! A row's result depends only on the row, not on the number of rows or threads.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::{Isa, Rows, RowsMut};

/// Adds the residual and normalises.
///
/// `x` and `residual` `[m d]`, `weight` `[d]`; `y` `[m d]` (=) normalised, `sum` `[m d]` (=) x + residual, `rstd` `[m]`
/// (=).
///
/// # Errors
/// If shapes differ.
pub fn forward(
    x: Rows<'_>,
    residual: Option<Rows<'_>>,
    weight: &[f32],
    eps: f32,
    y: RowsMut<'_>,
    sum: RowsMut<'_>,
    rstd: &mut [f32],
) -> Result<()> {
    let check = Check("add_norm");
    if let Some(residual) = residual {
        check.shape("residual", residual.shape(), x.shape())?;
    }
    check.len("weight", weight.len(), x.cols())?;
    check.shape("y", y.shape(), x.shape())?;
    check.shape("sum", sum.shape(), x.shape())?;
    check.len("rstd", rstd.len(), x.rows())?;
    cpu::forward(Isa::best(), x, residual, weight, eps, y, sum, rstd);
    Ok(())
}

/// Recomputes the y of [`forward`] bit for bit from its `sum` and `rstd`.
///
/// `sum` `[m d]`, `weight` `[d]`, `rstd` `[m]`, `y` `[m d]` (=).
///
/// # Errors
/// If shapes differ.
pub fn scale(sum: Rows<'_>, weight: &[f32], rstd: &[f32], y: RowsMut<'_>) -> Result<()> {
    let check = Check("add_norm");
    check.len("weight", weight.len(), sum.cols())?;
    check.len("rstd", rstd.len(), sum.rows())?;
    check.shape("y", y.shape(), sum.shape())?;
    cpu::scale(Isa::best(), sum, weight, rstd, y);
    Ok(())
}

/// The gradient of [`forward`], from its `sum` and `rstd`.
///
/// `sum`, `dy` `[m d]`, `weight` `[d]`, `rstd` `[m]`; `dsum` `[m d]` is the gradient that arrives at `sum` from later
/// layers. `dx` `[m d]` (=) is the gradient of both `x` and `residual`; `dweight` `[d]` (+=).
///
/// # Errors
/// If shapes differ.
pub fn backward(
    sum: Rows<'_>,
    weight: &[f32],
    rstd: &[f32],
    dy: Rows<'_>,
    dsum: Option<Rows<'_>>,
    dx: RowsMut<'_>,
    dweight: &mut [f32],
) -> Result<()> {
    let check = Check("add_norm");
    check.len("weight", weight.len(), sum.cols())?;
    check.len("rstd", rstd.len(), sum.rows())?;
    check.shape("dy", dy.shape(), sum.shape())?;
    if let Some(dsum) = dsum {
        check.shape("dsum", dsum.shape(), sum.shape())?;
    }
    check.shape("dx", dx.shape(), sum.shape())?;
    check.len("dweight", dweight.len(), sum.cols())?;
    cpu::backward(Isa::best(), sum, weight, rstd, dy, dsum, dx, dweight);
    Ok(())
}
