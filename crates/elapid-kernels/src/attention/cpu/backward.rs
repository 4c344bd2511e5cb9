//! The backward pass: for each stretch and head of keys in parallel, and for heads that share keys in parallel too.
//!
//! ```text
//! for each group of 48 queries:
//!   for each tile, block of rows: as forward, but instead of values Σ p (dy v), which is δ after division by l
//!   with learned sinks: they join l, and δ
//!   for each tile:
//!     for each block of rows:
//!       p = 2^(x - m - log₂ l), ds = p (dy v - δ) cap'(x)
//!       dq += ds k
//!     for each 4 keys: dv += pᵀ dy, dk += dsᵀ q
//! ```
//!
//! Scores are computed twice rather than kept: the forward saves nothing. Keys of a head are summed over its queries in order,
//! and over heads that share them in order.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::forward::{LOWEST, values};
use super::marks::tiles;
use super::pack::{Scratch, across, across_len, along, along_len, keys_of, read_along};
use super::pieces::pieces;
use super::product;
use super::score::{Row, Rule, Seen, finish, pack_rows, power, products, rows};
use super::sinks::join_backward;
use super::sizes::{BLOCK, Host, TILE, Vectors, Widths, is_wide};
use crate::attention::keys::Keys;
use crate::attention::{Attention, Grads, Stretch};
use crate::parallel::split;
use crate::reuse::List;
use crate::{Isa, Rows, RowsMut};

/// Queries that share a pass over the keys: their probabilities of a tile stay in the L1 cache.
const QUERIES: usize = 48;

/// Keys of a block of their gradients.
const KEYS: usize = 4;

/// One head of keys of a stretch.
#[derive(Debug)]
struct Unit<'a> {
    stretch: &'a Stretch,
    kv: usize,
    dq: RowsMut<'a>,
    dk: RowsMut<'a>,
    dv: RowsMut<'a>,
    /// Of the logits of the heads that share the keys.
    dsinks: Vec<f64>,
}

pub(in crate::attention) fn backward(
    isa: Isa,
    attention: &Attention,
    args: &Host<'_>,
    dy: Rows<'_>,
    Grads { dq, mut dk, mut dv, mut dsink_logits }: Grads<RowsMut<'_>>,
) {
    let (widths, vectors) = (Widths::of(attention, args), Vectors::of(isa));
    let ranges: Vec<_> = args.stretches.iter().map(|stretch| stretch.queries.clone()).collect();
    let cut = pieces(dq, &ranges, widths.group * widths.c, |mut padding| padding.fill(0.0));
    let mut dq: Vec<_> = cut.into_iter().map(Some).collect();
    for wave in waves(args.stretches) {
        let ranges: Vec<_> = wave.iter().map(|&at| args.stretches[at].keys.clone()).collect();
        let dk = pieces(dk.reborrow(), &ranges, widths.c, |_| {});
        let dv = pieces(dv.reborrow(), &ranges, widths.dv, |_| {});
        let mut units = Vec::with_capacity(wave.len() * attention.kv_heads);
        for ((at, dk), dv) in wave.into_iter().zip(dk).zip(dv) {
            let heads = dq[at].take().unwrap_or_default().into_iter().zip(dk).zip(dv).enumerate();
            let stretch = &args.stretches[at];
            units.extend(heads.map(|(kv, ((dq, dk), dv))| Unit { stretch, kv, dq, dk, dv, dsinks: Vec::new() }));
        }
        split(units.len(), 1, &mut units[..], &|_, _, units: &mut [Unit<'_>]| {
            for unit in units {
                one(isa, attention, args, widths, vectors, dy, unit);
            }
        });
        let Some(dsinks) = dsink_logits.as_deref_mut() else { continue };
        for unit in &units {
            let own = &mut dsinks[unit.kv * widths.group..][..widths.group];
            own.iter_mut().zip(&unit.dsinks).for_each(|(sum, gradient)| *sum += *gradient as f32);
        }
    }
}

/// Indices of stretches, in groups whose keys do not overlap: all in one where each has keys of its own.
fn waves(stretches: &[Stretch]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..stretches.len()).filter(|&at| !stretches[at].queries.is_empty()).collect();
    order.sort_by_key(|&at| stretches[at].keys.start);
    let mut waves: Vec<(usize, Vec<usize>)> = Vec::new();
    for at in order {
        let keys = &stretches[at].keys;
        match waves.iter_mut().find(|(end, _)| *end <= keys.start) {
            Some((end, wave)) => {
                *end = keys.end;
                wave.push(at);
            }
            None => waves.push((keys.end, vec![at])),
        }
    }
    waves.into_iter().map(|(_, wave)| wave).collect()
}

/// The tiles of a head of keys, in the orders of three products.
#[derive(Debug)]
struct Packed {
    tiles: List<usize>,
    k_across: Scratch,
    k_along: Scratch,
    v_across: Scratch,
}

impl Packed {
    fn new(
        widths: Widths,
        vectors: Vectors,
        tiles: List<usize>,
        stretch: &Stretch,
        (k, v): (Keys<'_>, Keys<'_>),
    ) -> Self {
        let Widths { c, dv, .. } = widths;
        let (c_len, along_len, dv_len) = (across_len(c), along_len(vectors, c, TILE), across_len(dv));
        let scratch = |len: usize| Scratch::new(tiles.len() * len);
        let (mut k_across, mut k_along, mut v_across) = (scratch(c_len), scratch(along_len), scratch(dv_len));
        for (i, &tile) in tiles.iter().enumerate() {
            across(vectors, c, keys_of(stretch, tile, k), &mut k_across.get_mut()[i * c_len..][..c_len]);
            along(vectors, c, TILE, keys_of(stretch, tile, k), &mut k_along.get_mut()[i * along_len..][..along_len]);
            across(vectors, dv, keys_of(stretch, tile, v), &mut v_across.get_mut()[i * dv_len..][..dv_len]);
        }
        Self { tiles, k_across, k_along, v_across }
    }
}

/// Gradients of the keys and values of a head, tile after tile in the order along.
struct Sums {
    dk: Scratch,
    dv: Scratch,
    /// Of the head's logit.
    dsink: f64,
}

fn one(
    isa: Isa,
    attention: &Attention,
    args: &Host<'_>,
    widths: Widths,
    vectors: Vectors,
    dy: Rows<'_>,
    unit: &mut Unit<'_>,
) {
    let Widths { group, c, dv } = widths;
    let (stretch, kv) = (unit.stretch, unit.kv);
    let tiles = tiles(attention, stretch, 0..stretch.queries.len());
    let packed = Packed::new(widths, vectors, tiles, stretch, Keys::of(args, stretch, kv, (c, dv)));
    let (dk_len, dv_len) = (along_len(vectors, c, TILE), along_len(vectors, dv, TILE));
    let count = packed.tiles.len();
    let sums = || Sums { dk: Scratch::new(count * dk_len), dv: Scratch::new(count * dv_len), dsink: 0.0 };
    let whole = 0..stretch.queries.len();
    let mut heads: Vec<_> = pieces(unit.dq.reborrow(), &[whole], c, |_| {})
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(head, dq)| (kv * group + head, dq, sums()))
        .collect();
    split(heads.len(), 1, &mut heads[..], &|_, _, heads: &mut [_]| {
        for (head, dq, sums) in heads {
            let (q, dy) = (args.q.columns(*head * c, c), dy.columns(*head * dv, dv));
            let (dq, packed, sink) = (dq.reborrow(), &packed, args.sink_logits.map(|logits| logits[*head]));
            isa.run(Backward { attention, widths, vectors, stretch, head: *head, sink, q, dy, packed, dq, sums });
        }
    });
    for (_, _, sums) in &heads {
        add(vectors, stretch, &packed.tiles, attention.scale, sums.dk.get(), &mut unit.dk);
        add(vectors, stretch, &packed.tiles, 1.0, sums.dv.get(), &mut unit.dv);
        unit.dsinks.push(sums.dsink);
    }
}

/// Adds the tiles of `sums`, times a factor, to the rows of a stretch's keys.
fn add(vectors: Vectors, stretch: &Stretch, tiles: &[usize], factor: f32, sums: &[f32], out: &mut RowsMut<'_>) {
    let columns = out.cols();
    let len = along_len(vectors, columns, TILE);
    let mut row = vec![0.0; columns];
    for (i, &tile) in tiles.iter().enumerate() {
        for j in 0..TILE.min(stretch.end() - tile * TILE) {
            let Some(at) = stretch.key(tile * TILE + j).and_then(|key| stretch.row(key)) else { continue };
            read_along(vectors, columns, TILE, j, &sums[i * len..][..len], &mut row);
            let out = out.row(at - stretch.keys.start);
            out.iter_mut().zip(&row).for_each(|(out, x)| *out += factor * x);
        }
    }
}

struct Backward<'a> {
    attention: &'a Attention,
    widths: Widths,
    vectors: Vectors,
    stretch: &'a Stretch,
    head: usize,
    /// Its learned logit.
    sink: Option<f32>,
    q: Rows<'a>,
    dy: Rows<'a>,
    packed: &'a Packed,
    dq: RowsMut<'a>,
    sums: &'a mut Sums,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let count = self.stretch.queries.len();
        for from in (0..count).step_by(QUERIES) {
            let queries = from..count.min(from + QUERIES);
            if is_wide::<S>() {
                self.some::<S, 4>(simd, queries);
            } else {
                self.some::<S, 2>(simd, queries);
            }
        }
    }
}

/// A group of queries.
struct Group {
    rows: List<Row>,
    /// Queries, times a factor, and gradients in blocks of rows.
    q: List<[f32; BLOCK]>,
    dy: List<[f32; BLOCK]>,
    /// Of each row log₂ Σ 2^x, and δ.
    lse: Vec<f32>,
    delta: Vec<f32>,
}

/// A tile in the orders of three products.
struct Tile<'a, V> {
    p0: usize,
    k_across: &'a [V],
    k_along: &'a [V],
    v_across: &'a [V],
}

impl Backward<'_> {
    #[inline(always)]
    fn some<S: Simd, const N: usize>(&mut self, simd: S, queries: Range<usize>) {
        let Widths { c, dv, .. } = self.widths;
        let (first, rule) = (self.stretch.queries.start + queries.start, Rule::of(self.attention));
        let (q, dy) = (self.q.slice(first, queries.len()), self.dy.slice(first, queries.len()));
        let (rows, count) = rows(self.attention, self.stretch, queries.clone(), (self.head, 1), BLOCK);
        let mut group = Group {
            q: pack_rows::<BLOCK>(q, &rows, c, rule.q),
            dy: pack_rows::<BLOCK>(dy, &rows, dv, 1.0),
            lse: vec![0.0; rows.len()],
            delta: vec![0.0; rows.len()],
            rows,
        };
        let seen: Vec<usize> = tiles(self.attention, self.stretch, queries.clone())
            .into_iter()
            .filter_map(|tile| self.packed.tiles.binary_search(&tile).ok())
            .collect();
        self.sums_of_rows::<S, N>(simd, &rule, &seen, &mut group);
        if let Some(sink) = self.sink {
            self.sums.dsink += join_backward(sink, &mut group.lse[..count], &mut group.delta[..count]);
        }
        let pack = |columns: usize, x: Rows<'_>| {
            let mut packed = Scratch::new(along_len(self.vectors, columns, count));
            along(self.vectors, columns, count, (0..count).map(|r| Some(x.row(r))), packed.get_mut());
            packed
        };
        let (q, dy) = (pack(c, q), pack(dv, dy));
        let (mut p, mut ds) = (vec![[0.0; TILE]; group.rows.len()], vec![[0.0; TILE]; group.rows.len()]);
        let width = self.vectors.across(c);
        let mut dq = vec![simd.splat_f32s(0.0); group.rows.len() * width];
        for &at in &seen {
            let tile = self.tile::<S>(at);
            let hull = probabilities::<S, N>(simd, &rule, self.stretch.end(), &group, &tile, &mut p, &mut ds, &mut dq);
            let (dk_len, dv_len) = (along_len(self.vectors, c, TILE), along_len(self.vectors, dv, TILE));
            let dk = S::as_mut_simd_f32s(&mut self.sums.dk.get_mut()[at * dk_len..][..dk_len]).0;
            accumulate::<S, N>(simd, &ds[..count], hull.clone(), S::as_simd_f32s(q.get()).0, dk);
            let dv = S::as_mut_simd_f32s(&mut self.sums.dv.get_mut()[at * dv_len..][..dv_len]).0;
            accumulate::<S, N>(simd, &p[..count], hull, S::as_simd_f32s(dy.get()).0, dv);
        }
        let scale = simd.splat_f32s(self.attention.scale);
        for (r, dq) in dq.chunks_exact(width).take(count).enumerate() {
            let (whole, tail) = S::as_mut_simd_f32s(self.dq.row(queries.start + r));
            whole.iter_mut().zip(dq).for_each(|(out, x)| *out = simd.mul_f32s(scale, *x));
            if !tail.is_empty() {
                simd.partial_store_f32s(tail, simd.mul_f32s(scale, dq[width - 1]));
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd>(&self, at: usize) -> Tile<'_, S::f32s> {
        let Widths { c, dv, .. } = self.widths;
        let (c_len, along_len, dv_len) = (across_len(c), along_len(self.vectors, c, TILE), across_len(dv));
        Tile {
            p0: self.packed.tiles[at] * TILE,
            k_across: S::as_simd_f32s(&self.packed.k_across.get()[at * c_len..][..c_len]).0,
            k_along: S::as_simd_f32s(&self.packed.k_along.get()[at * along_len..][..along_len]).0,
            v_across: S::as_simd_f32s(&self.packed.v_across.get()[at * dv_len..][..dv_len]).0,
        }
    }

    /// The sums over keys that a row's gradients need: log₂ Σ 2^x and δ = Σ p (dy v).
    #[inline(always)]
    fn sums_of_rows<S: Simd, const N: usize>(&self, simd: S, rule: &Rule<'_>, tiles: &[usize], group: &mut Group) {
        let Widths { c, dv, .. } = self.widths;
        let (mut x, mut dp) = ([[0.0; TILE]; BLOCK], [[0.0; TILE]; BLOCK]);
        for (block, rows) in group.rows.chunks_exact(BLOCK).enumerate() {
            let mut m = [LOWEST; BLOCK];
            let mut sums = [[simd.splat_f32s(0.0); 2]; BLOCK];
            for &at in tiles {
                let tile = self.tile::<S>(at);
                let Some(seen) = Seen::of(rule.mask, rows, self.stretch.end(), tile.p0) else { continue };
                let blocks = seen.blocks(N * S::F32_LANES);
                products::<S, BLOCK, N>(simd, &group.q[block * c..][..c], tile.k_across, blocks.clone(), &mut x);
                products::<S, BLOCK, N>(simd, &group.dy[block * dv..][..dv], tile.v_across, blocks, &mut dp);
                for r in 0..BLOCK {
                    let most = m[r].max(finish(simd, rule, rows[r], &seen, &mut x[r], None));
                    let keep = power(simd, simd.splat_f32s(m[r]), simd.splat_f32s(most));
                    m[r] = most;
                    let [mut l, mut d] = sums[r].map(|sum| simd.mul_f32s(sum, keep));
                    let (x, dp) = (S::as_simd_f32s(&x[r]).0, S::as_simd_f32s(&dp[r]).0);
                    let range = seen.blocks(S::F32_LANES);
                    for (x, dp) in x[range.clone()].iter().zip(&dp[range]) {
                        let p = power(simd, *x, simd.splat_f32s(most));
                        l = simd.add_f32s(l, p);
                        d = simd.mul_add_e_f32s(p, *dp, d);
                    }
                    sums[r] = [l, d];
                }
            }
            for r in 0..BLOCK {
                let [l, d] = sums[r].map(|sum| simd.reduce_sum_f32s(sum));
                group.lse[block * BLOCK + r] = m[r] + l.log2();
                group.delta[block * BLOCK + r] = if l == 0.0 { 0.0 } else { d / l };
            }
        }
    }
}

/// p and ds of a tile, and dq += ds k. Returns the keys that some query sees.
#[inline(always)]
fn probabilities<S: Simd, const N: usize>(
    simd: S,
    rule: &Rule<'_>,
    n: usize,
    group: &Group,
    tile: &Tile<'_, S::f32s>,
    p: &mut [[f32; TILE]],
    ds: &mut [[f32; TILE]],
    dq: &mut [S::f32s],
) -> Range<usize> {
    let blocks = group.rows.len() / BLOCK;
    let (c, dv, width) = (group.q.len() / blocks, group.dy.len() / blocks, dq.len() / group.rows.len());
    let (p, ds) = (p.as_chunks_mut::<BLOCK>().0, ds.as_chunks_mut::<BLOCK>().0);
    let mut all = Range { start: TILE, end: 0 };
    let mut slopes = [1.0; TILE];
    for (block, rows) in group.rows.chunks_exact(BLOCK).enumerate() {
        let (p, ds) = (&mut p[block], &mut ds[block]);
        let Some(seen) = Seen::of(rule.mask, rows, n, tile.p0) else {
            p.as_flattened_mut().fill(0.0);
            ds.as_flattened_mut().fill(0.0);
            continue;
        };
        all = all.start.min(seen.hull.start)..all.end.max(seen.hull.end);
        let keys = seen.blocks(N * S::F32_LANES);
        products::<S, BLOCK, N>(simd, &group.q[block * c..][..c], tile.k_across, keys.clone(), p);
        products::<S, BLOCK, N>(simd, &group.dy[block * dv..][..dv], tile.v_across, keys, ds);
        let range = seen.blocks(S::F32_LANES);
        for r in 0..BLOCK {
            finish(simd, rule, rows[r], &seen, &mut p[r], Some(&mut slopes));
            let (lse, delta) = (group.lse[block * BLOCK + r], group.delta[block * BLOCK + r]);
            let (lse, delta) = (simd.splat_f32s(lse), simd.splat_f32s(delta));
            let ((p, _), (ds, _)) = (S::as_mut_simd_f32s(&mut p[r]), S::as_mut_simd_f32s(&mut ds[r]));
            let (slopes, _) = S::as_simd_f32s(&slopes);
            for i in range.clone() {
                p[i] = power(simd, p[i], lse);
                ds[i] = simd.mul_f32s(simd.mul_f32s(p[i], simd.sub_f32s(ds[i], delta)), slopes[i]);
            }
            for x in [p, ds] {
                x[..range.start].fill(simd.splat_f32s(0.0));
                x[range.end..].fill(simd.splat_f32s(0.0));
            }
        }
        let dq = &mut dq[block * BLOCK * width..][..BLOCK * width];
        values::<S, BLOCK, N>(simd, ds, seen.hull, tile.k_along, [simd.splat_f32s(1.0); BLOCK], dq);
    }
    all
}

/// out[key] += Σ_r a[r][key] x[r], both in the order along.
#[inline(always)]
fn accumulate<S: Simd, const N: usize>(
    simd: S,
    a: &[[f32; TILE]],
    hull: Range<usize>,
    x: &[S::f32s],
    out: &mut [S::f32s],
) {
    let width = out.len() / TILE;
    for from in (0..width).step_by(N) {
        let n = N.min(width - from);
        let x = &x[from * a.len()..][..n * a.len()];
        let (out, hull) = (&mut out[from * TILE..][..n * TILE], hull.clone());
        match n {
            1 => some_keys::<S, 1>(simd, a, hull, x, out),
            2 => some_keys::<S, 2>(simd, a, hull, x, out),
            3 if N > 2 => some_keys::<S, 3>(simd, a, hull, x, out),
            _ => some_keys::<S, N>(simd, a, hull, x, out),
        }
    }
}

#[inline(always)]
fn some_keys<S: Simd, const N: usize>(
    simd: S,
    a: &[[f32; TILE]],
    hull: Range<usize>,
    x: &[S::f32s],
    out: &mut [S::f32s],
) {
    let ((x, _), (out, _)) = (x.as_chunks::<N>(), out.as_chunks_mut::<N>());
    let (out, _) = out.as_chunks_mut::<KEYS>();
    let blocks = hull.start / KEYS..hull.end.div_ceil(KEYS);
    for (at, out) in blocks.clone().zip(&mut out[blocks]) {
        *out = product::transposed::<S, KEYS, N>(simd, a, at * KEYS, x, *out);
    }
}
