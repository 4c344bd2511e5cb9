//! Layer normalisation (Ba et al. 2016, arXiv 1607.06450, equation 4): y = (x - mean) / sqrt(variance + eps) · weight + bias.
//!
//! A row's result depends only on the row.

pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::parallel::{grain, split};
use crate::{Rows, RowsMut};

/// y (=) and the statistics `[m 2]` (=) that the backward reads: mean and 1 / sqrt(variance + eps).
///
/// `x`, `y` `[m d]`, `weight`, `bias` `[d]`.
///
/// # Errors
/// If shapes differ.
pub fn forward(
    x: Rows<'_>,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    y: RowsMut<'_>,
    statistics: RowsMut<'_>,
) -> Result<()> {
    let check = Check("layer_norm");
    let (m, d) = x.shape();
    check.shape("y", y.shape(), (m, d))?;
    check.shape("statistics", statistics.shape(), (m, 2))?;
    check.len("weight", weight.map_or(d, <[f32]>::len), d)?;
    check.len("bias", bias.map_or(d, <[f32]>::len), d)?;
    split(m, grain(m, 4 * d, 1 << 16, 1), (y, statistics), &|from, rows, (y, statistics)| {
        naive::forward(x.slice(from, rows), weight, bias, eps, y, statistics);
    });
    Ok(())
}

/// dx `[m d]` (=), dweight `[d]` (+=), dbias `[d]` (+=) of [`forward`], from x, its statistics and dy `[m d]`.
///
/// # Errors
/// If shapes differ.
pub fn backward(
    x: Rows<'_>,
    weight: Option<&[f32]>,
    statistics: Rows<'_>,
    dy: Rows<'_>,
    dx: RowsMut<'_>,
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) -> Result<()> {
    let check = Check("layer_norm");
    let (m, d) = x.shape();
    check.shape("dy", dy.shape(), (m, d))?;
    check.shape("dx", dx.shape(), (m, d))?;
    check.shape("statistics", statistics.shape(), (m, 2))?;
    check.len("weight", weight.map_or(d, <[f32]>::len), d)?;
    check.len("dweight", dweight.as_ref().map_or(d, |dweight| dweight.len()), d)?;
    check.len("dbias", dbias.as_ref().map_or(d, |dbias| dbias.len()), d)?;
    naive::backward(x, weight, statistics, dy, dx, dweight, dbias);
    Ok(())
}
