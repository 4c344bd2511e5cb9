//! Rotary positions (Su et al. 2021, arXiv 2104.09864, equation 34): pairs of columns of each head are rotated by an angle
//! proportional to the position, so that products of queries and keys depend only on their distance.
//!
//! The gradient is the inverse rotation.

mod args;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::parallel::{grain, split};
use crate::{Rows, RowsMut};

pub use args::{Args, Pairs};

/// y `[m h·dim]` (=): x rotated, or rotated back if `inverse`.
///
/// # Errors
/// If shapes do not fit.
pub fn forward(args: &Args<'_>, inverse: bool, x: Rows<'_>, y: RowsMut<'_>) -> Result<()> {
    let check = Check("rotate");
    let (m, d) = x.shape();
    check.shape("y", y.shape(), (m, d))?;
    check.len("positions", args.positions.len(), m)?;
    let whole = args.dim > 0 && d.is_multiple_of(args.dim);
    check.that(whole, "dim", || format!("a divisor of {d} columns"), || args.dim.to_string())?;
    let most = args.dim / 2;
    check.that(
        args.frequencies.len() <= most,
        "frequencies",
        || format!("at most {most}"),
        || args.frequencies.len().to_string(),
    )?;
    split(m, grain(m, 4 * d, 1 << 16, 1), y, &|from, rows, y| {
        let args = Args { positions: &args.positions[from..from + rows], ..*args };
        naive::forward(&args, inverse, x.slice(from, rows), y);
    });
    Ok(())
}
