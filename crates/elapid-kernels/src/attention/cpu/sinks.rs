//! The learned logit of a head: one more term of a row's softmax, without a value.
//!
//! With L = log₂ Σ 2^x of the keys and z the logit times log₂ e, the sum becomes 2^L + 2^z, and y and δ fall by the same factor.
//! The gradient of the logit is -p δ, summed over rows, with p its own probability: its value is 0.

use std::f64::consts::LOG2_E;

use pulp::Simd;

use super::score::Row;

/// A logit as a power of 2.
fn power_of(logit: f32) -> f32 {
    (f64::from(logit) * LOG2_E) as f32
}

/// The logits of a call, seen from a head of keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sinks<'a> {
    /// `[heads]`; none: there are no such logits.
    logits: Option<&'a [f32]>,
    /// The first of the heads that share the keys.
    first: usize,
}

impl<'a> Sinks<'a> {
    pub(super) fn new(logits: Option<&'a [f32]>, first: usize) -> Self {
        Self { logits, first }
    }

    /// Adds them to the sums `l` of 2^(x - m), which are by lane: to the first lane.
    #[inline(always)]
    pub(super) fn join<S: Simd>(&self, simd: S, rows: &[Row], m: &[f32], l: &mut [S::f32s]) {
        let Some(logits) = self.logits else { return };
        for ((row, m), l) in rows.iter().zip(m).zip(l) {
            let term = (power_of(logits[self.first + row.at.1]) - m).exp2();
            *l = simd.add_f32s(*l, simd.partial_load_f32s(&[term]));
        }
    }
}

/// Adds the logit of a head to the sums of its rows, 2^lse, and changes δ accordingly. Returns the gradient of the logit.
pub(super) fn join_backward(logit: f32, lse: &mut [f32], delta: &mut [f32]) -> f64 {
    let (z, mut gradient) = (power_of(logit), 0.0);
    for (lse, delta) in lse.iter_mut().zip(delta) {
        let all = lse.max(z) + (1.0 + (-(*lse - z).abs()).exp2()).log2();
        *delta *= (*lse - all).exp2();
        gradient -= f64::from((z - all).exp2() * *delta);
        *lse = all;
    }
    gradient
}
