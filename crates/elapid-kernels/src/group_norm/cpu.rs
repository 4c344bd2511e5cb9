//! On the CPU: rows are split among threads; a group of a row stays in the L1 cache from one pass to the next.
//!
//! ```text
//! u = x [silu(z)]                 into y, or in the backward into scratch
//! [u -= sum(u) / width]
//! rstd = 1 / sqrt(dot(u, u) / width + eps)
//! y = u rstd weight + bias [silu(z)]
//! ```
//!
//! Departures from naive:
//! - sums run in four vectors, to hide the latency of additions; their order depends on the width of a group alone;
//! - gradients of parameters are summed over blocks of rows that depend only on the number of rows, then over the blocks.

use pulp::{Simd, WithSimd};

use super::args::CHECK;
use super::{Args, Grads, Place};
use crate::error::Result;
use crate::math::{silu, silu_dsilu};
use crate::parallel::{self, Cut, Each};
use crate::{Isa, Rows, RowsMut};

/// Minimum number of elements for waking a thread.
const LEAST: usize = 1 << 15;

impl<'a> Args<Rows<'a>> {
    fn slice(&self, from: usize, rows: usize) -> Self {
        let gate = self.gate.map(|gate| super::Gate { z: gate.z.slice(from, rows), ..gate });
        Self { x: self.x.slice(from, rows), gate, ..*self }
    }
}

pub(super) fn forward(isa: Isa, args: &Args<Rows<'_>>, y: RowsMut<'_>) {
    let (m, d) = args.x.shape();
    parallel::split(m, parallel::grain(m, d, LEAST, 1), y, &|from, rows, y| {
        isa.run(Forward { args: args.slice(from, rows), y });
    });
}

/// The elements of a group of a row, or of a parameter that has these.
#[inline(always)]
fn group(row: &[f32], from: usize, width: usize) -> &[f32] {
    if row.len() == width { row } else { &row[from..][..width] }
}

/// Channels `from..from + width` of row `r`.
#[derive(Clone, Copy)]
struct Group<'a> {
    x: &'a [f32],
    before: Option<&'a [f32]>,
    after: Option<&'a [f32]>,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    centred: bool,
    eps: f32,
}

impl<'a> Group<'a> {
    #[inline(always)]
    fn of(args: &Args<Rows<'a>>, r: usize, from: usize, width: usize) -> Self {
        let gate = |place| args.z(place).map(|z| &z.row(r)[from..][..width]);
        Self {
            x: &args.x.row(r)[from..][..width],
            before: gate(Place::Before),
            after: gate(Place::After),
            weight: args.weight.map(|weight| group(weight, from, width)),
            bias: args.bias.map(|bias| group(bias, from, width)),
            centred: args.centred,
            eps: args.eps,
        }
    }

    /// Writes u without its mean, and returns rstd.
    #[inline(always)]
    fn centre<S: Simd>(&self, simd: S, u: &mut [f32]) -> f32 {
        let width = u.len() as f32;
        match self.before {
            None => u.copy_from_slice(self.x),
            Some(z) => {
                for i in vectors::<S>(u.len()) {
                    store(simd, u, i, simd.mul_f32s(load(simd, self.x, i), silu(simd, load(simd, z, i))));
                }
            }
        }
        if self.centred {
            let mean = sum(simd, u) / width;
            u.iter_mut().for_each(|u| *u -= mean);
        }
        1.0 / (dot(simd, u, u) / width + self.eps).sqrt()
    }

    /// û weight + bias of a vector of û at `i`.
    #[inline(always)]
    fn affine<S: Simd>(&self, simd: S, hat: S::f32s, i: usize) -> S::f32s {
        let mut n = hat;
        if let Some(weight) = self.weight {
            n = simd.mul_f32s(n, load(simd, weight, i));
        }
        if let Some(bias) = self.bias {
            n = simd.add_f32s(n, load(simd, bias, i));
        }
        n
    }
}

struct Forward<'i, 'o> {
    args: Args<Rows<'i>>,
    y: RowsMut<'o>,
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let width = self.args.x.cols() / self.args.groups;
        for r in 0..self.args.x.rows() {
            for (k, y) in self.y.row(r).chunks_exact_mut(width.max(1)).enumerate() {
                let group = Group::of(&self.args, r, k * width, width);
                let rstd = simd.splat_f32s(group.centre(simd, y));
                for i in vectors::<S>(width) {
                    let mut n = group.affine(simd, simd.mul_f32s(load(simd, y, i), rstd), i);
                    if let Some(z) = group.after {
                        n = simd.mul_f32s(n, silu(simd, load(simd, z, i)));
                    }
                    store(simd, y, i, n);
                }
            }
        }
    }
}

/// Rows per block of the parameters' gradients, for `m` rows: at most 64 blocks.
fn block(m: usize) -> usize {
    m.div_ceil(64).max(32)
}

pub(super) fn backward(isa: Isa, args: &Args<Rows<'_>>, dy: Rows<'_>, grads: Grads<RowsMut<'_>>) -> Result<()> {
    let Grads { dx, dz, mut dweight, mut dbias } = grads;
    let (m, d) = dy.shape();
    let block = block(m);
    let widths = (dweight.as_ref().map_or(0, |w| w.len()), dbias.as_ref().map_or(0, |b| b.len()));
    let columns = widths.0 + widths.1;
    let mut partial = vec![0.0; CHECK.product("dweight", &[m.div_ceil(block), columns])?];
    let grain = if m * d <= LEAST { usize::MAX } else { block };
    let outputs = (dx, dz, Partial { sums: Each(&mut partial, columns), block });
    parallel::split(m, grain, outputs, &|from, count, (dx, dz, partial)| {
        let mut scratch = vec![0.0; 2 * (d / args.groups)];
        let (mut rest, mut sums) = (Some((dx, dz)), partial.sums.0);
        // A part is whole blocks: one where threads share the work, all of them where one thread does it.
        for first in (from..from + count).step_by(block) {
            let Some(all) = rest.take() else { break };
            let rows = block.min(from + count - first);
            let ((dx, dz), below) = all.cut(rows);
            rest = Some(below);
            let (own, others) = std::mem::take(&mut sums).split_at_mut(columns);
            sums = others;
            let (dweight, dbias) = own.split_at_mut(widths.0);
            let (args, dy) = (args.slice(first, rows), dy.slice(first, rows));
            isa.run(Backward { args, dy, dx, dz, dweight, dbias, scratch: &mut scratch });
        }
    });
    for part in partial.chunks_exact(columns.max(1)) {
        let (of_weight, of_bias) = part.split_at(widths.0);
        for (to, from) in [(&mut dweight, of_weight), (&mut dbias, of_bias)] {
            to.iter_mut().flat_map(|to| to.iter_mut()).zip(from).for_each(|(to, from)| *to += from);
        }
    }
    Ok(())
}

/// The parameters' gradients of each block of rows, split where rows are.
struct Partial<'a> {
    sums: Each<'a>,
    block: usize,
}

impl Cut for Partial<'_> {
    fn cut(self, at: usize) -> (Self, Self) {
        let (left, right) = self.sums.cut(at / self.block);
        (Self { sums: left, ..self }, Self { sums: right, ..self })
    }
}

struct Backward<'i, 'o> {
    args: Args<Rows<'i>>,
    dy: Rows<'o>,
    dx: RowsMut<'o>,
    dz: Option<RowsMut<'o>>,
    /// Empty: not wanted.
    dweight: &'o mut [f32],
    dbias: &'o mut [f32],
    /// û and g of a group.
    scratch: &'o mut [f32],
}

impl WithSimd for Backward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let width = self.args.x.cols() / self.args.groups;
        let (hat, g) = self.scratch.split_at_mut(width);
        for r in 0..self.args.x.rows() {
            for from in (0..self.args.groups).map(|k| k * width) {
                let group = Group::of(&self.args, r, from, width);
                let dy = &self.dy.row(r)[from..][..width];
                let mut dz = self.dz.as_mut().map(|dz| &mut dz.row(r)[from..][..width]);
                let dweight = of_group(self.dweight, from, width);
                let dbias = of_group(self.dbias, from, width);
                let rstd = group.centre(simd, hat);
                group.outer(simd, dy, rstd, (hat, g), dz.as_deref_mut(), (dweight, dbias));
                group.inner(simd, rstd, (hat, g), &mut self.dx.row(r)[from..][..width], dz);
            }
        }
    }
}

/// [`group`] of a gradient, or nothing where it is not wanted.
#[inline(always)]
fn of_group(row: &mut [f32], from: usize, width: usize) -> &mut [f32] {
    if row.len() <= width { row } else { &mut row[from..][..width] }
}

impl Group<'_> {
    /// From dy to g, the gradient of û; `hat` becomes û.
    #[inline(always)]
    fn outer<S: Simd>(
        &self,
        simd: S,
        dy: &[f32],
        rstd: f32,
        (hat, g): (&mut [f32], &mut [f32]),
        mut dz: Option<&mut [f32]>,
        (dweight, dbias): (&mut [f32], &mut [f32]),
    ) {
        let rstd = simd.splat_f32s(rstd);
        for i in vectors::<S>(hat.len()) {
            let h = simd.mul_f32s(load(simd, hat, i), rstd);
            store(simd, hat, i, h);
            let mut dn = load(simd, dy, i);
            if let Some(z) = self.after {
                let (silu, slope) = silu_dsilu(simd, load(simd, z, i));
                if let Some(dz) = &mut dz {
                    store(simd, dz, i, simd.mul_f32s(simd.mul_f32s(dn, slope), self.affine(simd, h, i)));
                }
                dn = simd.mul_f32s(dn, silu);
            }
            if !dweight.is_empty() {
                store(simd, dweight, i, simd.mul_add_e_f32s(dn, h, load(simd, dweight, i)));
            }
            if !dbias.is_empty() {
                store(simd, dbias, i, simd.add_f32s(dn, load(simd, dbias, i)));
            }
            if let Some(weight) = self.weight {
                dn = simd.mul_f32s(dn, load(simd, weight, i));
            }
            store(simd, g, i, dn);
        }
    }

    /// From g to dx, and to dz of a gate before the norm.
    #[inline(always)]
    fn inner<S: Simd>(
        &self,
        simd: S,
        rstd: f32,
        (hat, g): (&[f32], &[f32]),
        dx: &mut [f32],
        mut dz: Option<&mut [f32]>,
    ) {
        let width = hat.len() as f32;
        let mean_g = simd.splat_f32s(if self.centred { sum(simd, g) / width } else { 0.0 });
        let mean_dot = simd.splat_f32s(dot(simd, g, hat) / width);
        let rstd = simd.splat_f32s(rstd);
        for i in vectors::<S>(hat.len()) {
            let du = simd.sub_f32s(load(simd, g, i), mean_g);
            let du = simd.sub_f32s(du, simd.mul_f32s(load(simd, hat, i), mean_dot));
            let mut du = simd.mul_f32s(du, rstd);
            if let Some(z) = self.before {
                let (silu, slope) = silu_dsilu(simd, load(simd, z, i));
                if let Some(dz) = &mut dz {
                    store(simd, dz, i, simd.mul_f32s(simd.mul_f32s(du, slope), load(simd, self.x, i)));
                }
                du = simd.mul_f32s(du, silu);
            }
            store(simd, dx, i, du);
        }
    }
}

/// The first element of each vector. Loops are not closures: these would not have the vector instructions of their caller.
#[inline(always)]
fn vectors<S: Simd>(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(S::F32_LANES)
}

/// The vector from element `i` on; lanes after the end are 0.
#[inline(always)]
fn load<S: Simd>(simd: S, x: &[f32], i: usize) -> S::f32s {
    let rest = &x[i..];
    match S::as_simd_f32s(rest).0.first() {
        Some(&whole) => whole,
        None => simd.partial_load_f32s(rest),
    }
}

/// The inverse of [`load`].
#[inline(always)]
fn store<S: Simd>(simd: S, x: &mut [f32], i: usize, value: S::f32s) {
    let rest = &mut x[i..];
    match S::as_mut_simd_f32s(rest).0.first_mut() {
        Some(whole) => *whole = value,
        None => simd.partial_store_f32s(rest, value),
    }
}

#[inline(always)]
fn sum<S: Simd>(simd: S, a: &[f32]) -> f32 {
    reduce(simd, a, None)
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    reduce(simd, a, Some(b))
}

/// Σ a b, in an order that depends on the length only; without b, Σ a.
#[inline(always)]
fn reduce<S: Simd>(simd: S, a: &[f32], b: Option<&[f32]>) -> f32 {
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (stride, lanes) = (4 * S::F32_LANES, S::F32_LANES);
    let whole = a.len() / stride * stride;
    for from in (0..whole).step_by(stride) {
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = add_product(simd, a, b, from + j * lanes, *sum);
        }
    }
    for (sum, i) in sums.iter_mut().zip((whole..a.len()).step_by(lanes)) {
        *sum = add_product(simd, a, b, i, *sum);
    }
    let pairs = [simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3])];
    simd.reduce_sum_f32s(simd.add_f32s(pairs[0], pairs[1]))
}

#[inline(always)]
fn add_product<S: Simd>(simd: S, a: &[f32], b: Option<&[f32]>, i: usize, sum: S::f32s) -> S::f32s {
    match b {
        Some(b) => simd.mul_add_e_f32s(load(simd, a, i), load(simd, b, i), sum),
        None => simd.add_f32s(load(simd, a, i), sum),
    }
}
