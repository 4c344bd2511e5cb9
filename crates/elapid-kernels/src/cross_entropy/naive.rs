//! The equations as loops, all logits of a row at once.

use super::{Args, Grads};
use crate::Float;

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(args: &Args<'_, T>, nll: &mut [T], mut grads: Option<Grads<'_, T>>) {
    let Args { h, w, targets, smoothing, softcap } = *args;
    let shared = smoothing / T::from(w.rows()).expect("a number of rows is a number");
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
        // q: what is to be predicted.
        let q = |j| if j == target { T::one() - smoothing + shared } else { shared };
        nll[r] = log_sum - logits.iter().enumerate().map(|(j, &z)| q(j) * z).sum();
        let Some(Grads { dh, dw, scale }) = &mut grads else { continue };
        for (j, &logit) in logits.iter().enumerate() {
            let slope = if softcap > T::zero() { T::one() - (logit / softcap) * (logit / softcap) } else { T::one() };
            let dlogit = *scale * ((logit - log_sum).exp() - q(j)) * slope;
            for i in 0..h.cols() {
                dh.row(r)[i] += dlogit * w.row(j)[i];
                dw.row(j)[i] += dlogit * h.row(r)[i];
            }
        }
    }
}
