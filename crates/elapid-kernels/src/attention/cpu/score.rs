//! From queries and keys to scores, in powers of 2.

use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;

use pulp::Simd;

use super::sizes::TILE;
use super::{marks, product};
use crate::attention::{Attention, Mask, Stretch};
use crate::reuse::List;
use crate::{Rows, math};

/// How a product becomes a score.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule<'a> {
    pub(super) mask: &'a Mask,
    /// Factor of the queries: scale log₂ e.
    pub(super) q: f32,
    /// Of the soft cap: what scores are multiplied by inside and outside tanh.
    cap: Option<(f32, f32)>,
    alibi: bool,
}

impl<'a> Rule<'a> {
    pub(super) fn of(attention: &'a Attention) -> Self {
        let cap = f64::from(attention.softcap);
        Self {
            mask: &attention.mask,
            q: (f64::from(attention.scale) * LOG2_E) as f32,
            cap: (cap > 0.0).then_some(((LN_2 / cap) as f32, (cap * LOG2_E) as f32)),
            alibi: attention.alibi,
        }
    }
}

/// A query of a head: a row of the scores.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Its position in the document.
    pub(super) t: usize,
    /// How much scores fall per position.
    slope: f32,
    /// Index of the query, and of the head among those that share keys.
    pub(super) at: (usize, usize),
}

/// The rows of queries of a stretch for one head of keys, the last one repeated to a multiple of `block`, and their number
/// without that.
pub(super) fn rows(
    attention: &Attention,
    stretch: &Stretch,
    queries: Range<usize>,
    (kv, group): (usize, usize),
    block: usize,
) -> (List<Row>, usize) {
    let slope = |head: usize| match attention.alibi {
        true => (attention.slope(kv * group + head) * LOG2_E) as f32,
        false => 0.0,
    };
    let first = queries.start;
    let row = |i: usize, head: usize| Row { t: stretch.time(i), slope: slope(head), at: (i - first, head) };
    let mut rows: List<Row> = queries.flat_map(|i| (0..group).map(move |head| row(i, head))).collect();
    let count = rows.len();
    if let Some(&last) = rows.last() {
        rows.resize(count.next_multiple_of(block), last);
    }
    (rows, count)
}

/// Columns of rows, times a factor, in blocks of R: `[block][column][row]`.
pub(super) fn pack_rows<const R: usize>(x: Rows<'_>, rows: &[Row], columns: usize, factor: f32) -> List<[f32; R]> {
    let mut packed = List::of([0.0; R], rows.len() / R * columns);
    for (rows, packed) in rows.chunks_exact(R).zip(packed.chunks_exact_mut(columns.max(1))) {
        for (r, row) in rows.iter().enumerate() {
            let x = &x.row(row.at.0)[row.at.1 * columns..][..columns];
            packed.iter_mut().zip(x).for_each(|(packed, x)| packed[r] = factor * x);
        }
    }
    packed
}

/// Positions of a document of `n` of which rows see some in a tile.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// The position of the tile.
    p0: usize,
    n: usize,
    /// Keys of the tile outside of which no row of the block sees any.
    pub(super) hull: Range<usize>,
    /// Whether all rows see all of them.
    all: bool,
}

impl Seen {
    /// Of a tile by a block of rows; none if they see nothing of it.
    pub(super) fn of(mask: &Mask, rows: &[Row], n: usize, p0: usize) -> Option<Self> {
        let (first, last) = (rows.first()?, rows.last()?);
        let times = first.t..last.t + 1;
        let hull = marks::hull(mask, times.clone(), n, p0);
        let all = marks::all(mask, times, n, p0);
        (!hull.is_empty()).then_some(Self { p0, n, hull, all })
    }

    /// The blocks of so many keys that cover the hull.
    pub(super) fn blocks(&self, keys: usize) -> Range<usize> {
        self.hull.start / keys..self.hull.end.div_ceil(keys)
    }
}

/// Products of a block of rows with the keys of blocks, into `out`.
#[inline(always)]
pub(super) fn products<S: Simd, const R: usize, const N: usize>(
    simd: S,
    q: &[[f32; R]],
    keys: &[S::f32s],
    blocks: Range<usize>,
    out: &mut [[f32; TILE]; R],
) {
    for block in blocks {
        let (keys, _) = keys[block * q.len() * N..][..q.len() * N].as_chunks::<N>();
        let sums = product::columns(simd, q, keys, [[simd.splat_f32s(0.0); N]; R]);
        for r in 0..R {
            let (row, _) = S::as_mut_simd_f32s(&mut out[r]);
            row[block * N..][..N].copy_from_slice(&sums[r]);
        }
    }
}

const LANES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Scores of a row from its products: the cap, ALiBi, -inf for keys that are not seen. Returns the greatest. With `slopes`
/// these are set to the derivative of the cap.
#[inline(always)]
pub(super) fn finish<S: Simd>(
    simd: S,
    rule: &Rule<'_>,
    row: Row,
    seen: &Seen,
    x: &mut [f32; TILE],
    mut slopes: Option<&mut [f32; TILE]>,
) -> f32 {
    let vectors = seen.blocks(S::F32_LANES);
    let (x, _) = S::as_mut_simd_f32s(x);
    let x = &mut x[vectors.clone()];
    let c = |value: f32| simd.splat_f32s(value);
    let mut most = c(f32::NEG_INFINITY);
    if let Some((inside, outside)) = rule.cap {
        for (i, x) in x.iter_mut().enumerate() {
            let tanh = math::tanh(simd, simd.mul_f32s(*x, c(inside)));
            *x = simd.mul_f32s(tanh, c(outside));
            if let Some(slopes) = &mut slopes {
                let (slopes, _) = S::as_mut_simd_f32s(&mut slopes[..]);
                slopes[vectors.start + i] = simd.sub_f32s(c(1.0), simd.mul_f32s(tanh, tanh));
            }
        }
    }
    if rule.alibi {
        let (lanes, _) = S::as_simd_f32s(&LANES[..S::F32_LANES]);
        for (i, x) in x.iter_mut().enumerate() {
            let from = seen.p0 as f64 - row.t as f64 + ((vectors.start + i) * S::F32_LANES) as f64;
            let distance = simd.abs_f32s(simd.add_f32s(c(from as f32), lanes[0]));
            *x = simd.mul_add_e_f32s(c(-row.slope), distance, *x);
        }
    }
    if seen.all {
        x.iter().for_each(|x| most = simd.max_f32s(most, *x));
    } else {
        let mut marks = [0.0; TILE];
        marks::mark(rule.mask, row.t, seen.n, seen.p0, &mut marks);
        let (marks, _) = S::as_simd_f32s(&marks);
        for (x, mark) in x.iter_mut().zip(&marks[vectors]) {
            *x = simd.select_f32s(simd.greater_than_f32s(*mark, c(0.0)), *x, c(f32::NEG_INFINITY));
            most = simd.max_f32s(most, *x);
        }
    }
    simd.reduce_max_f32s(most)
}

/// 2^(x - m) for x ≤ m, exactly 0 where x - m ≤ -127.
#[inline(always)]
pub(super) fn power<S: Simd>(simd: S, x: S::f32s, m: S::f32s) -> S::f32s {
    math::exp2_not_above_0(simd, simd.sub_f32s(x, m))
}
