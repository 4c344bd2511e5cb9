//! Few rows of queries, as in decoding: keys and values are read once, in place.
//!
//! ```text
//! for each tile:
//!   for each block of keys: transpose it into the L1 cache; x = q k in registers
//!   softmax
//!   for each 16 keys, block of columns: a += p v in registers
//! ```
//!
//! The same sums in the same order as with packed tiles. Memory bounds it: a key and a value are worth as many
//! multiply-adds as there are rows. One row keeps 8 vectors of columns, so that it reads values from first to last.

use std::ops::Range;

use pulp::Simd;

use super::online::{Online, softmax};
use super::pack::{Scratch, across, keys_at};
use super::product;
use super::score::{Row, Rule, Seen};
use super::sizes::{TILE, Vectors};
use crate::attention::Stretch;
use crate::attention::keys::Keys;

/// Keys whose values stay in the L1 cache while all columns are summed.
const SOME: usize = 16;

/// Rows of one block, their queries `[column][row]`, and what they see.
pub(super) struct Few<'a, const R: usize> {
    pub(super) rule: &'a Rule<'a>,
    pub(super) stretch: &'a Stretch,
    pub(super) vectors: Vectors,
    pub(super) rows: &'a [Row],
    pub(super) q: &'a [[f32; R]],
    pub(super) k: Keys<'a>,
    pub(super) v: Keys<'a>,
}

impl<const R: usize> Few<'_, R> {
    #[inline(always)]
    pub(super) fn pass<S: Simd, const N: usize>(&self, simd: S, tiles: &[usize], sums: &mut Online<S::f32s>) {
        let (c, keys) = (self.q.len(), N * S::F32_LANES);
        let mut block = Scratch::new(c * keys);
        let mut scores = [[0.0; TILE]; R];
        for &tile in tiles {
            let (p0, end) = (tile * TILE, self.stretch.end());
            let Some(seen) = Seen::of(self.rule.mask, self.rows, end, p0) else { continue };
            for at in seen.blocks(keys) {
                let from = p0 + at * keys;
                let rows = keys_at(self.stretch, from..end.min(from + keys), self.k);
                across(self.vectors, c, rows, block.get_mut());
                let (k, _) = S::as_simd_f32s(block.get()).0.as_chunks::<N>();
                let products = product::columns(simd, self.q, k, [[simd.splat_f32s(0.0); N]; R]);
                for r in 0..R {
                    S::as_mut_simd_f32s(&mut scores[r]).0[at * N..][..N].copy_from_slice(&products[r]);
                }
            }
            let keep = softmax(simd, self.rule, self.rows, &seen, &mut scores, sums, 0);
            self.values::<S, N>(simd, &scores, p0, seen.hull, keep, &mut sums.a);
        }
    }

    /// a = a keep + Σ p v, `[row][vector]`.
    #[inline(always)]
    fn values<S: Simd, const N: usize>(
        &self,
        simd: S,
        p: &[[f32; TILE]; R],
        p0: usize,
        hull: Range<usize>,
        keep: [S::f32s; R],
        a: &mut [S::f32s],
    ) {
        let width = a.len() / R;
        for (a, keep) in a.chunks_exact_mut(width.max(1)).zip(keep) {
            a.iter_mut().for_each(|a| *a = simd.mul_f32s(*a, keep));
        }
        for from in hull.clone().step_by(SOME) {
            let some = from..hull.end.min(from + SOME);
            let mut rows: [&[f32]; SOME] = [&[]; SOME];
            let p = p.map(|p| std::array::from_fn(|j| p[(from + j) % TILE]));
            for (j, row) in keys_at(self.stretch, p0 + some.start..p0 + some.end, self.v).enumerate() {
                rows[j] = row.unwrap_or_default();
            }
            let mut at = 0;
            while at < width {
                at += match width - at {
                    8.. if R == 1 => some_values::<S, R, 8>(simd, &p, &rows[..some.len()], a, at),
                    4.. if R == 1 || N == 4 => some_values::<S, R, 4>(simd, &p, &rows[..some.len()], a, at),
                    2.. => some_values::<S, R, 2>(simd, &p, &rows[..some.len()], a, at),
                    _ => some_values::<S, R, 1>(simd, &p, &rows[..some.len()], a, at),
                };
            }
        }
    }
}

/// a += Σ p v of N vectors of columns from `at` on; returns N. Rows that are not there are empty.
#[inline(always)]
fn some_values<S: Simd, const R: usize, const N: usize>(
    simd: S,
    p: &[[f32; SOME]; R],
    v: &[&[f32]],
    a: &mut [S::f32s],
    at: usize,
) -> usize {
    let width = a.len() / R;
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for r in 0..R {
        sums[r].copy_from_slice(&a[r * width + at..][..N]);
    }
    for (j, row) in v.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
        let (whole, tail) = S::as_simd_f32s(row);
        let v: [S::f32s; N] = match whole.get(at..at + N) {
            Some(v) => std::array::from_fn(|n| v[n]),
            // The last vector has fewer columns.
            None => std::array::from_fn(|n| match whole.get(at + n) {
                Some(v) => *v,
                None => simd.partial_load_f32s(tail),
            }),
        };
        for r in 0..R {
            let p = simd.splat_f32s(p[r][j % SOME]);
            for n in 0..N {
                sums[r][n] = simd.mul_add_e_f32s(p, v[n], sums[r][n]);
            }
        }
    }
    for r in 0..R {
        a[r * width + at..][..N].copy_from_slice(&sums[r]);
    }
    N
}
