//! On the CPU: lanes are channels, and time is sequential.
//!
//! ```text
//! for each row of the batch and block of channels, in parallel:
//!   for each position (backward: last to first):
//!     for each vector of channels: h = a h + x    (backward: g = dh + c; dx = g, da = g h before; c = a g)
//! ```
//!
//! Departures from naive:
//! - positions are the outer loop, so that rows are read as they lie in memory; the state of a block stays in the L1 cache;
//! - no sum over time is split, so neither chunks nor threads change a bit. Gradients of parameters are summed over a row of
//!   the batch, then over the batch in order.

use pulp::{Simd, WithSimd};

use super::args::{LEAST_SQUARE, SHARPNESS};
use super::{Args, Decay, DecayGrads, Dims, Field, Grads, Outputs, RgLru};
use crate::math::{exp, sigmoid, softplus_sigmoid};
use crate::parallel;
use crate::{Isa, Rows, RowsMut};

/// Elements below which no thread is woken.
const SMALL: usize = 1 << 15;
/// Blocks of channels are multiples of this.
const BLOCK: usize = 64;

/// The channels of a block, of rows of both parts.
struct Part<'a> {
    re: RowsMut<'a>,
    im: Option<RowsMut<'a>>,
}

impl Part<'_> {
    fn zero(&mut self, r: usize) {
        self.re.row(r).fill(0.0);
        self.im.iter_mut().for_each(|im| im.row(r).fill(0.0));
    }

    fn row(&mut self, r: usize) -> (&mut [f32], Option<&mut [f32]>) {
        (self.re.row(r), self.im.as_mut().map(|im| im.row(r)))
    }
}

/// Where a block is.
#[derive(Debug, Clone, Copy)]
struct Block {
    b: usize,
    from: usize,
    width: usize,
}

/// All blocks: batch by batch.
fn blocks(dims: Dims, field: Field) -> Vec<Block> {
    let Dims { b, l, d } = dims;
    // A wider block reads longer pieces of rows; results do not depend on it.
    let enough = (4 * rayon::current_num_threads()).div_ceil(b.max(1));
    let small = b * l * d * field.parts() <= SMALL;
    let width = if small { d } else { d.div_ceil(enough).next_multiple_of(BLOCK) };
    let of_row = |b| (0..d).step_by(width).map(move |from| Block { b, from, width: width.min(d - from) });
    (0..b).flat_map(of_row).collect()
}

/// A matrix with `l` rows of `[(p d)]` for each row of the batch, cut into the blocks.
fn cut<'a>(mut m: RowsMut<'a>, l: usize, field: Field, blocks: &[Block]) -> Vec<Part<'a>> {
    let mut parts = Vec::with_capacity(blocks.len());
    let mut row: Option<Part<'a>> = None;
    for &Block { from, width, .. } in blocks {
        if from == 0 {
            let (of_batch, rest) = m.split_rows(l);
            m = rest;
            let d = of_batch.cols() / field.parts();
            let (re, im) = of_batch.split_columns(d);
            row = Some(Part { re, im: (field == Field::Complex).then_some(im) });
        }
        let Some(Part { re, im }) = row.take() else { break };
        let (re, rest) = re.split_columns(width);
        let (im, im_rest) = im.map(|im| im.split_columns(width)).unzip();
        row = Some(Part { re: rest, im: im_rest });
        parts.push(Part { re, im });
    }
    parts
}

/// [`cut`] of a matrix that may be absent.
fn optional<'a>(m: Option<RowsMut<'a>>, l: usize, field: Field, blocks: &[Block]) -> Vec<Option<Part<'a>>> {
    match m {
        Some(m) => cut(m, l, field, blocks).into_iter().map(Some).collect(),
        None => blocks.iter().map(|_| None).collect(),
    }
}

fn run<K: WithSimd<Output = ()> + Send>(isa: Isa, elements: usize, units: Vec<K>) {
    if elements <= SMALL || units.len() == 1 {
        units.into_iter().for_each(|unit| isa.run(unit));
    } else {
        parallel::each(units, &|unit| isa.run(unit));
    }
}

pub(super) fn forward(isa: Isa, dims: Dims, args: &Args<Rows<'_>>, h: RowsMut<'_>, last: &mut [f32]) {
    match args.initial {
        Some(initial) => last.copy_from_slice(initial),
        None => last.fill(0.0),
    }
    advance(isa, dims, args, h, last, args.initial.is_some());
}

pub(super) fn step(isa: Isa, dims: Dims, args: &Args<Rows<'_>>, state: &mut [f32], h: RowsMut<'_>) {
    advance(isa, dims, args, h, state, true);
}

/// `given`: whether the state is one from before.
fn advance(isa: Isa, dims: Dims, args: &Args<Rows<'_>>, h: RowsMut<'_>, state: &mut [f32], given: bool) {
    let (blocks, columns) = (blocks(dims, args.field), dims.columns(args));
    let h = cut(h, dims.l, args.field, &blocks);
    let state = cut(RowsMut::new(state, columns), 1, args.field, &blocks);
    let units = blocks.iter().zip(h).zip(state);
    let unit = |((&block, h), state)| Forward { read: Read { dims, args: *args, block, given }, h, state };
    run(isa, dims.b * dims.l * columns, units.map(unit).collect());
}

/// What a block reads.
struct Read<'a> {
    dims: Dims,
    args: Args<Rows<'a>>,
    block: Block,
    /// Whether the state before the first position is one from before.
    given: bool,
}

/// One position of a row.
#[derive(Clone, Copy)]
struct At {
    /// The position, and its row among all.
    t: usize,
    row: usize,
    /// The position before in the order of the recurrence; none at the first one.
    before: Option<usize>,
    /// Whether nothing passes from there.
    cut: bool,
    /// Whether a segment starts here.
    start: bool,
}

impl<'a> Read<'a> {
    fn len(&self) -> usize {
        self.args.segments.len(self.block.b, self.dims.l)
    }

    /// Position `s` in the order of the recurrence.
    fn at(&self, s: usize) -> At {
        let (l, b, len) = (self.dims.l, self.block.b, self.len());
        let reverse = self.args.reverse;
        let t = if reverse { len - 1 - s } else { s };
        let reset = if reverse { t + 1 } else { t };
        let cut = reset < len && self.args.segments.reset(b, reset, l);
        let before = (s > 0).then(|| b * l + if reverse { t + 1 } else { t - 1 });
        At { t, row: b * l + t, before, cut, start: cut || s == 0 && !self.given }
    }

    /// Whether nothing passes to the state behind the row.
    fn ends_cut(&self) -> bool {
        self.args.reverse && self.len() > 0 && self.args.segments.reset(self.block.b, 0, self.dims.l)
    }

    /// The block's channels of a row.
    #[inline(always)]
    fn parts<'r>(&self, row: &'r [f32]) -> [&'r [f32]; 2] {
        let Block { from, width, .. } = self.block;
        let im = match self.args.field {
            Field::Real => &row[..0],
            Field::Complex => &row[self.dims.d + from..][..width],
        };
        [&row[from..][..width], im]
    }

    /// a of a row; for an RG-LRU and a logarithm this is not it.
    #[inline(always)]
    fn factors(&self, row: usize) -> [&'a [f32]; 2] {
        match &self.args.decay {
            Decay::Constant(a) => self.parts(a),
            Decay::Values(a) | Decay::Logs(a) => self.parts(a.row(row)),
            Decay::RgLru(_) => [&[]; 2],
        }
    }

    /// The gates of an RG-LRU, and 8 softplus(Λ) and σ(Λ) of its channels.
    #[inline(always)]
    fn gates<S: Simd>(&self, simd: S) -> Option<Gates<'a>> {
        let Decay::RgLru(RgLru { recurrence, input, lambda }) = self.args.decay else { return None };
        let Block { from, width, .. } = self.block;
        let [mut rate, mut slope] = [(); 2].map(|()| vec![0.0; width]);
        let lambda = &lambda[from..][..width];
        for i in vectors::<S>(width) {
            let (softplus, sigmoid) = softplus_sigmoid(simd, load(simd, lambda, i));
            store(simd, &mut rate, i, simd.mul_f32s(softplus, simd.splat_f32s(SHARPNESS)));
            store(simd, &mut slope, i, sigmoid);
        }
        Some(Gates { recurrence: recurrence.columns(from, width), input: input.columns(from, width), rate, slope })
    }
}

/// The gates of an RG-LRU in a block.
struct Gates<'a> {
    recurrence: Rows<'a>,
    input: Rows<'a>,
    /// 8 softplus(Λ).
    rate: Vec<f32>,
    /// σ(Λ).
    slope: Vec<f32>,
}

/// The gates of a vector: r, i, a, 1 - a² and its root.
struct Gate<V> {
    r: V,
    i: V,
    a: V,
    square: V,
    root: V,
}

/// (1 - e^-y) / y by powers of y, the highest first.
const SERIES: [f32; 8] = [-1.0 / 40320.0, 1.0 / 5040.0, -1.0 / 720.0, 1.0 / 120.0, -1.0 / 24.0, 1.0 / 6.0, -0.5, 1.0];

impl Gates<'_> {
    /// a = e^-s with s = r rate. Where a is close to 1, 1 - a² would cancel: for y = 2 s below 1/2 it is the series of 1 - e^-y,
    /// whose first term left out is 1e-8 of it.
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, At { row, start, .. }: At, i: usize) -> Gate<S::f32s> {
        let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
        let r = sigmoid(simd, load(simd, self.recurrence.row(row), i));
        let input = sigmoid(simd, load(simd, self.input.row(row), i));
        if start {
            return Gate { r, i: input, a: zero, square: one, root: one };
        }
        let s = simd.mul_f32s(r, load(simd, &self.rate, i));
        let a = exp(simd, simd.neg_f32s(s));
        let y = simd.add_f32s(s, s);
        let mut series = simd.splat_f32s(SERIES[0]);
        for c in &SERIES[1..] {
            series = simd.mul_add_e_f32s(series, y, simd.splat_f32s(*c));
        }
        let far = simd.sub_f32s(one, simd.mul_f32s(a, a));
        let near = simd.less_than_f32s(y, simd.splat_f32s(0.5));
        let square = simd.select_f32s(near, simd.mul_f32s(series, y), far);
        Gate { r, i: input, a, square, root: simd.sqrt_f32s(square) }
    }
}

struct Forward<'i, 'o> {
    read: Read<'i>,
    h: Part<'o>,
    state: Part<'o>,
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let gates = self.read.gates(simd);
        let logs = matches!(self.read.args.decay, Decay::Logs(_));
        for s in 0..self.read.len() {
            let at = self.read.at(s);
            if at.cut {
                self.state.zero(0);
            }
            let ([re, im], [a_re, a_im]) = (self.read.parts(self.read.args.x.row(at.row)), self.read.factors(at.row));
            let ((h, h_im), (state, state_im)) = (self.h.row(at.t), self.state.row(0));
            if let (Some(h_im), Some(state_im)) = (h_im, state_im) {
                complex(simd, [a_re, a_im], [re, im], [state, state_im], [h, h_im]);
                continue;
            }
            for i in vectors::<S>(h.len()) {
                let x = load(simd, re, i);
                let (a, x) = if let Some(gates) = &gates {
                    let Gate { i, a, root, .. } = gates.at(simd, at, i);
                    (a, simd.mul_f32s(simd.mul_f32s(root, i), x))
                } else if logs {
                    (exp(simd, load(simd, a_re, i)), x)
                } else {
                    (load(simd, a_re, i), x)
                };
                let new = simd.mul_add_e_f32s(a, load(simd, state, i), x);
                store(simd, state, i, new);
                store(simd, h, i, new);
            }
        }
        if self.read.ends_cut() {
            self.state.zero(0);
        }
        (self.read.len()..self.read.dims.l).for_each(|t| self.h.zero(t));
    }
}

/// h = a h + x of complex channels.
#[inline(always)]
fn complex<S: Simd>(
    simd: S,
    [a, a_im]: [&[f32]; 2],
    [x, x_im]: [&[f32]; 2],
    [state, state_im]: [&mut [f32]; 2],
    [h, h_im]: [&mut [f32]; 2],
) {
    for i in vectors::<S>(h.len()) {
        let (a, a_im) = (load(simd, a, i), load(simd, a_im, i));
        let (re, im) = (load(simd, state, i), load(simd, state_im, i));
        let new = simd.mul_add_e_f32s(a, re, load(simd, x, i));
        let new = simd.mul_add_e_f32s(simd.neg_f32s(a_im), im, new);
        let new_im = simd.mul_add_e_f32s(a, im, load(simd, x_im, i));
        let new_im = simd.mul_add_e_f32s(a_im, re, new_im);
        for (to, value) in [(&mut *state, new), (&mut *state_im, new_im), (&mut *h, new), (&mut *h_im, new_im)] {
            store(simd, to, i, value);
        }
    }
}

// Long: cuts every output into the same blocks, and puts them together again.
pub(super) fn backward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    outputs: &Outputs<Rows<'_>>,
    grads: Grads<RowsMut<'_>>,
) {
    let (Dims { b, l, .. }, columns, field) = (dims, dims.columns(args), args.field);
    let Grads { dx, decay, dinitial } = grads;
    let blocks = blocks(dims, field);
    let mut carried = outputs.dlast.map_or(vec![0.0; b * columns], <[f32]>::to_vec);
    let (varying, dinput, sum) = match decay {
        None => (None, None, None),
        Some(DecayGrads::Constant(da)) => (None, None, Some(da)),
        Some(DecayGrads::Varying(da)) => (Some(da), None, None),
        Some(DecayGrads::RgLru { drecurrence, dinput, dlambda }) => (Some(drecurrence), Some(dinput), Some(dlambda)),
    };
    let mut partial = vec![0.0; if sum.is_some() { b * columns } else { 0 }];
    let units = {
        let partial = sum.is_some().then(|| RowsMut::new(&mut partial, columns));
        let carried = cut(RowsMut::new(&mut carried, columns), 1, field, &blocks);
        let all = blocks
            .iter()
            .zip(cut(dx, l, field, &blocks))
            .zip(optional(varying, l, field, &blocks))
            .zip(optional(dinput, l, field, &blocks));
        let unit = |(((((&block, dx), varying), dinput), sums), carried)| {
            let read = Read { dims, args: *args, block, given: args.initial.is_some() };
            Backward { read, outputs: *outputs, dx, varying, dinput, sums, carried }
        };
        all.zip(optional(partial, 1, field, &blocks)).zip(carried).map(unit).collect::<Vec<_>>()
    };
    run(isa, b * l * columns, units);
    if let Some(sum) = sum {
        for part in partial.chunks_exact(columns) {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
    if let Some(dinitial) = dinitial {
        dinitial.copy_from_slice(&carried);
    }
}

struct Backward<'i, 'p, 'o> {
    read: Read<'i>,
    outputs: Outputs<Rows<'p>>,
    dx: Part<'o>,
    /// Of a or log a, or of the RG-LRU's recurrence gate.
    varying: Option<Part<'o>>,
    dinput: Option<Part<'o>>,
    /// Of a constant a, or of Λ.
    sums: Option<Part<'o>>,
    /// c: the gradient of the state before the position.
    carried: Part<'o>,
}

impl WithSimd for Backward<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let gates = self.read.gates(simd);
        let zeros = vec![0.0; self.read.block.width];
        if self.read.ends_cut() {
            self.carried.zero(0);
        }
        for s in (0..self.read.len()).rev() {
            let at = self.read.at(s);
            let before = match (at.before, self.read.args.initial) {
                _ if at.cut => [&zeros[..]; 2],
                (Some(row), _) => self.read.parts(self.outputs.h.row(row)),
                (None, Some(initial)) => {
                    let columns = self.read.dims.columns(&self.read.args);
                    self.read.parts(&initial[self.read.block.b * columns..][..columns])
                }
                (None, None) => [&zeros[..]; 2],
            };
            let dh = self.read.parts(self.outputs.dh.row(at.row));
            match (&gates, self.read.args.field) {
                (Some(gates), _) => self.gated(simd, at, gates, before[0], dh[0]),
                (None, Field::Real) => self.real(simd, at, before[0], dh[0]),
                (None, Field::Complex) => self.complex(simd, at, before, dh),
            }
            if at.cut {
                self.carried.zero(0);
            }
        }
        for t in self.read.len()..self.read.dims.l {
            self.dx.zero(t);
            for part in self.varying.iter_mut().chain(&mut self.dinput) {
                part.zero(t);
            }
        }
    }
}

impl Backward<'_, '_, '_> {
    #[inline(always)]
    fn real<S: Simd>(&mut self, simd: S, at: At, before: &[f32], dh: &[f32]) {
        let [factors, _] = self.read.factors(at.row);
        let logs = matches!(self.read.args.decay, Decay::Logs(_));
        let (carried, dx) = (self.carried.re.row(0), self.dx.re.row(at.t));
        let mut varying = self.varying.as_mut().map(|part| part.re.row(at.t));
        let mut sums = self.sums.as_mut().map(|part| part.re.row(0));
        for i in vectors::<S>(dx.len()) {
            let a = load(simd, factors, i);
            let a = if logs { exp(simd, a) } else { a };
            let g = simd.add_f32s(load(simd, dh, i), load(simd, carried, i));
            let back = simd.mul_f32s(a, g);
            store(simd, dx, i, g);
            store(simd, carried, i, back);
            let before = load(simd, before, i);
            if let Some(da) = &mut varying {
                store(simd, da, i, simd.mul_f32s(if logs { back } else { g }, before));
            }
            if let Some(sum) = &mut sums {
                store(simd, sum, i, simd.mul_add_e_f32s(g, before, load(simd, sum, i)));
            }
        }
    }

    /// With g = dh + c: da = g conj(h before), c = conj(a) g.
    #[inline(always)]
    fn complex<S: Simd>(&mut self, simd: S, at: At, [before, before_im]: [&[f32]; 2], [dh, dh_im]: [&[f32]; 2]) {
        let [factors, factors_im] = self.read.factors(at.row);
        let (carried, Some(carried_im)) = self.carried.row(0) else { return };
        let (dx, Some(dx_im)) = self.dx.row(at.t) else { return };
        let mut varying = self.varying.as_mut().map(|part| part.row(at.t));
        let mut sums = self.sums.as_mut().map(|part| part.row(0));
        for i in vectors::<S>(dh.len()) {
            let (a, a_im) = (load(simd, factors, i), load(simd, factors_im, i));
            let g = simd.add_f32s(load(simd, dh, i), load(simd, carried, i));
            let g_im = simd.add_f32s(load(simd, dh_im, i), load(simd, carried_im, i));
            store(simd, dx, i, g);
            store(simd, dx_im, i, g_im);
            store(simd, carried, i, simd.mul_add_e_f32s(a_im, g_im, simd.mul_f32s(a, g)));
            store(simd, carried_im, i, simd.mul_add_e_f32s(simd.neg_f32s(a_im), g, simd.mul_f32s(a, g_im)));
            let (p, p_im) = (load(simd, before, i), load(simd, before_im, i));
            let da = simd.mul_add_e_f32s(g_im, p_im, simd.mul_f32s(g, p));
            let da_im = simd.mul_add_e_f32s(simd.neg_f32s(g), p_im, simd.mul_f32s(g_im, p));
            if let Some((re, Some(im))) = &mut varying {
                store(simd, re, i, da);
                store(simd, im, i, da_im);
            }
            if let Some((re, Some(im))) = &mut sums {
                store(simd, re, i, simd.add_f32s(load(simd, re, i), da));
                store(simd, im, i, simd.add_f32s(load(simd, im, i), da_im));
            }
        }
    }

    /// Of an RG-LRU; the letters are those of naive.
    #[inline(always)]
    fn gated<S: Simd>(&mut self, simd: S, at: At, gates: &Gates<'_>, before: &[f32], dh: &[f32]) {
        let [x, _] = self.read.parts(self.read.args.x.row(at.row));
        let (carried, dx) = (self.carried.re.row(0), self.dx.re.row(at.t));
        let mut drecurrence = self.varying.as_mut().map(|part| part.re.row(at.t));
        let mut dinput = self.dinput.as_mut().map(|part| part.re.row(at.t));
        let mut dlambda = self.sums.as_mut().map(|part| part.re.row(0));
        let (one, four, minus_two) = (simd.splat_f32s(1.0), simd.splat_f32s(4.0), simd.splat_f32s(-2.0));
        let (least, minus_sharpness) = (simd.splat_f32s(LEAST_SQUARE), simd.splat_f32s(-SHARPNESS));
        for k in vectors::<S>(dx.len()) {
            let Gate { r, i, a, square, root } = gates.at(simd, at, k);
            let (g, x) = (simd.add_f32s(load(simd, dh, k), load(simd, carried, k)), load(simd, x, k));
            store(simd, carried, k, simd.mul_f32s(a, g));
            store(simd, dx, k, simd.mul_f32s(g, simd.mul_f32s(root, i)));
            if let Some(dinput) = &mut dinput {
                let slope = simd.mul_f32s(i, simd.sub_f32s(one, i));
                store(simd, dinput, k, simd.mul_f32s(simd.mul_f32s(g, simd.mul_f32s(root, x)), slope));
            }
            // dlog = da a - g i x 2 a² / sqrt(4 (1 - a²)): the start of a segment has no a.
            let below = simd.sqrt_f32s(simd.max_f32s(simd.mul_f32s(four, square), least));
            let above = simd.mul_f32s(simd.mul_f32s(i, x), simd.mul_f32s(minus_two, simd.mul_f32s(a, a)));
            let inner = simd.mul_add_e_f32s(load(simd, before, k), a, simd.div_f32s(above, below));
            let dlog = simd.mul_f32s(g, inner);
            if let Some(drecurrence) = &mut drecurrence {
                let slope = simd.mul_f32s(r, simd.sub_f32s(one, r));
                let of_rate = simd.mul_f32s(dlog, load(simd, &gates.rate, k));
                store(simd, drecurrence, k, simd.neg_f32s(simd.mul_f32s(of_rate, slope)));
            }
            if let Some(sum) = &mut dlambda {
                let slope = simd.mul_f32s(minus_sharpness, load(simd, &gates.slope, k));
                let of_lambda = simd.mul_f32s(simd.mul_f32s(dlog, r), slope);
                store(simd, sum, k, simd.add_f32s(load(simd, sum, k), of_lambda));
            }
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
