//! Cross-entropy fused with the output projection: logits z = h Wᵀ, nll_r = log Σ_j exp z_rj - z_{r, target_r}.
//!
//! The logits of all rows are never in memory together, nor are their gradients, which are made in the same pass:
//! dz = scale / count (softmax(z) - q), dh = dz W, dW = dzᵀ h (`docs/math/cross_entropy.md`), where q is onehot(target), or
//! with label smoothing ε (Szegedy et al. 2016, section 7) (1 - ε) onehot(target) + ε / v: then nll is its mean over q.

mod args;
mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::packed::Packed;
use crate::view::Shaped;
use crate::{DType, Isa, Rows, View, ViewMut};

use args::CHECK;
pub use args::{Args, Grads};

/// The negative log-likelihood of each row's target, in nats, over smoothed targets their mean; the mean of those that
/// count, and its gradients.
///
/// `nll` `[m]` f32 (=), 0 where a row is ignored; `mean` `[1]` f32 (=), 0 if all are. On a GPU a target that is not below `v`
/// gives NaN: who puts targets there checks them first, by [`check_targets`].
///
/// # Errors
/// If shapes, formats or devices differ, ε or the soft cap is not in its range, on the CPU if a target is not below `v` (the error has the
/// position and the target), or if a device failed or has too little memory.
pub fn forward<'a, 'y, 'g>(
    args: impl Into<Args<View<'a>>>,
    nll: impl Into<ViewMut<'y>>,
    mean: impl Into<ViewMut<'y>>,
    grads: Option<Grads<ViewMut<'g>>>,
) -> Result<()> {
    let (args, nll, mean) = (args.into(), nll.into(), mean.into());
    let ((m, d), (v, _)) = (args.h.shape(), args.w.shape());
    check_smoothing(args.smoothing)?;
    let fits = args.softcap.is_finite() && args.softcap >= 0.0;
    CHECK.that(fits, "softcap", || "0 or more".into(), || args.softcap.to_string())?;
    CHECK.matrix("w", &args.w, (v, d))?;
    CHECK.dtype("w", &args.w, args.h.dtype())?;
    CHECK.len("targets", args.targets.len(), m)?;
    CHECK.flat("nll", &nll, m)?;
    CHECK.flat("mean", &mean, 1)?;
    if let Some(Grads { dh, dw, .. }) = &grads {
        CHECK.matrix("dh", dh, (m, d))?;
        CHECK.dtype("dh", dh, args.h.dtype())?;
        CHECK.matrix("dw", dw, (v, d))?;
        CHECK.dtype("dw", dw, DType::F32)?;
    }
    match nll {
        ViewMut::Host(nll) => {
            let args = args.host()?;
            check_targets(args.targets, v)?;
            let grads = grads.map(|grads| grads.map(|name, m| CHECK.host_mut(name, m))).transpose()?;
            let (nll, mean) = (nll.into_slice(), CHECK.host_flat_mut("mean", mean)?);
            cpu::forward(Isa::best(), &args, nll, grads);
            mean[0] = cpu::mean(nll, args.targets);
        }
        ViewMut::Device(nll) => {
            let gpu = nll.gpu();
            let grads = grads.map(|grads| grads.map(|name, m| CHECK.device_mut(name, m, gpu))).transpose()?;
            cuda::forward(&args.device(gpu)?, nll, CHECK.device_mut("mean", mean, gpu)?, grads)?;
        }
    }
    Ok(())
}

/// The losses of [`forward`] without gradients, with a packed W `[v d]`, on the CPU.
///
/// # Errors
/// As [`forward`].
pub fn forward_packed(
    h: Rows<'_>,
    w: &Packed,
    (targets, smoothing, softcap): (&[i32], f32, f32),
    nll: &mut [f32],
    mean: &mut [f32],
) -> error::Result<()> {
    check_smoothing(smoothing)?;
    let ((m, d), (v, columns)) = (h.shape(), w.shape());
    CHECK.that(columns == d, "w", || format!("[{v} {d}]"), || format!("[{v} {columns}]"))?;
    CHECK.len("targets", targets.len(), m)?;
    CHECK.len("nll", nll.len(), m)?;
    CHECK.len("mean", mean.len(), 1)?;
    check_targets(targets, v)?;
    cpu::forward_packed(Isa::best(), h, w, (targets, smoothing, softcap), nll);
    mean[0] = cpu::mean(nll, targets);
    Ok(())
}

fn check_smoothing(smoothing: f32) -> error::Result<()> {
    let (fits, got) = ((0.0..1.0).contains(&smoothing), || smoothing.to_string());
    CHECK.that(fits, "smoothing", || "0 or more, below 1".into(), got)
}

/// Checks that every target is below `v`.
///
/// # Errors
/// If one is not; the error has the position and the target.
pub fn check_targets(targets: &[i32], v: usize) -> error::Result<()> {
    match targets.iter().position(|&id| usize::try_from(id).is_ok_and(|id| id >= v)) {
        None => Ok(()),
        Some(at) => {
            let got = || format!("{} at position {at}", targets[at]);
            CHECK.that(false, "targets", || format!("targets below {v}"), got)
        }
    }
}
