//! What logits answer: the likeliest id of each row, and how likely the wanted one is.
//!
//! For a row of logits z and its target t: argmax_j z_j, the first of equals; nll = log Σ_j exp z_j - z_t in nats; and the
//! lead z_t - mean_j z_j, from which a loss with label smoothing follows (`cross_entropy`).

mod answer;
mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cross_entropy::check_targets;
use crate::cuda::Result;
use crate::error::Check;
use crate::{Isa, View};

pub use answer::Answer;

const CHECK: Check = Check("answers");

/// The answer of each row of `logits` `[m v]` to `targets` `[m]`, ids of 0 to v - 1.
///
/// # Errors
/// If there is not one target a row, a target is not below v or negative, or a device failed or has too little memory.
pub fn forward<'a>(logits: impl Into<View<'a>>, targets: &[i32]) -> Result<Vec<Answer>> {
    let logits = logits.into();
    let (m, v) = logits.shape();
    CHECK.len("targets", targets.len(), m)?;
    check_targets(targets, v)?;
    if let Some(at) = targets.iter().position(|&id| id < 0) {
        return Err(CHECK.fault("targets", "ids".into(), format!("{} at position {at}", targets[at])).into());
    }
    match logits {
        View::Host(logits) => Ok(cpu::forward(Isa::best(), logits, targets)),
        View::Device(logits) => cuda::forward(logits, targets),
    }
}
