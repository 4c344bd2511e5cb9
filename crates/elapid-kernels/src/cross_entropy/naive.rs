//! The equations as loops, all logits of a row at once.

use super::{Args, Grads};
use crate::{Float, Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(args: &Args<Rows<'_, T>>, nll: &mut [T], mut grads: Option<Grads<RowsMut<'_, T>>>) {
    let Args { h, w, targets, .. } = *args;
    let of = |x: f64| T::from(x).expect("a number");
    let (smoothing, softcap) = (of(args.smoothing.into()), of(args.softcap.into()));
    let shared = smoothing / of(w.rows() as f64);
    let count = targets.iter().filter(|&&target| target >= 0).count();
    if let Some(grads) = &mut grads {
        grads.dw.fill(T::zero());
    }
    for r in 0..h.rows() {
        if let Some(grads) = &mut grads {
            grads.dh.row(r).fill(T::zero());
        }
        nll[r] = T::zero();
        let Ok(target) = usize::try_from(targets[r]) else { continue };
        let logits: Vec<T> = (0..w.rows()).map(|j| h.row(r).iter().zip(w.row(j)).map(|(&h, &w)| h * w).sum()).collect();
        let capped = |z: T| if softcap > T::zero() { softcap * (z / softcap).tanh() } else { z };
        let logits: Vec<T> = logits.into_iter().map(capped).collect();
        let max = logits.iter().fold(T::neg_infinity(), |a, &b| a.max(b));
        let log_sum = max + logits.iter().map(|&z| (z - max).exp()).sum::<T>().ln();
        // q: the target distribution.
        let q = |j| if j == target { T::one() - smoothing + shared } else { shared };
        nll[r] = log_sum - logits.iter().enumerate().map(|(j, &z)| q(j) * z).sum();
        let Some(Grads { dh, dw, scale }) = &mut grads else { continue };
        let p: Vec<T> = logits.iter().map(|&z| (z - log_sum).exp()).collect();
        for (j, &logit) in logits.iter().enumerate() {
            let slope = if softcap > T::zero() { T::one() - (logit / softcap) * (logit / softcap) } else { T::one() };
            // p - q. The target's p - 1 is minus the others' sum, which keeps its digits near 0.
            let others = || (0..w.rows()).filter(|&i| i != target).map(|i| p[i]).sum::<T>();
            let excess = if j == target { smoothing - shared - others() } else { p[j] - shared };
            let dlogit = of(f64::from(*scale) / count as f64) * excess * slope;
            for i in 0..h.cols() {
                dh.row(r)[i] += dlogit * w.row(j)[i];
                dw.row(j)[i] += dlogit * h.row(r)[i];
            }
        }
    }
}
