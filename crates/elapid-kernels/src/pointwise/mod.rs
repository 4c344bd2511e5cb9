//! Elementwise functions: y = f(x), y = f(x) z of two halves, y = α a + β b.
//!
//! A result depends only on its own elements, whatever the shape and the number of threads.

mod function;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::parallel::{grain, split};
use crate::{Rows, RowsMut};

pub use function::Function;

/// Elementary steps per element, for splitting work among threads.
const WORK: usize = 16;
/// Minimum steps for waking a thread.
const LEAST: usize = 1 << 16;

/// y (=) = f(x), both `[m d]`.
///
/// # Errors
/// If shapes differ.
pub fn forward(f: Function, x: Rows<'_>, y: RowsMut<'_>) -> Result<()> {
    Check("pointwise").shape("y", y.shape(), x.shape())?;
    let (m, d) = x.shape();
    split(m, grain(m, d * WORK, LEAST, 1), y, &|from, rows, y| naive::forward(f, x.slice(from, rows), y));
    Ok(())
}

/// dx (=) = f'(x) dy, all `[m d]`.
///
/// # Errors
/// If shapes differ.
pub fn backward(f: Function, x: Rows<'_>, dy: Rows<'_>, dx: RowsMut<'_>) -> Result<()> {
    let check = Check("pointwise");
    check.shape("dy", dy.shape(), x.shape())?;
    check.shape("dx", dx.shape(), x.shape())?;
    let (m, d) = x.shape();
    split(m, grain(m, d * WORK, LEAST, 1), dx, &|from, rows, dx| {
        naive::backward(f, x.slice(from, rows), dy.slice(from, rows), dx);
    });
    Ok(())
}

/// y (=) = f(x) z for xz `[m 2d]`, x its first half and z its second, y `[m d]`: gated linear units (Shazeer 2020).
///
/// # Errors
/// If shapes do not fit.
pub fn glu_forward(f: Function, xz: Rows<'_>, y: RowsMut<'_>) -> Result<()> {
    let (m, d) = y.shape();
    Check("pointwise").shape("xz", xz.shape(), (m, 2 * d))?;
    split(m, grain(m, d * WORK, LEAST, 1), y, &|from, rows, y| naive::glu_forward(f, xz.slice(from, rows), y));
    Ok(())
}

/// dxz `[m 2d]` (=) of [`glu_forward`], from xz and dy `[m d]`.
///
/// # Errors
/// If shapes do not fit.
pub fn glu_backward(f: Function, xz: Rows<'_>, dy: Rows<'_>, dxz: RowsMut<'_>) -> Result<()> {
    let check = Check("pointwise");
    let (m, d) = dy.shape();
    check.shape("xz", xz.shape(), (m, 2 * d))?;
    check.shape("dxz", dxz.shape(), (m, 2 * d))?;
    split(m, grain(m, d * WORK, LEAST, 1), dxz, &|from, rows, dxz| {
        naive::glu_backward(f, xz.slice(from, rows), dy.slice(from, rows), dxz);
    });
    Ok(())
}

/// y (=) = α a + β b, all `[m d]`; without b, α a. If α and β are 1 it is exactly the plain sum.
///
/// # Errors
/// If shapes differ.
pub fn add_scaled(alpha: f32, a: Rows<'_>, b: Option<(f32, Rows<'_>)>, y: RowsMut<'_>) -> Result<()> {
    let check = Check("pointwise");
    check.shape("y", y.shape(), a.shape())?;
    if let Some((_, b)) = b {
        check.shape("b", b.shape(), a.shape())?;
    }
    let (m, d) = a.shape();
    split(m, grain(m, d, LEAST, 1), y, &|from, rows, y| {
        naive::add_scaled(alpha, a.slice(from, rows), b.map(|(beta, b)| (beta, b.slice(from, rows))), y);
    });
    Ok(())
}
