//! Backward: `docs/math/selective_scan.md` has the derivation.

use std::marker::PhantomData;

use pulp::bytemuck;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Saved;
use super::rule::{Bilinear, ExpEuler, Rule, Zoh};
use super::tiles::{
    BLOCK, Buffer, GROUP, SMALL, STRIDE, TILE, Unit, blocks, from_lanes, load, load_or_zero, pack, prefetch, share,
    store, take, tiles, to_lanes,
};
use crate::parallel::{grain, split};
use crate::selective_scan::{Args, Dims, Discretisation, Grads};
use crate::{Isa, Rows, RowsMut, math};

pub(in super::super) fn backward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    saved: &Saved,
    dy: Rows<'_>,
    dlast: Option<&[f32]>,
    grads: Grads<RowsMut<'_>>,
) {
    match args.rule {
        Discretisation::ExpEuler => backward_by::<ExpEuler>(isa, dims, args, saved, dy, dlast, grads),
        Discretisation::Zoh => backward_by::<Zoh>(isa, dims, args, saved, dy, dlast, grads),
        Discretisation::Bilinear => backward_by::<Bilinear>(isa, dims, args, saved, dy, dlast, grads),
    }
}

// Long: splits a dozen outputs among threads, each in the same order.
fn backward_by<R: Rule>(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    saved: &Saved,
    dy: Rows<'_>,
    dlast: Option<&[f32]>,
    grads: Grads<RowsMut<'_>>,
) {
    let Dims { b, l, d, n } = dims;
    let tiles = tiles(&args.segments, b, l);
    let most = tiles.iter().map(Vec::len).max().unwrap_or(0);
    let lanes = isa.lanes();
    // Sums over channels go by groups, so the width of a group depends only on `d`.
    let group = if d >= 8 * GROUP { 2 * GROUP } else { GROUP };
    let groups = d.div_ceil(group);
    // Sums over channels, one part per group; sums over time, one part per row of the batch.
    let mut dbc = vec![0.0; b * groups * l * 2 * n]; // [b group l (db dc) n]
    let mut da = vec![0.0; b * d * n];
    let mut channel = vec![0.0; b * d * 2]; // [b group (ddelta_bias dskip) d]

    let Grads { mut du, mut ddelta, mut dz, mut dinitial, .. } = grads;
    let mut rest = (&mut dbc[..], &mut da[..], &mut channel[..], &saved.states[..]);
    let mut units = Vec::with_capacity(b * groups);
    for (b, tiles) in tiles.iter().enumerate() {
        let (mut du_row, du_rest) = du.split_rows(l);
        let (mut ddelta_row, ddelta_rest) = ddelta.split_rows(l);
        (du, ddelta) = (du_rest, ddelta_rest);
        let mut dz_row = None;
        if let Some(all) = dz.take() {
            let (row, rest) = all.split_rows(l);
            (dz_row, dz) = (Some(row), Some(rest));
        }
        for from in (0..d).step_by(group) {
            let unit = Unit::new(dims, args, b, from, group, tiles);
            let (du_here, du_rest) = du_row.split_columns(unit.d);
            let (ddelta_here, ddelta_rest) = ddelta_row.split_columns(unit.d);
            (du_row, ddelta_row) = (du_rest, ddelta_rest);
            let mut dz_here = None;
            if let Some(row) = dz_row.take() {
                let (here, rest) = row.split_columns(unit.d);
                (dz_here, dz_row) = (Some(here), Some(rest));
            }
            units.push(Backward::<R> {
                unit,
                saved: rest.3.split_off(..unit.d.div_ceil(lanes) * most * n * lanes).expect("`saved` was checked"),
                most,
                dy: dy.slice(b * l, l).columns(from, unit.d),
                dlast: dlast.map(|dlast| &dlast[(b * d + from) * n..][..unit.d * n]),
                du: du_here,
                ddelta: ddelta_here,
                dz: dz_here,
                dinitial: dinitial.as_mut().map(|dinitial| take(dinitial, unit.d * n)),
                dbc: take(&mut rest.0, l * 2 * n),
                da: take(&mut rest.1, unit.d * n),
                channel: take(&mut rest.2, unit.d * 2),
                rule: PhantomData,
            });
        }
    }
    if b * l * d * n <= SMALL {
        units.into_iter().for_each(|unit| isa.run(unit));
    } else {
        units.into_par_iter().with_max_len(1).for_each(|unit| isa.run(unit));
    }

    for part in da.chunks_exact(d * n) {
        grads.da.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    let mut sums = [grads.ddelta_bias, grads.dskip];
    for part in channel.chunks_exact(d * 2) {
        for from in (0..d).step_by(group) {
            let width = group.min(d - from);
            for (sum, x) in sums.iter_mut().zip(part[from * 2..][..width * 2].chunks_exact(width)) {
                if let Some(sum) = sum {
                    sum[from..][..width].iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
                }
            }
        }
    }
    let rows = b * l;
    split(rows, grain(rows, groups * 2 * n, SMALL, 1), (grads.db, grads.dc), &|first, count, (mut db, mut dc)| {
        for r in 0..count {
            let (b, t) = ((first + r) / l, (first + r) % l);
            let (db, dc) = (db.row(r), dc.row(r));
            for part in 0..groups {
                let (db_part, dc_part) = dbc[((b * groups + part) * l + t) * 2 * n..][..2 * n].split_at(n);
                if part == 0 {
                    db.copy_from_slice(db_part);
                    dc.copy_from_slice(dc_part);
                } else {
                    db.iter_mut().zip(db_part).for_each(|(sum, x)| *sum += x);
                    dc.iter_mut().zip(dc_part).for_each(|(sum, x)| *sum += x);
                }
            }
        }
    });
}

/// The backward of one unit.
struct Backward<'a, R> {
    unit: Unit<'a>,
    /// `[vector tile n lanes]`
    saved: &'a [f32],
    /// Number of tiles in `saved`.
    most: usize,
    /// `[l d]`
    dy: Rows<'a>,
    /// `[d n]`
    dlast: Option<&'a [f32]>,
    /// `[l d]`
    du: RowsMut<'a>,
    /// `[l d]`
    ddelta: RowsMut<'a>,
    /// `[l d]`
    dz: Option<RowsMut<'a>>,
    /// `[d n]`
    dinitial: Option<&'a mut [f32]>,
    /// `[l (db dc) n]`, sums over the channels of the unit
    dbc: &'a mut [f32],
    /// `[d n]`
    da: &'a mut [f32],
    /// `[(ddelta_bias dskip) d]`
    channel: &'a mut [f32],
    rule: PhantomData<R>,
}

/// Values that one vector of channels stores for a tile, each `[t]`.
struct Lanes<'a, V> {
    delta: &'a [V],
    /// Δu.
    du: &'a [V],
    /// The gradient of Σ C h + D u.
    g: &'a [V],
    /// Σ C h.
    out: &'a mut [V],
    /// Σ dh κ B.
    q: &'a mut [V],
    /// Σ dx A.
    s: &'a mut [V],
}

/// Values that a block of states stores for a tile.
struct Block<'a, S: Simd, R: Rule> {
    /// `[t n]`
    coef: &'a mut [R::Coef<S>],
    /// `[1+t n]`, the state before the tile first
    h: &'a mut [S::f32s],
}

impl<R: Rule> WithSimd for Backward<'_, R> {
    type Output = ();

    // Long: one loop over tiles whose states stay in registers; `docs/math/selective_scan.md` has its steps.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Unit { d, n, tiles, .. } = self.unit;
        let vectors = self.unit.vectors::<S>();
        let zero = simd.splat_f32s(0.0);
        let mut buffers = [(); 3].map(|()| Buffer::new::<S>(vectors * n));
        let [a, dh, da] = buffers.each_mut().map(Buffer::get::<S>);
        to_lanes::<S>(self.unit.a, n, R::SCALE, a);
        if let Some(dlast) = self.dlast {
            to_lanes::<S>(dlast, n, 1.0, dh);
        }
        let mut sums = Buffer::new::<S>(vectors * 4); // of the tile, of all tiles: [vector (ddelta_bias dskip)]
        let (tile_sums, channel) = sums.get::<S>().split_at_mut(vectors * 2);
        let mut dbc = Buffer::new::<S>(2 * TILE * n);
        let (db, dc) = dbc.get::<S>().split_at_mut(TILE * n);
        let mut buffers = [(); 7].map(|()| Buffer::new::<S>(vectors * STRIDE)); // [vector t]
        let [delta, slope, du, g, out, q, s] = buffers.each_mut().map(Buffer::get::<S>);
        let mut states = Buffer::new::<S>((1 + TILE) * BLOCK);
        let mut coef = vec![R::coef(simd, zero); TILE * BLOCK];
        let mut block = Block::<S, R> { coef: &mut coef, h: states.get::<S>() };
        let mut packed = vec![0.0; 2 * TILE * n];
        let (b, c) = packed.split_at_mut(TILE * n);

        for (i, &tile) in tiles.iter().enumerate().rev() {
            pack(self.unit.b, tile, b);
            pack(self.unit.c, tile, c);
            db.fill(zero);
            dc.fill(zero);
            tile_sums.fill(zero);
            for t in 0..tile.len {
                let dy = self.dy.row(tile.from + t);
                let z = self.unit.z.map(|z| z.row(tile.from + t));
                self.unit.open::<S, true>(simd, tile.from + t, |v, step, step_slope, step_u| {
                    let at = v * STRIDE + t;
                    let dy = load(simd, dy, v * S::F32_LANES);
                    let gate = |z| simd.mul_f32s(dy, math::silu(simd, load(simd, z, v * S::F32_LANES)));
                    (delta[at], slope[at], du[at], g[at]) = (step, step_slope, step_u, z.map_or(dy, gate));
                    (out[at], q[at], s[at]) = (zero, zero, zero);
                });
            }
            let (next, parts) = (i.checked_sub(1).map(|i| tiles[i]), vectors * blocks(n).count());
            let mut part = 0;
            for v in 0..vectors {
                let before = &self.saved[(v * self.most + i) * n * S::F32_LANES..][..n * S::F32_LANES];
                let before = bytemuck::cast_slice::<f32, S::f32s>(before);
                let (a, dh, da) = (&a[v * n..][..n], &mut dh[v * n..][..n], &mut da[v * n..][..n]);
                let (at, end) = (v * STRIDE, v * STRIDE + tile.len);
                let mut lanes = Lanes {
                    delta: &delta[at..end],
                    du: &du[at..end],
                    g: &g[at..end],
                    out: &mut out[at..end],
                    q: &mut q[at..end],
                    s: &mut s[at..end],
                };
                for (n0, width) in blocks(n) {
                    let (a, before, dh, da) = (&a[n0..], &before[n0..], &mut dh[n0..], &mut da[n0..]);
                    let (b, c) = (&b[TILE * n0..], &c[TILE * n0..]);
                    let (db, dc) = (&mut db[TILE * n0..], &mut dc[TILE * n0..]);
                    if width == BLOCK {
                        block.forward::<BLOCK>(simd, a, before, b, c, &mut lanes);
                        block.backward::<BLOCK>(simd, a, dh, da, b, c, db, dc, &mut lanes);
                    } else {
                        block.forward::<1>(simd, a, before, b, c, &mut lanes);
                        block.backward::<1>(simd, a, dh, da, b, c, db, dc, &mut lanes);
                    }
                    for t in next.map_or(0..0, |next| share(next, part, parts)) {
                        self.unit.prefetch(t);
                        prefetch(self.dy.row(t));
                        for out in [&mut self.du, &mut self.ddelta].into_iter().chain(&mut self.dz) {
                            prefetch(out.row(t));
                        }
                    }
                    part += 1;
                }
            }
            for t in 0..tile.len {
                for v in 0..vectors {
                    let at = v * STRIDE + t;
                    let here = [slope[at], delta[at], g[at], out[at], q[at], s[at]];
                    self.close(simd, tile.from + t, v * S::F32_LANES, here, &mut tile_sums[2 * v..][..2]);
                }
            }
            for (sum, &more) in channel.iter_mut().zip(&*tile_sums) {
                *sum = simd.add_f32s(*sum, more);
            }
            for (n0, width) in blocks(n) {
                for t in 0..tile.len {
                    let to = &mut self.dbc[(tile.from + t) * 2 * n..][..2 * n];
                    for j in 0..width {
                        to[n0 + j] = simd.reduce_sum_f32s(db[TILE * n0 + t * width + j]);
                        to[n + n0 + j] = simd.reduce_sum_f32s(dc[TILE * n0 + t * width + j]);
                    }
                }
            }
            if tile.reset {
                dh.fill(zero);
            }
        }
        from_lanes::<S>(da, n, self.da);
        if let Some(dinitial) = self.dinitial {
            from_lanes::<S>(dh, n, dinitial);
        }
        let (bias, skip) = self.channel.split_at_mut(d);
        for (v, sums) in channel.chunks_exact(2).enumerate() {
            store(simd, bias, v * S::F32_LANES, sums[0]);
            store(simd, skip, v * S::F32_LANES, sums[1]);
        }
        let len = tiles.last().map_or(0, |tile| tile.from + tile.len);
        for t in len..self.du.rows() {
            for out in [&mut self.du, &mut self.ddelta].into_iter().chain(&mut self.dz) {
                out.row(t).fill(0.0);
            }
        }
    }
}

impl<R: Rule> Backward<'_, R> {
    /// The work after the states: the gradients of u, Δ and z, and the sums over time for the bias and D.
    #[inline(always)]
    fn close<S: Simd>(
        &mut self,
        simd: S,
        t: usize,
        from: usize,
        [slope, delta, g, out, q, s]: [S::f32s; 6],
        sums: &mut [S::f32s],
    ) {
        let unit = &self.unit;
        let skip = load_or_zero(simd, unit.skip, from);
        let u = load(simd, unit.u.row(t), from);
        let du = simd.mul_add_e_f32s(q, delta, simd.mul_f32s(skip, g));
        store(simd, self.du.row(t), from, du);
        let ddelta = simd.mul_add_e_f32s(q, u, simd.mul_f32s(s, simd.splat_f32s(R::UNSCALE)));
        let ddelta = simd.mul_f32s(ddelta, slope);
        store(simd, self.ddelta.row(t), from, ddelta);
        sums[0] = simd.add_f32s(sums[0], ddelta);
        sums[1] = simd.mul_add_e_f32s(g, u, sums[1]);
        if let (Some(z), Some(dz)) = (unit.z, &mut self.dz) {
            let dout = simd.mul_f32s(load(simd, self.dy.row(t), from), simd.mul_add_e_f32s(skip, u, out));
            let slope = math::dsilu(simd, load(simd, z.row(t), from));
            store(simd, dz.row(t), from, simd.mul_f32s(dout, slope));
        }
    }
}

impl<S: Simd, R: Rule> Block<'_, S, R> {
    /// Recomputes the recurrence of N states over a tile, storing coefficients and states.
    #[inline(always)]
    fn forward<const N: usize>(
        &mut self,
        simd: S,
        a: &[S::f32s],
        before: &[S::f32s],
        b: &[f32],
        c: &[f32],
        lanes: &mut Lanes<'_, S::f32s>,
    ) {
        let a: &[S::f32s; N] = a.first_chunk().expect("a block of states");
        let mut h: [S::f32s; N] = *before.first_chunk().expect("a block of states");
        let (b, c) = (b.as_chunks::<N>().0, c.as_chunks::<N>().0);
        let coefs = self.coef.as_chunks_mut::<N>().0;
        let (first, states) = self.h.as_chunks_mut::<N>().0.split_first_mut().expect("a state before the tile");
        *first = h;
        let time = lanes.delta.iter().zip(lanes.du).zip(&mut *lanes.out);
        for (((((&delta, &du), out), (b, c)), coefs), state) in time.zip(b.iter().zip(c)).zip(coefs).zip(states) {
            let mut sum = *out;
            for j in 0..N {
                let coef = R::coef(simd, simd.mul_f32s(delta, a[j]));
                let drive = R::drive(simd, coef, simd.mul_f32s(du, simd.splat_f32s(b[j])));
                h[j] = simd.mul_add_e_f32s(R::decay(simd, coef), h[j], drive);
                sum = simd.mul_add_e_f32s(simd.splat_f32s(c[j]), h[j], sum);
                coefs[j] = coef;
            }
            *state = h;
            *out = sum;
        }
    }

    /// The reverse recurrence dh_t = C_t g_t + Ā_{t+1} dh_{t+1} of N states over a tile. On entry `dh` is the gradient of
    /// the state after the tile, on exit that of the state before it.
    #[inline(always)]
    fn backward<const N: usize>(
        &mut self,
        simd: S,
        a: &[S::f32s],
        dh: &mut [S::f32s],
        da: &mut [S::f32s],
        b: &[f32],
        c: &[f32],
        db: &mut [S::f32s],
        dc: &mut [S::f32s],
        lanes: &mut Lanes<'_, S::f32s>,
    ) {
        let a: &[S::f32s; N] = a.first_chunk().expect("a block of states");
        let dh: &mut [S::f32s; N] = dh.first_chunk_mut().expect("a block of states");
        let da: &mut [S::f32s; N] = da.first_chunk_mut().expect("a block of states");
        let len = lanes.delta.len();
        let (b, c) = (&b.as_chunks::<N>().0[..len], &c.as_chunks::<N>().0[..len]);
        let (db, dc) = (&mut db.as_chunks_mut::<N>().0[..len], &mut dc.as_chunks_mut::<N>().0[..len]);
        let (coefs, h) = (&self.coef.as_chunks::<N>().0[..len], &self.h.as_chunks::<N>().0[..len + 1]);
        let (delta, du, g) = (&lanes.delta[..len], &lanes.du[..len], &lanes.g[..len]);
        let (q, s) = (&mut lanes.q[..len], &mut lanes.s[..len]);
        let mut carry = *dh;
        let mut sum = [simd.splat_f32s(0.0); N];
        for t in (0..len).rev() {
            let (delta, du, g) = (delta[t], du[t], g[t]);
            let (mut q_t, mut s_t) = (q[t], s[t]);
            for j in 0..N {
                let (coef, b) = (coefs[t][j], simd.splat_f32s(b[t][j]));
                let dh = simd.mul_add_e_f32s(simd.splat_f32s(c[t][j]), g, carry[j]);
                carry[j] = simd.mul_f32s(R::decay(simd, coef), dh);
                let dx = R::dx(simd, coef, dh, carry[j], h[t][j], simd.mul_f32s(du, b));
                sum[j] = simd.mul_add_e_f32s(dx, delta, sum[j]);
                s_t = simd.mul_add_e_f32s(dx, a[j], s_t);
                let driven = R::drive(simd, coef, dh);
                q_t = simd.mul_add_e_f32s(driven, b, q_t);
                db[t][j] = simd.mul_add_e_f32s(driven, du, db[t][j]);
                dc[t][j] = simd.mul_add_e_f32s(g, h[t + 1][j], dc[t][j]);
            }
            (q[t], s[t]) = (q_t, s_t);
        }
        *dh = carry;
        for j in 0..N {
            da[j] = simd.add_f32s(da[j], sum[j]);
        }
    }
}
