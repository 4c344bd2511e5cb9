//! Forward and step.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::Saved;
use super::rule::{Bilinear, ExpEuler, Rule, Zoh};
use super::tiles::{
    BLOCK, Buffer, GROUP, SMALL, STRIDE, TILE, Unit, blocks, from_lanes, load, pack, prefetch, share, store, take,
    tiles, to_lanes,
};
use crate::parallel::{self, Columns, Cut};
use crate::selective_scan::{Args, Dims, Discretisation};
use crate::{Isa, Rows, RowsMut, math};

pub(in super::super) fn forward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    y: RowsMut<'_>,
    last: &mut [f32],
    saved: Option<&mut Saved>,
) {
    match args.rule {
        Discretisation::ExpEuler => forward_by::<ExpEuler>(isa, dims, args, y, last, saved),
        Discretisation::Zoh => forward_by::<Zoh>(isa, dims, args, y, last, saved),
        Discretisation::Bilinear => forward_by::<Bilinear>(isa, dims, args, y, last, saved),
    }
}

fn forward_by<R: Rule>(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    mut y: RowsMut<'_>,
    mut last: &mut [f32],
    saved: Option<&mut Saved>,
) {
    let Dims { b, l, d, n } = dims;
    let tiles = tiles(&args.segments, b, l);
    let most = tiles.iter().map(Vec::len).max().unwrap_or(0);
    let lanes = isa.lanes();
    let mut saved = saved.map(|saved| {
        saved.made_for = Some((dims, lanes));
        saved.states.resize(b * d.div_ceil(lanes) * most * n * lanes, 0.0);
        &mut saved.states[..]
    });
    let mut initial = args.initial;
    // A wider group means that a tile touches fewer memory pages; results do not depend on it.
    let group = (b * d).div_ceil(4 * rayon::current_num_threads()).next_multiple_of(GROUP).clamp(GROUP, 4 * GROUP);
    let mut units = Vec::with_capacity(b * d.div_ceil(group));
    for (b, tiles) in tiles.iter().enumerate() {
        let (row, rest) = y.split_rows(l);
        y = rest;
        let mut row = row;
        for from in (0..d).step_by(group) {
            let unit = Unit::new(dims, args, b, from, group, tiles);
            let (columns, rest) = row.split_columns(unit.d);
            row = rest;
            units.push(Forward::<R> {
                unit,
                initial: initial
                    .as_mut()
                    .map(|initial| initial.split_off(..unit.d * n).expect("`initial` was checked")),
                y: columns,
                last: take(&mut last, unit.d * n),
                saved: saved.as_mut().map(|saved| take(saved, unit.d.div_ceil(lanes) * most * n * lanes)),
                most,
                rule: PhantomData,
            });
        }
    }
    if b * l * d * n <= SMALL {
        units.into_iter().for_each(|unit| isa.run(unit));
    } else {
        parallel::each(units, &|unit| isa.run(unit));
    }
}

/// The forward of one unit.
struct Forward<'a, R> {
    unit: Unit<'a>,
    /// `[d n]`
    initial: Option<&'a [f32]>,
    /// `[l d]`
    y: RowsMut<'a>,
    /// `[d n]`
    last: &'a mut [f32],
    /// `[vector tile n lanes]`
    saved: Option<&'a mut [f32]>,
    /// Number of tiles in `saved`.
    most: usize,
    rule: PhantomData<R>,
}

impl<R: Rule> WithSimd for Forward<'_, R> {
    type Output = ();

    // Long: one loop over tiles whose states stay in registers; the pseudo-code is above the module.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Unit { d, n, tiles, .. } = self.unit;
        let vectors = self.unit.vectors::<S>();
        let mut a = Buffer::new::<S>(vectors * n);
        let a = a.get::<S>();
        to_lanes::<S>(self.unit.a, n, R::SCALE, a);
        let mut h = Buffer::new::<S>(vectors * n);
        let h = h.get::<S>();
        if let Some(initial) = self.initial {
            to_lanes::<S>(initial, n, 1.0, h);
        }
        let mut buffers = [(); 3].map(|()| Buffer::new::<S>(vectors * STRIDE)); // [vector t]
        let [delta, du, out] = buffers.each_mut().map(Buffer::get::<S>);
        let mut packed = vec![0.0; 2 * TILE * n];
        let (b, c) = packed.split_at_mut(TILE * n);

        for (i, &tile) in tiles.iter().enumerate() {
            if tile.reset {
                h.fill(simd.splat_f32s(0.0));
            }
            pack(self.unit.b, tile, b);
            pack(self.unit.c, tile, c);
            for t in 0..tile.len {
                self.unit.open::<S, false>(simd, tile.from + t, |v, step, _, step_u| {
                    delta[v * STRIDE + t] = step;
                    du[v * STRIDE + t] = step_u;
                    out[v * STRIDE + t] = simd.splat_f32s(0.0);
                });
            }
            let (next, parts) = (tiles.get(i + 1), vectors * blocks(n).count());
            let mut part = 0;
            for v in 0..vectors {
                let (a, h) = (&a[v * n..][..n], &mut h[v * n..][..n]);
                if let Some(saved) = &mut self.saved {
                    let at = (v * self.most + i) * n * S::F32_LANES;
                    saved[at..][..n * S::F32_LANES].copy_from_slice(pulp::bytemuck::cast_slice(h));
                }
                let (delta, du) = (&delta[v * STRIDE..][..tile.len], &du[v * STRIDE..][..tile.len]);
                let out = &mut out[v * STRIDE..][..tile.len];
                for (n0, width) in blocks(n) {
                    let (a, h, b, c) = (&a[n0..], &mut h[n0..], &b[TILE * n0..], &c[TILE * n0..]);
                    if width == BLOCK {
                        block_forward::<S, R, BLOCK>(simd, a, h, b, c, delta, du, out);
                    } else {
                        block_forward::<S, R, 1>(simd, a, h, b, c, delta, du, out);
                    }
                    for t in next.map_or(0..0, |&next| share(next, part, parts)) {
                        self.unit.prefetch(t);
                        prefetch(self.y.row(t));
                    }
                    part += 1;
                }
            }
            for t in tile.from..tile.from + tile.len {
                let y = self.y.row(t);
                for v in 0..vectors {
                    let (from, sum) = (v * S::F32_LANES, out[v * STRIDE + t - tile.from]);
                    store(simd, y, from, finish(simd, &self.unit, t, from, sum));
                }
            }
        }
        from_lanes::<S>(h, n, self.last);
        let len = tiles.last().map_or(0, |tile| tile.from + tile.len);
        for t in len..self.y.rows() {
            self.y.row(t)[..d].fill(0.0);
        }
    }
}

/// The end of a position: D u and the gate.
#[inline(always)]
fn finish<S: Simd>(simd: S, unit: &Unit<'_>, t: usize, from: usize, mut out: S::f32s) -> S::f32s {
    if let Some(skip) = unit.skip {
        out = simd.mul_add_e_f32s(load(simd, skip, from), load(simd, unit.u.row(t), from), out);
    }
    if let Some(z) = unit.z {
        out = simd.mul_f32s(out, math::silu(simd, load(simd, z.row(t), from)));
    }
    out
}

/// The recurrence of N states over a tile, adding C h to `out`.
#[inline(always)]
fn block_forward<S: Simd, R: Rule, const N: usize>(
    simd: S,
    a: &[S::f32s],
    h: &mut [S::f32s],
    b: &[f32],
    c: &[f32],
    delta: &[S::f32s],
    du: &[S::f32s],
    out: &mut [S::f32s],
) {
    let a: &[S::f32s; N] = a.first_chunk().expect("a block of states");
    let state: &mut [S::f32s; N] = h.first_chunk_mut().expect("a block of states");
    let mut h = *state;
    let (b, c) = (b.as_chunks::<N>().0, c.as_chunks::<N>().0);
    for ((((&delta, &du), out), b), c) in delta.iter().zip(du).zip(out).zip(b).zip(c) {
        let mut sum = *out;
        for j in 0..N {
            h[j] = advance::<S, R>(simd, delta, du, a[j], simd.splat_f32s(b[j]), h[j]);
            sum = simd.mul_add_e_f32s(simd.splat_f32s(c[j]), h[j], sum);
        }
        *out = sum;
    }
    *state = h;
}

/// h_t from h_{t-1}.
#[inline(always)]
fn advance<S: Simd, R: Rule>(simd: S, delta: S::f32s, du: S::f32s, a: S::f32s, b: S::f32s, h: S::f32s) -> S::f32s {
    let coef = R::coef(simd, simd.mul_f32s(delta, a));
    let drive = R::drive(simd, coef, simd.mul_f32s(du, b));
    simd.mul_add_e_f32s(R::decay(simd, coef), h, drive)
}

pub(in super::super) fn step(isa: Isa, dims: Dims, args: &Args<Rows<'_>>, state: &mut [f32], y: RowsMut<'_>) {
    match args.rule {
        Discretisation::ExpEuler => step_by::<ExpEuler>(isa, dims, args, state, y),
        Discretisation::Zoh => step_by::<Zoh>(isa, dims, args, state, y),
        Discretisation::Bilinear => step_by::<Bilinear>(isa, dims, args, state, y),
    }
}

fn step_by<R: Rule>(isa: Isa, dims: Dims, args: &Args<Rows<'_>>, state: &mut [f32], y: RowsMut<'_>) {
    let Dims { b, d, n, .. } = dims;
    let state = RowsMut::strided(state, b, d * n, d * n).expect("the contract checked the length");
    let grain = parallel::grain(d, b * n, SMALL, GROUP);
    parallel::split(d, grain, (Columns(y), Wide(state, n)), &|from, count, (Columns(y), Wide(state, _))| {
        isa.run(Step::<R> { dims, args, from, count, state, y, rule: PhantomData });
    });
}

/// Channels whose sums run beside each other: each is a chain of dependent additions.
const CHAINS: usize = 8;

/// Σ C h of up to [`CHAINS`] channels, each in the order of the states.
#[inline(always)]
fn read<S: Simd>(c: &[f32], h: &[f32], out: &mut [f32]) {
    let n = c.len();
    let fused = |c: f32, h: f32, sum: f32| if S::IS_SCALAR { c * h + sum } else { c.mul_add(h, sum) };
    if h.len() == CHAINS * n {
        let h: [&[f32]; CHAINS] = std::array::from_fn(|i| &h[i * n..][..n]);
        let mut sums = [0.0; CHAINS];
        for (j, &c) in c.iter().enumerate() {
            for i in 0..CHAINS {
                sums[i] = fused(c, h[i][j], sums[i]);
            }
        }
        out.copy_from_slice(&sums);
    } else {
        for (h, out) in h.chunks_exact(n).zip(out) {
            *out = c.iter().zip(h).fold(0.0, |sum, (&c, &h)| fused(c, h, sum));
        }
    }
}

/// A matrix that is split at a unit of `.1` columns.
struct Wide<'a>(RowsMut<'a>, usize);

impl Cut for Wide<'_> {
    fn cut(self, at: usize) -> (Self, Self) {
        let (left, right) = self.0.split_columns(at * self.1);
        (Self(left, self.1), Self(right, self.1))
    }
}

/// One position. A state is `[d n]`, so here lanes are neighbouring states of a channel: the same operations on each
/// number as in [`block_forward`], and Σ C h in the same order, without a transposition.
struct Step<'s, 'a, R> {
    dims: Dims,
    args: &'a Args<Rows<'s>>,
    /// The first of its channels, and their number.
    from: usize,
    count: usize,
    /// `[b, count n]`.
    state: RowsMut<'a>,
    /// `[b count]`.
    y: RowsMut<'a>,
    rule: PhantomData<R>,
}

impl<R: Rule> WithSimd for Step<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dims, args, from: first, count, mut state, mut y, .. } = self;
        let Dims { b, n, .. } = dims;
        let scale = simd.splat_f32s(R::SCALE);
        for b_ in 0..b {
            let y = y.row(b_);
            if args.segments.len(b_, 1) == 0 {
                y.fill(0.0);
                continue;
            }
            let state = state.row(b_);
            if args.segments.reset(b_, 0, 1) {
                state.fill(0.0);
            }
            let (b, c) = (args.b.row(b_), args.c.row(b_));
            for from in (0..count).step_by(GROUP) {
                let unit = Unit::new(Dims { l: 1, ..dims }, args, b_, first + from, GROUP.min(count - from), &[]);
                let (mut delta, mut du, mut out) = ([0.0; GROUP], [0.0; GROUP], [0.0; GROUP]);
                unit.open::<S, false>(simd, 0, |v, step, _, step_u| {
                    store(simd, &mut delta, v * S::F32_LANES, step);
                    store(simd, &mut du, v * S::F32_LANES, step_u);
                });
                let states = &mut state[from * n..][..unit.d * n];
                for (i, h) in states.chunks_exact_mut(n).enumerate() {
                    let a = &unit.a[i * n..][..n];
                    let (delta, du) = (simd.splat_f32s(delta[i]), simd.splat_f32s(du[i]));
                    for at in (0..n).step_by(S::F32_LANES) {
                        let a = simd.mul_f32s(load(simd, a, at), scale);
                        let new = advance::<S, R>(simd, delta, du, a, load(simd, b, at), load(simd, h, at));
                        store(simd, h, at, new);
                    }
                }
                for (h, out) in states.chunks(CHAINS * n).zip(out.chunks_mut(CHAINS)) {
                    read::<S>(c, h, out);
                }
                for at in (0..unit.d).step_by(S::F32_LANES) {
                    let sum = load(simd, &out, at);
                    store(simd, &mut y[from..][..unit.d], at, finish(simd, &unit, 0, at, sum));
                }
            }
        }
    }
}
