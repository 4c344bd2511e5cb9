//! The forward pass.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::marks::tiles;
use super::pack::{Scratch, across, across_len, along, along_len, keys_of};
use super::pieces::pieces;
use super::product;
use super::score::{Row, Rule, Seen, finish, pack_rows, power, products, rows};
use super::sinks::Sinks;
use super::sizes::{BLOCK, Host, ROWS, TILE, Vectors, Widths, is_wide};
use crate::attention::{Attention, Stretch};
use crate::parallel::split;
use crate::{Isa, Rows, RowsMut};

/// Less than any score that is not -inf.
pub(super) const LOWEST: f32 = f32::MIN / 4.0;

/// Keys and values of one head of a stretch.
#[derive(Debug, Clone, Copy)]
enum Keys<'a> {
    /// Packed before: these tiles in the order across, then in the order along.
    Packed(&'a Packed),
    /// Rows, to be packed tile by tile.
    Rows(Rows<'a>, Rows<'a>),
}

/// The tiles of one head of a stretch.
#[derive(Debug)]
struct Packed {
    tiles: Vec<usize>,
    k: Scratch,
    v: Scratch,
}

impl Packed {
    fn new(widths: Widths, vectors: Vectors, tiles: Vec<usize>) -> Self {
        let k = Scratch::new(tiles.len() * across_len(widths.c));
        let v = Scratch::new(tiles.len() * along_len(vectors, widths.dv, TILE));
        Self { tiles, k, v }
    }

    fn fill(&mut self, widths: Widths, vectors: Vectors, stretch: &Stretch, k: Rows<'_>, v: Rows<'_>) {
        let (k_len, v_len) = (across_len(widths.c), along_len(vectors, widths.dv, TILE));
        for (i, &tile) in self.tiles.iter().enumerate() {
            across(vectors, widths.c, keys_of(stretch, tile, k), &mut self.k.get_mut()[i * k_len..][..k_len]);
            along(vectors, widths.dv, TILE, keys_of(stretch, tile, v), &mut self.v.get_mut()[i * v_len..][..v_len]);
        }
    }
}

/// A group of rows of one head of keys.
#[derive(Debug)]
struct Item<'a> {
    stretch: usize,
    kv: usize,
    queries: Range<usize>,
    y: RowsMut<'a>,
}

pub(in crate::attention) fn forward(isa: Isa, attention: &Attention, args: &Host<'_>, y: RowsMut<'_>) {
    let (widths, vectors) = (Widths::of(attention, args), Vectors::of(isa));
    let heads_of = |kv: usize| {
        let k = args.k.columns(kv * widths.c, widths.c);
        (k, args.v.columns(kv * widths.dv, widths.dv))
    };
    // Stretches whose rows are few pack a tile when they need it.
    let step = (ROWS / widths.group).max(1);
    let mut packed: Vec<(usize, usize, Packed)> = Vec::new();
    let mut firsts = vec![None; args.stretches.len()];
    for (at, stretch) in args.stretches.iter().enumerate() {
        if stretch.queries.len() > step {
            firsts[at] = Some(packed.len());
            let tiles = tiles(attention, stretch, 0..stretch.queries.len());
            packed.extend((0..attention.kv_heads).map(|kv| (at, kv, Packed::new(widths, vectors, tiles.clone()))));
        }
    }
    split(packed.len(), 1, &mut packed[..], &|_, _, packed: &mut [_]| {
        for (at, kv, packed) in packed {
            let (k, v) = heads_of(*kv);
            packed.fill(widths, vectors, &args.stretches[*at], k, v);
        }
    });
    let mut items = items(attention, args, widths, step, y);
    split(items.len(), 1, &mut items[..], &|_, _, items: &mut [Item<'_>]| {
        for Item { stretch, kv, queries, y } in items {
            let (k, v) = heads_of(*kv);
            let keys = firsts[*stretch].map_or(Keys::Rows(k, v), |first| Keys::Packed(&packed[first + *kv].2));
            let (at, stretch) = (queries.clone(), &args.stretches[*stretch]);
            let q = args.q.slice(stretch.queries.start + at.start, at.len());
            let q = q.columns(*kv * widths.group * widths.c, widths.group * widths.c);
            let sinks = Sinks::new(args.sink_logits, *kv * widths.group);
            let y = y.reborrow();
            isa.run(Forward { attention, widths, vectors, stretch, kv: *kv, queries: at, q, keys, sinks, y });
        }
    });
}

fn items<'a>(attention: &Attention, args: &Host<'_>, widths: Widths, step: usize, y: RowsMut<'a>) -> Vec<Item<'a>> {
    let parts = args.stretches.iter().enumerate().flat_map(|(at, stretch)| {
        let count = stretch.queries.len();
        (0..count).step_by(step).map(move |from| (at, from..count.min(from + step)))
    });
    let parts: Vec<(usize, Range<usize>)> = parts.collect();
    let rows = |(at, queries): &(usize, Range<usize>)| {
        let first = args.stretches[*at].queries.start;
        first + queries.start..first + queries.end
    };
    let ranges: Vec<Range<usize>> = parts.iter().map(rows).collect();
    let cut = pieces(y, &ranges, widths.group * widths.dv, |mut padding| padding.fill(0.0));
    let mut items = Vec::with_capacity(parts.len() * attention.kv_heads);
    for ((stretch, queries), heads) in parts.into_iter().zip(cut) {
        let item = |(kv, y)| Item { stretch, kv, queries: queries.clone(), y };
        items.extend(heads.into_iter().enumerate().map(item));
    }
    items
}

struct Forward<'a> {
    attention: &'a Attention,
    widths: Widths,
    vectors: Vectors,
    stretch: &'a Stretch,
    kv: usize,
    queries: Range<usize>,
    q: Rows<'a>,
    keys: Keys<'a>,
    sinks: Sinks<'a>,
    y: RowsMut<'a>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.queries.len() * self.widths.group;
        if is_wide::<S>() {
            match rows {
                1 => self.run::<S, 1, 4>(simd),
                2..=4 => self.run::<S, 4, 4>(simd),
                _ => self.run::<S, BLOCK, 4>(simd),
            }
        } else {
            match rows {
                1 => self.run::<S, 1, 2>(simd),
                2..=4 => self.run::<S, 4, 2>(simd),
                _ => self.run::<S, BLOCK, 2>(simd),
            }
        }
    }
}

/// What a pass over the keys has of each row so far.
struct Online<V> {
    /// The greatest score.
    m: Vec<f32>,
    /// The sum of powers, by lane.
    l: Vec<V>,
    /// The sum of values, `[row][vector]`.
    a: Vec<V>,
}

impl Forward<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize, const N: usize>(self, simd: S) {
        let Widths { group, c, dv } = self.widths;
        let rule = Rule::of(self.attention);
        let (rows, count) = rows(self.attention, self.stretch, self.queries.clone(), (self.kv, group), R);
        let q = pack_rows::<R>(self.q, &rows, c, rule.q);
        let (zero, width) = (simd.splat_f32s(0.0), self.vectors.across(dv));
        let mut sums =
            Online { m: vec![LOWEST; rows.len()], l: vec![zero; rows.len()], a: vec![zero; rows.len() * width] };
        let (k_len, v_len) = (across_len(c), along_len(self.vectors, dv, TILE));
        let (mut k_own, mut v_own) = match self.keys {
            Keys::Packed(_) => (Scratch::new(0), Scratch::new(0)),
            Keys::Rows(..) => (Scratch::new(k_len), Scratch::new(v_len)),
        };
        let mut scores = [[0.0; TILE]; R];
        for tile in tiles(self.attention, self.stretch, self.queries.clone()) {
            let (k, v) = match self.keys {
                Keys::Packed(packed) => {
                    let Ok(at) = packed.tiles.binary_search(&tile) else { continue };
                    (&packed.k.get()[at * k_len..][..k_len], &packed.v.get()[at * v_len..][..v_len])
                }
                Keys::Rows(k, v) => {
                    across(self.vectors, c, keys_of(self.stretch, tile, k), k_own.get_mut());
                    along(self.vectors, dv, TILE, keys_of(self.stretch, tile, v), v_own.get_mut());
                    (k_own.get(), v_own.get())
                }
            };
            let ((k, _), (v, _)) = (S::as_simd_f32s(k), S::as_simd_f32s(v));
            for (block, rows) in rows.chunks_exact(R).enumerate() {
                let Some(seen) = Seen::of(rule.mask, rows, self.stretch.end(), tile * TILE) else { continue };
                products::<S, R, N>(simd, &q[block * c..][..c], k, seen.blocks(N * S::F32_LANES), &mut scores);
                let keep = softmax(simd, &rule, rows, &seen, &mut scores, &mut sums, block);
                values::<S, R, N>(simd, &scores, seen.hull, v, keep, &mut sums.a[block * R * width..][..R * width]);
            }
        }
        self.sinks.join(simd, &rows[..count], &sums.m, &mut sums.l);
        write(simd, &rows[..count], dv, &sums, self.y);
    }
}

/// Scores become powers; returns what earlier sums are multiplied by.
#[inline(always)]
fn softmax<S: Simd, const R: usize>(
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
        keep[r] = power(simd, simd.splat_f32s(*m), simd.splat_f32s(most));
        *m = most;
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

/// a = a keep + Σ p v, `[row][vector]`.
#[inline(always)]
pub(super) fn values<S: Simd, const R: usize, const N: usize>(
    simd: S,
    p: &[[f32; TILE]; R],
    hull: Range<usize>,
    v: &[S::f32s],
    keep: [S::f32s; R],
    a: &mut [S::f32s],
) {
    let width = a.len() / R;
    for from in (0..width).step_by(N) {
        let (v, hull) = (&v[from * TILE..], hull.clone());
        match N.min(width - from) {
            1 => some_values::<S, R, 1>(simd, p, hull, v, &keep, a, from),
            2 => some_values::<S, R, 2>(simd, p, hull, v, &keep, a, from),
            3 if N > 2 => some_values::<S, R, 3>(simd, p, hull, v, &keep, a, from),
            _ => some_values::<S, R, N>(simd, p, hull, v, &keep, a, from),
        }
    }
}

#[inline(always)]
fn some_values<S: Simd, const R: usize, const N: usize>(
    simd: S,
    p: &[[f32; TILE]; R],
    hull: Range<usize>,
    v: &[S::f32s],
    keep: &[S::f32s; R],
    a: &mut [S::f32s],
    from: usize,
) {
    let width = a.len() / R;
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for r in 0..R {
        for n in 0..N {
            sums[r][n] = simd.mul_f32s(a[r * width + from + n], keep[r]);
        }
    }
    let (v, _) = v[..TILE * N].as_chunks::<N>();
    let sums = product::rows(simd, p, hull, v, sums);
    for r in 0..R {
        a[r * width + from..][..N].copy_from_slice(&sums[r]);
    }
}

/// y = a / l.
#[inline(always)]
fn write<S: Simd>(simd: S, rows: &[Row], dv: usize, sums: &Online<S::f32s>, mut y: RowsMut<'_>) {
    let width = dv.div_ceil(S::F32_LANES);
    for (r, row) in rows.iter().enumerate() {
        let l = simd.reduce_sum_f32s(sums.l[r]);
        let inverse = simd.splat_f32s(if l == 0.0 { 0.0 } else { 1.0 / l });
        let y = &mut y.row(row.at.0)[row.at.1 * dv..][..dv];
        let (whole, tail) = S::as_mut_simd_f32s(y);
        let a = &sums.a[r * width..][..width];
        // Adding 0 turns -0, which depends on the hidden keys of a tile, into 0.
        let end = |a: S::f32s| simd.mul_add_e_f32s(a, inverse, simd.splat_f32s(0.0));
        for (y, a) in whole.iter_mut().zip(a) {
            *y = end(*a);
        }
        if !tail.is_empty() {
            simd.partial_store_f32s(tail, end(a[width - 1]));
        }
    }
}
