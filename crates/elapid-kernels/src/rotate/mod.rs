//! Rotary positions (Su et al. 2021, arXiv 2104.09864, equation 34): pairs of columns of each head are rotated by an angle
//! proportional to the position, so that products of queries and keys depend only on their distance.
//!
//! Pairs may grow or shrink with the position too (xPos, Sun et al. 2022, arXiv 2212.10554): queries by ζ^t and keys by ζ^-s,
//! so that products fall with the distance.
//!
//! The gradient is the inverse rotation, with the same factors.

mod args;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::parallel::{grain, split};
use crate::view::Shaped;
use crate::{Rows, View, ViewMut};

use args::CHECK;
pub use args::{Args, Pairs};

/// y `[m h·dim]` (=) of the format of x: x rotated, or rotated back if `inverse`.
///
/// # Errors
/// If shapes, formats or devices do not fit, or a device failed.
pub fn forward<'f, 'a, 'x, 'y>(
    args: impl Into<Args<'f, View<'a>>>,
    inverse: bool,
    x: impl Into<View<'x>>,
    y: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let (args, x, y) = (args.into(), x.into(), y.into());
    CHECK.matrix("y", &y, x.shape())?;
    CHECK.dtype("y", &y, x.dtype())?;
    check(&args, x.shape())?;
    match y {
        ViewMut::Host(mut y) => {
            y.copy_from(CHECK.host("x", x)?);
            on_host(&args.host()?, inverse, y);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::forward(&args.device(gpu)?, inverse, Some(CHECK.device("x", x, gpu)?), y)?;
        }
    }
    Ok(())
}

/// x `[m h·dim]` rotated in place, or rotated back if `inverse`: what [`forward`] gives, bit for bit.
///
/// # Errors
/// As [`forward`].
pub fn in_place<'f, 'a, 'y>(
    args: impl Into<Args<'f, View<'a>>>,
    inverse: bool,
    x: impl Into<ViewMut<'y>>,
) -> Result<()> {
    let (args, x) = (args.into(), x.into());
    check(&args, x.shape())?;
    match x {
        ViewMut::Host(x) => on_host(&args.host()?, inverse, x),
        ViewMut::Device(x) => cuda::forward(&args.device(x.gpu())?, inverse, None, x)?,
    }
    Ok(())
}

fn check(args: &Args<'_, View<'_>>, (m, d): (usize, usize)) -> error::Result<()> {
    CHECK.len("positions", args.positions.len(), m)?;
    let whole = args.dim > 0 && d.is_multiple_of(args.dim);
    CHECK.that(whole, "dim", || format!("a divisor of {d} columns"), || args.dim.to_string())?;
    let (most, got) = (args.dim / 2, args.frequencies.len());
    CHECK.that(got <= most, "frequencies", || format!("at most {most}"), || got.to_string())?;
    let grown = args.growth.len();
    CHECK.that(grown == 0 || grown == got, "growth", || format!("none or {got}"), || grown.to_string())
}

fn on_host(args: &Args<'_, Rows<'_>>, inverse: bool, y: crate::RowsMut<'_>) {
    let (m, d) = y.shape();
    split(m, grain(m, 4 * d, 1 << 16, 1), y, &|from, rows, y| {
        let args = Args { positions: &args.positions[from..from + rows], ..*args };
        naive::in_place(&args, inverse, y);
    });
}
