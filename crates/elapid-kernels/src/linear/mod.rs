//! The linear map y = x Wᵀ + bias, with W `[n k]` row-major as in PyTorch, and its gradients: dx = dy W (or += for an input
//! with other uses), dW += dyᵀ x, dbias += Σ_rows dy.
//!
//! [`forward`] is for training: the fastest product available. [`forward_invariant`] is for inference: every element is
//! summed in an order that depends only on `k`, so a row alone equals the row in a batch, and prefill equals decoding, bit
//! for bit.

pub(crate) mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub(crate) mod invariant;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::{Isa, Rows, RowsMut};

/// y = x Wᵀ + bias. The order of sums may depend on the shapes, not on the number of threads.
///
/// `x` `[m k]`, `w` `[n k]`, `bias` `[n]`, `y` `[m n]` (=).
///
/// # Errors
/// If shapes differ.
pub fn forward(x: Rows<'_>, w: Rows<'_>, bias: Option<&[f32]>, y: RowsMut<'_>) -> Result<()> {
    check_forward(x, w, bias, &y)?;
    cpu::forward(x, w, bias, y);
    Ok(())
}

/// y = x Wᵀ + bias, each element summed in an order that depends only on `k` and the instruction set.
///
/// `x` `[m k]`, `w` `[n k]`, `bias` `[n]`, `y` `[m n]` (=).
///
/// # Errors
/// If shapes differ.
pub fn forward_invariant(x: Rows<'_>, w: Rows<'_>, bias: Option<&[f32]>, y: RowsMut<'_>) -> Result<()> {
    check_forward(x, w, bias, &y)?;
    invariant::forward(Isa::best(), x, w, bias, y);
    Ok(())
}

fn check_forward(x: Rows<'_>, w: Rows<'_>, bias: Option<&[f32]>, y: &RowsMut<'_>) -> Result<()> {
    let check = Check("linear");
    check.shape("w", w.shape(), (w.rows(), x.cols()))?;
    if let Some(bias) = bias {
        check.len("bias", bias.len(), w.rows())?;
    }
    check.shape("y", y.shape(), (x.rows(), w.rows()))
}

/// dx = dy W, or dx += dy W if it `adds`.
///
/// `dy` `[m n]`, `w` `[n k]`, `dx` `[m k]` (=, or +=).
///
/// # Errors
/// If shapes differ.
pub fn backward_input(dy: Rows<'_>, w: Rows<'_>, dx: RowsMut<'_>, adds: bool) -> Result<()> {
    let check = Check("linear");
    check.shape("dy", dy.shape(), (dy.rows(), w.rows()))?;
    check.shape("dx", dx.shape(), (dy.rows(), w.cols()))?;
    cpu::backward_input(dy, w, dx, adds);
    Ok(())
}

/// dW += dyᵀ x.
///
/// `dy` `[m n]`, `x` `[m k]`, `dw` `[n k]` (+=).
///
/// # Errors
/// If shapes differ.
pub fn backward_weight(dy: Rows<'_>, x: Rows<'_>, dw: RowsMut<'_>) -> Result<()> {
    let check = Check("linear");
    check.shape("dy", dy.shape(), (x.rows(), dw.rows()))?;
    check.shape("dw", dw.shape(), (dy.cols(), x.cols()))?;
    cpu::backward_weight(dy, x, dw);
    Ok(())
}

/// db += Σ_rows dy.
///
/// `dy` `[m n]`, `db` `[n]` (+=).
///
/// # Errors
/// If shapes differ.
pub fn backward_bias(dy: Rows<'_>, db: &mut [f32]) -> Result<()> {
    Check("linear").len("db", db.len(), dy.cols())?;
    cpu::backward_bias(Isa::best(), dy, db);
    Ok(())
}
