//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2) as in PyTorch, t counted from 1:
//!
//! p -= lr wd p; m = β1 m + (1 - β1) g; v = β2 v + (1 - β2) g²;
//! p -= lr / (1 - β1ᵗ) · m / (sqrt(v) / sqrt(1 - β2ᵗ) + eps).
//!
//! Also [`norm_sq`] and [`first_non_finite`], for clipping.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
mod hyper;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::Isa;
use crate::error::{Check, Result};

pub use hyper::Hyper;

/// One step, in place.
///
/// `p`, `m`, `v` `[n]` parameters and the two means, updated; `g` `[n]` gradients.
///
/// # Errors
/// If lengths differ, or `step` is 0.
pub fn step(hyper: &Hyper, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) -> Result<()> {
    let check = Check("adamw");
    check.that(hyper.step > 0, "step", || "at least 1".into(), || "0".into())?;
    check.len("g", g.len(), p.len())?;
    check.len("m", m.len(), p.len())?;
    check.len("v", v.len(), p.len())?;
    cpu::step(Isa::best(), hyper, p, g, m, v);
    Ok(())
}

/// Σ g², in `f64` and in an order that depends on the length only.
pub fn norm_sq(g: &[f32]) -> f64 {
    cpu::norm_sq(Isa::best(), g)
}

/// The first position with a NaN or an infinity.
pub fn first_non_finite(g: &[f32]) -> Option<usize> {
    cpu::first_non_finite(Isa::best(), g)
}
