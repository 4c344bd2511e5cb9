//! Mean squared error over the targets that count: L = Σ (y - t)² / count, where NaN is no target. dy = 2 (y - t) / count.

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
use crate::{View, ViewMut};

const CHECK: Check = Check("squared_error");

/// `mean` `[1]` (=) and `count` `[1]` (=), f32: the mean over the targets, 0 without any, and their number, at least 1.
///
/// `y` `[m n]`, `targets` `[m n]` f32 without gaps; NaN is ignored. On every device squares are summed in f64, in an order
/// that depends only on their number.
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed or has too little memory.
pub fn forward<'a, 'm>(
    y: impl Into<View<'a>>,
    targets: impl Into<View<'a>>,
    mean: impl Into<ViewMut<'m>>,
    count: impl Into<ViewMut<'m>>,
) -> Result<()> {
    let (y, targets, mean, count) = (y.into(), targets.into(), mean.into(), count.into());
    check(&y, &targets)?;
    CHECK.flat("mean", &mean, 1)?;
    CHECK.flat("count", &count, 1)?;
    match mean {
        ViewMut::Host(mean) => {
            let targets = CHECK.host_flat("targets", targets)?;
            let (mean, count) = (mean.into_slice(), CHECK.host_flat_mut("count", count)?);
            (mean[0], count[0]) = cpu::forward(CHECK.host("y", y)?, targets);
        }
        ViewMut::Device(mean) => {
            let gpu = mean.gpu();
            let (y, targets) = (CHECK.device("y", y, gpu)?, CHECK.device("targets", targets, gpu)?);
            cuda::forward(y, targets, mean, CHECK.device_mut("count", count, gpu)?)?;
        }
    }
    Ok(())
}

/// The gradient of `scale` times the mean of [`forward`], from its `count`: `dy` `[m n]` (=) of the format of y, 0 where
/// there is no target.
///
/// # Errors
/// As [`forward`].
pub fn backward<'a, 'd>(
    y: impl Into<View<'a>>,
    targets: impl Into<View<'a>>,
    count: impl Into<View<'a>>,
    scale: f32,
    dy: impl Into<ViewMut<'d>>,
) -> Result<()> {
    let (y, targets, count, dy) = (y.into(), targets.into(), count.into(), dy.into());
    check(&y, &targets)?;
    CHECK.flat("count", &count, 1)?;
    CHECK.matrix("dy", &dy, y.shape())?;
    CHECK.dtype("dy", &dy, y.dtype())?;
    match dy {
        ViewMut::Host(dy) => {
            let (targets, count) = (CHECK.host_flat("targets", targets)?, CHECK.host_flat("count", count)?);
            naive::backward(CHECK.host("y", y)?, targets, count[0], scale, dy);
        }
        ViewMut::Device(dy) => {
            let gpu = dy.gpu();
            let (y, targets) = (CHECK.device("y", y, gpu)?, CHECK.device("targets", targets, gpu)?);
            cuda::backward(y, targets, CHECK.device("count", count, gpu)?, scale, dy)?;
        }
    }
    Ok(())
}

fn check(y: &View<'_>, targets: &View<'_>) -> error::Result<()> {
    let (m, n) = y.shape();
    CHECK.flat("targets", targets, CHECK.product("y", &[m, n])?)
}
