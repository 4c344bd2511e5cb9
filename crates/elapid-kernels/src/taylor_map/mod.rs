//! The feature map of Based (Arora et al. 2024, arXiv 2402.18668, section 4.1), head by head: φ(q)ᵀφ(k) = 1 + s + s²/2, the
//! second-order Taylor expansion of exp(s), with s = qᵀk / √f for heads of f columns.
//!
//! φ(x) has 1, then xᵢ / f^¼ for each i, then xᵢxⱼ / √f for i < j and xᵢ² / √(2f), in the order (0, 0), (0, 1), …, (0, f-1),
//! (1, 1), …: each product once, where the paper has both xᵢxⱼ and xⱼxᵢ, 153 features instead of 273 for f = 16.

pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
mod features;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::{self, Check};
use crate::parallel::{grain, split};
use crate::view::Shaped;
use crate::{View, ViewMut};

pub use features::features;

const CHECK: Check = Check("taylor_map");

/// y `[m heads·features(f)]` (=) of x `[m heads·f]`, of one format.
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'a>(f: usize, x: impl Into<View<'a>>, y: impl Into<ViewMut<'a>>) -> Result<()> {
    let (x, y) = (x.into(), y.into());
    check(f, &x, &y)?;
    match y {
        ViewMut::Host(y) => {
            let (x, (m, d)) = (CHECK.host("x", x)?, y.shape());
            split(m, grain(m, d, 1 << 16, 1), y, &|from, rows, y| naive::forward(f, x.slice(from, rows), y));
            Ok(())
        }
        ViewMut::Device(y) => cuda::forward(f, CHECK.device("x", x, y.gpu())?, y),
    }
}

/// dx (=) of dy, shapes as in [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward<'a>(
    f: usize,
    x: impl Into<View<'a>>,
    dy: impl Into<View<'a>>,
    dx: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (x, dy, dx) = (x.into(), dy.into(), dx.into());
    check(f, &x, &dy)?;
    CHECK.matrix("dx", &dx, x.shape())?;
    CHECK.dtype("dx", &dx, x.dtype())?;
    match dx {
        ViewMut::Host(dx) => {
            let (x, dy) = (CHECK.host("x", x)?, CHECK.host("dy", dy)?);
            let (m, d) = dy.shape();
            split(m, grain(m, 2 * d, 1 << 16, 1), dx, &|from, rows, dx| {
                naive::backward(f, x.slice(from, rows), dy.slice(from, rows), dx);
            });
            Ok(())
        }
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            cuda::backward(f, CHECK.device("x", x, gpu)?, CHECK.device("dy", dy, gpu)?, dx)
        }
    }
}

fn check(f: usize, x: &View<'_>, y: &impl Shaped) -> error::Result<()> {
    let (m, cols) = x.shape();
    let whole = (1..=64).contains(&f) && cols.is_multiple_of(f);
    CHECK.that(whole, "x", || format!("heads of {f} columns, 1 to 64"), || cols.to_string())?;
    CHECK.matrix("y", y, (m, cols / f * features(f)))?;
    CHECK.dtype("y", y, x.dtype())
}
