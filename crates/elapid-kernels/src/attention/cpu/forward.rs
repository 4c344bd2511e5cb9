//! The forward pass.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::few::Few;
use super::marks::tiles;
use super::online::{Online, softmax};
use super::pack::{Scratch, across, across_len, along, along_len, keys_of};
use super::pieces::pieces;
use super::product;
use super::score::{Row, Rule, Seen, pack_rows, products, rows};
use super::sinks::Sinks;
use super::sizes::{BLOCK, Host, ROWS, TILE, Vectors, Widths, is_wide};
use crate::attention::keys::Keys;
use crate::attention::{Attention, Stretch};
use crate::parallel::{grain, split};
use crate::reuse::List;
use crate::{Isa, Rows, RowsMut};

/// Less than any score that is not -inf.
pub(super) const LOWEST: f32 = f32::MIN / 4.0;

/// Blocks of rows between the products with keys and those with values.
const TOGETHER: usize = 4;

/// Multiply-adds that are worth waking a thread.
const LEAST: usize = 1 << 15;

/// Keys and values of one head of a stretch.
#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    /// Packed before, for all groups of queries.
    Packed(&'a Packed),
    /// In place, for one group.
    InPlace(Keys<'a>, Keys<'a>),
}

/// The tiles of one head of a stretch.
#[derive(Debug)]
struct Packed {
    tiles: List<usize>,
    k: Scratch,
    v: Scratch,
}

impl Packed {
    fn new(
        widths: Widths,
        vectors: Vectors,
        tiles: List<usize>,
        stretch: &Stretch,
        (k, v): (Keys<'_>, Keys<'_>),
    ) -> Self {
        let (k_len, v_len) = (across_len(widths.c), along_len(vectors, widths.dv, TILE));
        let mut packed = Self { k: Scratch::new(tiles.len() * k_len), v: Scratch::new(tiles.len() * v_len), tiles };
        for (i, &tile) in packed.tiles.iter().enumerate() {
            across(vectors, widths.c, keys_of(stretch, tile, k), &mut packed.k.get_mut()[i * k_len..][..k_len]);
            along(vectors, widths.dv, TILE, keys_of(stretch, tile, v), &mut packed.v.get_mut()[i * v_len..][..v_len]);
        }
        packed
    }
}

/// One head of keys of a stretch.
#[derive(Debug)]
struct Unit<'a> {
    stretch: usize,
    kv: usize,
    /// Groups of queries that share passes over the keys, and their part of the output.
    groups: List<(Range<usize>, RowsMut<'a>)>,
}

pub(in crate::attention) fn forward(isa: Isa, attention: &Attention, args: &Host<'_>, y: RowsMut<'_>) {
    let (widths, vectors) = (Widths::of(attention, args), Vectors::of(isa));
    let mut units = units(attention, args, widths, y);
    let keys: usize = args.stretches.iter().map(Stretch::count).sum();
    let rows = args.q.rows() * widths.group;
    let work = (keys * rows.max(1)).saturating_mul(widths.c + widths.dv) / args.stretches.len().max(1).pow(2);
    split(units.len(), grain(units.len(), work, LEAST, 1), &mut units[..], &|_, _, units: &mut [Unit<'_>]| {
        for Unit { stretch, kv, groups } in units {
            let stretch = &args.stretches[*stretch];
            let (k, v) = Keys::of(args, stretch, *kv, (widths.c, widths.dv));
            let columns = widths.group * widths.c;
            let q = args.q.columns(*kv * columns, columns);
            let q = q.slice(stretch.queries.start, stretch.queries.len());
            let tiles = || tiles(attention, stretch, 0..stretch.queries.len());
            // One group packs a tile when it needs it, or not at all.
            let packed = (groups.len() > 1).then(|| Packed::new(widths, vectors, tiles(), stretch, (k, v)));
            let keys = packed.as_ref().map_or(Source::InPlace(k, v), Source::Packed);
            let sinks = Sinks::new(args.sink_logits, *kv * widths.group);
            split(groups.len(), 1, &mut groups[..], &|_, _, groups: &mut [_]| {
                for (queries, y) in groups {
                    let (queries, y) = (queries.clone(), y.reborrow());
                    let q = q.slice(queries.start, queries.len());
                    isa.run(Forward { attention, widths, vectors, stretch, kv: *kv, queries, q, keys, sinks, y });
                }
            });
        }
    });
}

fn units<'a>(attention: &Attention, args: &Host<'_>, widths: Widths, y: RowsMut<'a>) -> List<Unit<'a>> {
    let step = (ROWS / widths.group).max(1);
    let parts = args.stretches.iter().enumerate().flat_map(|(at, stretch)| {
        let count = stretch.queries.len();
        (0..count).step_by(step).map(move |from| (at, from..count.min(from + step)))
    });
    let parts: List<(usize, Range<usize>)> = parts.collect();
    let rows = |(at, queries): &(usize, Range<usize>)| {
        let first = args.stretches[*at].queries.start;
        first + queries.start..first + queries.end
    };
    let ranges: List<Range<usize>> = parts.iter().map(rows).collect();
    let cut = pieces(y, &ranges, widths.group * widths.dv, |mut padding| padding.fill(0.0));
    let mut units: List<Unit<'a>> = List::with_room(args.stretches.len() * attention.kv_heads);
    for ((stretch, queries), heads) in parts.into_iter().zip(cut) {
        if queries.start == 0 {
            units.extend((0..attention.kv_heads).map(|kv| Unit { stretch, kv, groups: List::new() }));
        }
        let first = units.len() - attention.kv_heads;
        for (unit, y) in units[first..].iter_mut().zip(heads) {
            unit.groups.push((queries.clone(), y));
        }
    }
    units
}

struct Forward<'a> {
    attention: &'a Attention,
    widths: Widths,
    vectors: Vectors,
    stretch: &'a Stretch,
    kv: usize,
    queries: Range<usize>,
    q: Rows<'a>,
    keys: Source<'a>,
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

impl Forward<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize, const N: usize>(self, simd: S) {
        let Widths { group, c, dv } = self.widths;
        let rule = Rule::of(self.attention);
        let (rows, count) = rows(self.attention, self.stretch, self.queries.clone(), (self.kv, group), R);
        let q = pack_rows::<R>(self.q, &rows, c, rule.q);
        let (zero, width) = (simd.splat_f32s(0.0), self.vectors.across(dv));
        let mut sums = Online {
            m: List::of(LOWEST, rows.len()),
            l: List::of(zero, rows.len()),
            a: List::of(zero, rows.len() * width),
        };
        let (k_len, v_len) = (across_len(c), along_len(self.vectors, dv, TILE));
        let tiles = tiles(self.attention, self.stretch, self.queries.clone());
        let blocks = Blocks { rule: &rule, end: self.stretch.end(), rows: &rows, q: &q, c };
        match self.keys {
            Source::Packed(packed) => {
                for tile in tiles {
                    let Ok(at) = packed.tiles.binary_search(&tile) else { continue };
                    let k = &packed.k.get()[at * k_len..][..k_len];
                    blocks.tile::<S, N>(simd, tile, k, &packed.v.get()[at * v_len..][..v_len], &mut sums);
                }
            }
            Source::InPlace(k, v) if rows.len() > R => {
                let (mut k_own, mut v_own) = (Scratch::new(k_len), Scratch::new(v_len));
                for tile in tiles {
                    across(self.vectors, c, keys_of(self.stretch, tile, k), k_own.get_mut());
                    along(self.vectors, dv, TILE, keys_of(self.stretch, tile, v), v_own.get_mut());
                    blocks.tile::<S, N>(simd, tile, k_own.get(), v_own.get(), &mut sums);
                }
            }
            Source::InPlace(k, v) => {
                let few = Few { rule: &rule, stretch: self.stretch, vectors: self.vectors, rows: &rows, q: &q, k, v };
                few.pass::<S, N>(simd, &tiles, &mut sums);
            }
        }
        self.sinks.join(simd, &rows[..count], &sums.m, &mut sums.l);
        write(simd, &rows[..count], dv, &sums, self.y);
    }
}

/// Blocks of rows that share tiles.
struct Blocks<'a, const R: usize> {
    rule: &'a Rule<'a>,
    /// Positions of the document.
    end: usize,
    rows: &'a [Row],
    q: &'a [[f32; R]],
    c: usize,
}

impl<const R: usize> Blocks<'_, R> {
    /// A few blocks at a time, so that keys and then values of the tile stay in the L1 cache for all of them.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&self, simd: S, tile: usize, k: &[f32], v: &[f32], sums: &mut Online<S::f32s>) {
        let ((k, _), (v, _)) = (S::as_simd_f32s(k), S::as_simd_f32s(v));
        let width = sums.a.len() / self.rows.len();
        let mut scores = [[[0.0; TILE]; R]; TOGETHER];
        for (some, rows) in self.rows.chunks(TOGETHER * R).enumerate() {
            let mut all: [Option<Seen>; TOGETHER] = [const { None }; TOGETHER];
            for (seen, rows) in all.iter_mut().zip(rows.chunks_exact(R)) {
                *seen = Seen::of(self.rule.mask, rows, self.end, tile * TILE);
            }
            for (i, (seen, scores)) in all.iter().zip(&mut scores).enumerate() {
                let Some(seen) = seen else { continue };
                let q = &self.q[(some * TOGETHER + i) * self.c..][..self.c];
                products::<S, R, N>(simd, q, k, seen.blocks(N * S::F32_LANES), scores);
            }
            let mut keep = [[simd.splat_f32s(1.0); R]; TOGETHER];
            for (i, (seen, scores)) in all.iter().zip(&mut scores).enumerate() {
                let Some(seen) = seen else { continue };
                let block = some * TOGETHER + i;
                keep[i] = softmax(simd, self.rule, &rows[i * R..][..R], seen, scores, sums, block);
            }
            for (i, (seen, scores)) in all.into_iter().zip(&scores).enumerate() {
                let Some(seen) = seen else { continue };
                let a = &mut sums.a[(some * TOGETHER + i) * R * width..][..R * width];
                values::<S, R, N>(simd, scores, seen.hull, v, keep[i], a);
            }
        }
    }
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
