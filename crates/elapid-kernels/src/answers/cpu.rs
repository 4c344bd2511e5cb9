//! One row at a time, its logits in vectors. Departures from naive: exp is a polynomial; sums run in vectors, in an order that
//! depends on `v` only, and without the target's own term where it is the largest, so that a small loss keeps its digits.

use pulp::{Simd, WithSimd};

use super::answer::Answer;
use crate::parallel;
use crate::{Isa, Rows, math};

pub(super) fn forward(isa: Isa, logits: Rows<'_>, targets: &[i32]) -> Vec<Answer> {
    let mut answers = vec![Answer::default(); targets.len()];
    let grain = parallel::grain(targets.len(), 2 * logits.cols(), 1 << 15, 1);
    parallel::split(targets.len(), grain, answers.as_mut_slice(), &|from, _, answers: &mut [Answer]| {
        let targets = &targets[from..][..answers.len()];
        isa.run(Answers { logits: logits.slice(from, targets.len()), targets, answers });
    });
    answers
}

struct Answers<'a> {
    logits: Rows<'a>,
    targets: &'a [i32],
    answers: &'a mut [Answer],
}

impl WithSimd for Answers<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { logits, targets, answers } = self;
        for (r, (answer, &target)) in answers.iter_mut().zip(targets).enumerate() {
            let z = logits.row(r);
            let (top, sum) = (math::largest(simd, z), math::sum(simd, z));
            let likeliest = z.iter().position(|&z| z == top).unwrap_or(0);
            let own = z[target as usize];
            let others = others(simd, z, (top, likeliest));
            // Where the sum of the others is below rounding of 1, the loss is that sum.
            let nll = others.ln_1p() + (top - own);
            *answer = Answer { likeliest: likeliest as u32, nll, lead: own - sum / z.len() as f32 };
        }
    }
}

/// Σ exp(z - top) of all but the likeliest.
#[inline(always)]
fn others<S: Simd>(simd: S, z: &[f32], (top, likeliest): (f32, usize)) -> f32 {
    let (before, after) = (&z[..likeliest], &z[likeliest + 1..]);
    exponentials(simd, before, top) + exponentials(simd, after, top)
}

#[inline(always)]
fn exponentials<S: Simd>(simd: S, z: &[f32], top: f32) -> f32 {
    let tops = simd.splat_f32s(top);
    let (vectors, tail) = S::as_simd_f32s(z);
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (j, &z) in vectors.iter().enumerate() {
        sums[j % 4] = simd.add_f32s(sums[j % 4], math::exp(simd, simd.sub_f32s(z, tops)));
    }
    math::total(simd, sums) + tail.iter().map(|z| (z - top).exp()).sum::<f32>()
}
