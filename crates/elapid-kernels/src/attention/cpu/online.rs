//! The softmax of rows whose keys come tile by tile.

use pulp::Simd;

use super::score::{Row, Rule, Seen, finish, power};
use super::sizes::TILE;
use crate::reuse::List;

/// What a pass over the keys has of each row so far.
pub(super) struct Online<V> {
    /// The greatest score.
    pub(super) m: List<f32>,
    /// The sum of powers, by lane.
    pub(super) l: List<V>,
    /// The sum of values, `[row][vector]`.
    pub(super) a: List<V>,
}

/// Scores become powers; returns what earlier sums are multiplied by.
#[inline(always)]
pub(super) fn softmax<S: Simd, const R: usize>(
    simd: S,
    rule: &Rule<'_>,
    rows: &[Row],
    seen: &Seen,
    scores: &mut [[f32; TILE]; R],
    sums: &mut Online<S::f32s>,
    block: usize,
) -> [S::f32s; R] {
    let mut keep = [simd.splat_f32s(1.0); R];
    for r in 0..R {
        let (m, l) = (&mut sums.m[block * R + r], &mut sums.l[block * R + r]);
        let most = m.max(finish(simd, rule, rows[r], seen, &mut scores[r], None));
        // Nothing is rescaled but where the maximum grows.
        if most > *m {
            keep[r] = power(simd, simd.splat_f32s(*m), simd.splat_f32s(most));
            *m = most;
        }
        let (x, _) = S::as_mut_simd_f32s(&mut scores[r]);
        let mut sum = simd.mul_f32s(*l, keep[r]);
        for x in &mut x[seen.blocks(S::F32_LANES)] {
            *x = power(simd, *x, simd.splat_f32s(most));
            sum = simd.add_f32s(sum, *x);
        }
        *l = sum;
    }
    keep
}
