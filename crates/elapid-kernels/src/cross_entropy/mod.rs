//! Cross-entropy fused with the output projection: logits z = h Wᵀ, nll_r = log Σ_j exp z_rj - z_{r, target_r}.
//!
//! The logits of all rows are never in memory together, and neither are their gradients, which are computed in the same
//! pass: dz = scale (softmax(z) - q), dh = dz W, dW += dzᵀ h (`docs/math/cross_entropy.md`). Here q is onehot(target), or
//! with label smoothing ε (Szegedy et al. 2016, section 7) it is (1 - ε) onehot(target) + ε / v, and nll is the
//! cross-entropy with q.

mod args;
mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::Isa;
use crate::error::{Check, Result};

pub use args::{Args, Grads};

/// The negative log-likelihood of each row's target in nats (with smoothing, the cross-entropy), and its gradients.
///
/// `nll` `[m]` (=), 0 where a row is ignored.
///
/// # Errors
/// If shapes differ, ε is not in its range, or a target is not below `v`; the error has the position and the target.
pub fn forward(args: &Args<'_>, nll: &mut [f32], grads: Option<Grads<'_>>) -> Result<()> {
    let check = Check("cross_entropy");
    let Args { h, w, targets, smoothing, softcap } = *args;
    check_smoothing(smoothing)?;
    let fits = softcap.is_finite() && softcap >= 0.0;
    check.that(fits, "softcap", || "0 or more".into(), || softcap.to_string())?;
    check.shape("w", w.shape(), (w.rows(), h.cols()))?;
    check.len("targets", targets.len(), h.rows())?;
    check.len("nll", nll.len(), h.rows())?;
    if let Some(grads) = &grads {
        check.shape("dh", grads.dh.shape(), h.shape())?;
        check.shape("dw", grads.dw.shape(), w.shape())?;
    }
    check_targets(targets, w.rows())?;
    cpu::forward(Isa::best(), args, nll, grads);
    Ok(())
}

fn check_smoothing(smoothing: f32) -> Result<()> {
    let (fits, got) = ((0.0..1.0).contains(&smoothing), || smoothing.to_string());
    Check("cross_entropy").that(fits, "smoothing", || "0 or more, below 1".into(), got)
}

/// Checks that every target is below `v`.
///
/// # Errors
/// If one is not; the error has the position and the target.
pub fn check_targets(targets: &[i32], v: usize) -> Result<()> {
    match targets.iter().position(|&id| usize::try_from(id).is_ok_and(|id| id >= v)) {
        None => Ok(()),
        Some(at) => {
            let got = || format!("{} at position {at}", targets[at]);
            Check("cross_entropy").that(false, "targets", || format!("targets below {v}"), got)
        }
    }
}
