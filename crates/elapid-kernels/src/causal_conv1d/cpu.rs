//! Lanes are channels; positions are processed in tiles whose inputs slide through registers.
//!
//! ```text
//! for each thread's channels, for each row of the batch
//!   for each tile of T positions without a reset after its first:
//!     for each vector of channels:
//!       x[..k-1] = the window before the tile     (inputs, `initial` or zeros)
//!       for each position: x[k-1] = its input; y = act(bias + Σ_j w[j] x[j]); slide x
//! ```
//!
//! Every element is the same chain of multiply-adds, taps in order, in every tile, so chunks, steps and a tile of one
//! position agree bit for bit. The backward visits tiles from last to first, with the k - 1 later gradients sliding the
//! other way, so the weight's gradient of a channel is one sum in a fixed order. For four taps everything is in registers;
//! other widths process one position at a time.

#![expect(clippy::needless_range_loop, reason = "small arrays are registers, named by tap or position")]

use pulp::{Simd, WithSimd};

use super::{Args, Dims, Grads};
use crate::parallel::{self, Columns, Each};
use crate::{Isa, Rows, RowsMut, math};

/// Minimum number of elements for waking a thread.
const LEAST: usize = 1 << 14;
/// Positions per tile of the forward.
const TILE: usize = 8;
/// Positions per tile of the backward, which walks along three times as many rows, while caches have few ways.
const BACK: usize = 4;
/// The most lanes of any instruction set.
const LANES: usize = 16;

pub(super) fn forward(isa: Isa, dims: Dims, args: &Args<Rows<'_>>, y: RowsMut<'_>, last: &mut [f32]) {
    let Dims { b, l, d, .. } = dims;
    if l == 1 && args.segments.lengths.is_none() && args.segments.resets.is_none() {
        // The weights of a step are read as they are.
        match args.initial {
            Some(initial) => last.copy_from_slice(initial),
            None => last.fill(0.0),
        }
        return step(isa, dims, args.x, args.weight, args.bias, args.silu, last, y);
    }
    let grain = parallel::grain(d, b * l, LEAST, 32);
    let last = state(last, dims);
    parallel::split(d, grain, (Columns(y), Columns(last)), &|from, count, (Columns(y), Columns(last))| {
        let input = Input::new(dims, args, from, count);
        isa.run(Forward { input, y, last });
    });
}

pub(super) fn backward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    dy: Rows<'_>,
    dlast: Option<&[f32]>,
    grads: Grads<RowsMut<'_>>,
) {
    let Dims { b, l, d, k } = dims;
    let Grads { dx, dweight, dbias, dinitial } = grads;
    let grain = parallel::grain(d, b * l, LEAST / 2, 32);
    let dlast = dlast.map(|dlast| rows(dlast, dims));
    let dinitial = dinitial.map(|dinitial| Columns(state(dinitial, dims)));
    let outputs = ((Columns(dx), dinitial), (Each(dweight, k), dbias));
    parallel::split(d, grain, outputs, &|from, count, ((Columns(dx), dinitial), (Each(dweight, _), dbias))| {
        let input = Input::new(dims, args, from, count);
        isa.run(Backward {
            input,
            dy: dy.columns(from, count),
            dlast: dlast.map(|dlast| dlast.columns(from, count)),
            dx,
            dinitial: dinitial.map(|Columns(dinitial)| dinitial),
            dweight,
            dbias,
            sums: vec![0.0; (k + 1) * count],
            halo: vec![0.0; (k - 1) * count],
        });
    });
}

pub(super) fn step(
    isa: Isa,
    dims: Dims,
    x: Rows<'_>,
    weight: &[f32],
    bias: Option<&[f32]>,
    silu: bool,
    state: &mut [f32],
    y: RowsMut<'_>,
) {
    isa.run(Step { dims, x, weight, bias, silu, state, y });
}

/// A window `[b k-1 d]` as a matrix of `b * (k - 1)` rows.
fn state(window: &mut [f32], Dims { b, d, k, .. }: Dims) -> RowsMut<'_> {
    RowsMut::strided(window, b * (k - 1), d, d).expect("the contract checked the length")
}

/// As [`state`], to read.
fn rows(window: &[f32], Dims { b, d, k, .. }: Dims) -> Rows<'_> {
    Rows::strided(window, b * (k - 1), d, d).expect("the contract checked the length")
}

/// The inputs of a thread: some channels of the arguments.
struct Input<'a> {
    dims: Dims,
    args: Args<Rows<'a>>,
    initial: Option<Rows<'a>>,
    /// `[k d]`.
    weight: Vec<f32>,
    /// `[d]`, zeros if there is none.
    bias: Vec<f32>,
    /// `[d]`.
    zeros: Vec<f32>,
}

impl<'a> Input<'a> {
    fn new(dims: Dims, args: &Args<Rows<'a>>, from: usize, count: usize) -> Self {
        let k = dims.k;
        let mut weight = vec![0.0; k * count];
        for (c, taps) in args.weight[from * k..][..count * k].chunks_exact(k).enumerate() {
            for (j, &w) in taps.iter().enumerate() {
                weight[j * count + c] = w;
            }
        }
        Self {
            args: Args { x: args.x.columns(from, count), ..*args },
            initial: args.initial.map(|initial| rows(initial, dims).columns(from, count)),
            weight,
            bias: args.bias.map_or_else(|| vec![0.0; count], |bias| bias[from..][..count].to_vec()),
            zeros: vec![0.0; count],
            dims: Dims { d: count, ..dims },
        }
    }

    /// Where the document of position `t` begins, if that is inside its window; none if there is no reset in it.
    fn start(&self, row: usize, t: usize) -> Option<usize> {
        let Dims { l, k, .. } = self.dims;
        self.args.segments.resets?;
        ((t + 2).saturating_sub(k)..=t).rev().find(|&s| self.args.segments.reset(row, s, l))
    }

    /// The input at position `at - (k - 1)` of a row, for a document that begins at `start`.
    fn source(&self, row: usize, at: usize, start: Option<usize>) -> &[f32] {
        let Dims { l, k, .. } = self.dims;
        if start.is_some_and(|start| at < start + (k - 1)) {
            &self.zeros
        } else if at >= k - 1 {
            self.args.x.row(row * l + at - (k - 1))
        } else {
            self.initial.map_or(&self.zeros, |initial| initial.row(row * (k - 1) + at))
        }
    }

    /// Loads the inputs of positions `t..t + n` and the window before them into `window`.
    fn fill<'s>(&'s self, window: &mut Vec<&'s [f32]>, row: usize, t: usize, n: usize) {
        let start = self.start(row, t);
        window.clear();
        window.extend((t..t + n + self.dims.k - 1).map(|at| self.source(row, at, start)));
    }

    /// Whether `from..from + n` is below `len` and no document begins after its first position.
    fn whole(&self, row: usize, from: usize, n: usize, len: usize) -> bool {
        let resets = self.args.segments.resets.map(|r| &r[row * self.dims.l..][..self.dims.l]);
        from + n <= len && resets.is_none_or(|r| r[from + 1..from + n].iter().all(|&r| r == 0))
    }

    /// The last document's beginning as the window after `len` positions sees it.
    fn end(&self, row: usize, len: usize) -> Option<usize> {
        len.checked_sub(1).and_then(|t| {
            let Dims { l, k, .. } = self.dims;
            self.args.segments.resets?;
            ((t + 3).saturating_sub(k).min(t)..=t).rev().find(|&s| self.args.segments.reset(row, s, l))
        })
    }
}

/// Vector `q` of a row; if it is not `WHOLE`, lanes after the end of the row are 0.
///
/// # Safety
/// If `WHOLE`, the row has at least `q + 1` vectors.
#[inline(always)]
unsafe fn load<S: Simd, const WHOLE: bool>(simd: S, row: &[f32], q: usize) -> S::f32s {
    let from = q * S::F32_LANES;
    if WHOLE {
        debug_assert!(from + S::F32_LANES <= row.len());
        // SAFETY: the caller has checked that the vector is inside the row.
        unsafe { row.as_ptr().add(from).cast::<S::f32s>().read_unaligned() }
    } else {
        simd.partial_load_f32s(&row[from..])
    }
}

/// Writes vector `q` of a row; if it is not `WHOLE`, only the lanes inside the row.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn store<S: Simd, const WHOLE: bool>(simd: S, row: &mut [f32], q: usize, x: S::f32s) {
    let from = q * S::F32_LANES;
    if WHOLE {
        debug_assert!(from + S::F32_LANES <= row.len());
        // SAFETY: the caller has checked that the vector is inside the row.
        unsafe { row.as_mut_ptr().add(from).cast::<S::f32s>().write_unaligned(x) }
    } else {
        simd.partial_store_f32s(&mut row[from..], x);
    }
}

#[inline(always)]
fn act<S: Simd>(simd: S, silu: bool, x: S::f32s) -> S::f32s {
    if silu { math::silu(simd, x) } else { x }
}

struct Forward<'i, 'a> {
    input: Input<'i>,
    y: RowsMut<'a>,
    last: RowsMut<'a>,
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { input, mut y, mut last } = self;
        let Dims { b, l, k, .. } = input.dims;
        let mut window = Vec::with_capacity(k - 1 + TILE);
        for row in 0..b {
            let len = input.args.segments.len(row, l);
            let mut t = 0;
            while t < len {
                let n = if k == 4 && input.whole(row, t, TILE, len) { TILE } else { 1 };
                input.fill(&mut window, row, t, n);
                let (_, rest) = y.reborrow().split_rows(row * l + t);
                let (mut tile, _) = rest.split_rows(n);
                match (k, n) {
                    (4, TILE) => forward_tile::<S, 4, TILE>(simd, &input, &window, &mut tile),
                    (4, _) => forward_tile::<S, 4, 1>(simd, &input, &window, &mut tile),
                    _ => forward_any(simd, &input, &window, tile.row(0)),
                }
                t += n;
            }
            for t in len..l {
                y.row(row * l + t).fill(0.0);
            }
            let start = input.end(row, len);
            for i in 0..k - 1 {
                last.row(row * (k - 1) + i).copy_from_slice(input.source(row, len + i, start));
            }
        }
    }
}

#[inline(always)]
fn forward_tile<S: Simd, const K: usize, const T: usize>(
    simd: S,
    input: &Input<'_>,
    window: &[&[f32]],
    y: &mut RowsMut<'_>,
) {
    let d = input.dims.d;
    assert!(window.len() == K - 1 + T && window.iter().all(|x| x.len() == d) && y.shape() == (T, d));
    for q in 0..d / S::F32_LANES {
        // SAFETY: `q` counts whole vectors of d channels; `Input::new` made weight [K d] and bias [d].
        unsafe { forward_vector::<S, K, T, true>(simd, input, window, y, q) }
    }
    if !d.is_multiple_of(S::F32_LANES) {
        // SAFETY: nothing is asked of a partial vector.
        unsafe { forward_vector::<S, K, T, false>(simd, input, window, y, d / S::F32_LANES) }
    }
}

/// # Safety
/// If `WHOLE`, all rows have at least `q + 1` vectors.
#[inline(always)]
unsafe fn forward_vector<S: Simd, const K: usize, const T: usize, const WHOLE: bool>(
    simd: S,
    input: &Input<'_>,
    window: &[&[f32]],
    y: &mut RowsMut<'_>,
    q: usize,
) {
    let d = input.dims.d;
    // SAFETY: passed on to the caller.
    unsafe {
        let bias = load::<S, WHOLE>(simd, &input.bias, q);
        let mut w = [bias; K];
        let mut x = [bias; K];
        for j in 0..K {
            w[j] = load::<S, WHOLE>(simd, &input.weight[j * d..][..d], q);
        }
        for j in 0..K - 1 {
            x[j] = load::<S, WHOLE>(simd, window[j], q);
        }
        for p in 0..T {
            x[K - 1] = load::<S, WHOLE>(simd, window[p + K - 1], q);
            let mut sum = bias;
            for j in 0..K {
                sum = simd.mul_add_e_f32s(w[j], x[j], sum);
            }
            for j in 0..K - 1 {
                x[j] = x[j + 1];
            }
            store::<S, WHOLE>(simd, y.row(p), q, act(simd, input.args.silu, sum));
        }
    }
}

/// One position, any number of taps.
#[inline(always)]
fn forward_any<S: Simd>(simd: S, input: &Input<'_>, window: &[&[f32]], y: &mut [f32]) {
    let d = input.dims.d;
    for from in (0..d).step_by(S::F32_LANES) {
        let to = d.min(from + S::F32_LANES);
        let sum = before(simd, input, window, from, to);
        simd.partial_store_f32s(&mut y[from..to], act(simd, input.args.silu, sum));
    }
}

/// The values before the SiLU for channels `from..to`, for any number of taps.
#[inline(always)]
fn before<S: Simd>(simd: S, input: &Input<'_>, window: &[&[f32]], from: usize, to: usize) -> S::f32s {
    let mut sum = simd.partial_load_f32s(&input.bias[from..to]);
    for (w, x) in input.weight.chunks_exact(input.dims.d).zip(window) {
        let (w, x) = (simd.partial_load_f32s(&w[from..to]), simd.partial_load_f32s(&x[from..to]));
        sum = simd.mul_add_e_f32s(w, x, sum);
    }
    sum
}

struct Backward<'i, 'a> {
    input: Input<'i>,
    dy: Rows<'a>,
    dlast: Option<Rows<'a>>,
    dx: RowsMut<'a>,
    dinitial: Option<RowsMut<'a>>,
    dweight: &'a mut [f32],
    dbias: Option<&'a mut [f32]>,
    /// `[k + 1, d]`: gradients of the taps and the bias.
    sums: Vec<f32>,
    /// `[k - 1, d]`: gradients before the SiLU at the next positions, of the same document.
    halo: Vec<f32>,
}

impl WithSimd for Backward<'_, '_> {
    type Output = ();

    // Long: one loop over positions whose sums stay in registers; splitting it would cost more than it explains.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { input, dy, dlast, mut dx, mut dinitial, dweight, dbias, mut sums, mut halo } = self;
        let Dims { b, l, d, k } = input.dims;
        let mut window = Vec::with_capacity(k - 1 + BACK);
        for row in 0..b {
            let len = input.args.segments.len(row, l);
            halo.fill(0.0);
            for t in len..l {
                dx.row(row * l + t).fill(0.0);
            }
            let mut end = len;
            while end > 0 {
                let n = if k == 4 && end >= BACK && input.whole(row, end - BACK, BACK, len) { BACK } else { 1 };
                let t = end - n;
                input.fill(&mut window, row, t, n);
                let (_, rest) = dx.reborrow().split_rows(row * l + t);
                let (dx, _) = rest.split_rows(n);
                let mut tile = Tile { dy: dy.slice(row * l + t, n), dx, sums: &mut sums, halo: &mut halo };
                match (k, n) {
                    (4, BACK) => backward_tile::<S, 4, BACK>(simd, &input, &window, &mut tile),
                    (4, _) => backward_tile::<S, 4, 1>(simd, &input, &window, &mut tile),
                    _ => backward_any(simd, &input, &window, &mut tile),
                }
                if input.args.segments.reset(row, t, l) {
                    halo.fill(0.0);
                }
                end = t;
            }
            if let Some(dinitial) = &mut dinitial {
                // Entry i is tap i - t of position t.
                for i in 0..k - 1 {
                    let g = dinitial.row(row * (k - 1) + i);
                    g.fill(0.0);
                    for (t, halo) in halo.chunks_exact(d).enumerate().take(i + 1) {
                        let w = &input.weight[(i - t) * d..][..d];
                        g.iter_mut().zip(halo).zip(w).for_each(|((g, &h), &w)| *g += h * w);
                    }
                }
            }
            let start = input.end(row, len);
            for i in 0..if dlast.is_some() { k - 1 } else { 0 } {
                let at = len + i;
                let to = if start.is_some_and(|start| at < start + (k - 1)) {
                    None
                } else if at >= k - 1 {
                    Some(dx.row(row * l + at - (k - 1)))
                } else {
                    dinitial.as_mut().map(|dinitial| dinitial.row(row * (k - 1) + at))
                };
                if let (Some(to), Some(dlast)) = (to, dlast) {
                    to.iter_mut().zip(dlast.row(row * (k - 1) + i)).for_each(|(g, &d)| *g += d);
                }
            }
        }
        for (c, taps) in dweight.chunks_exact_mut(k).enumerate() {
            taps.iter_mut().enumerate().for_each(|(j, g)| *g += sums[j * d + c]);
        }
        if let Some(dbias) = dbias {
            dbias.iter_mut().zip(&sums[k * d..]).for_each(|(g, &s)| *g += s);
        }
    }
}

/// Positions of one document that the backward processes together.
struct Tile<'a> {
    dy: Rows<'a>,
    dx: RowsMut<'a>,
    sums: &'a mut [f32],
    halo: &'a mut [f32],
}

#[inline(always)]
fn backward_tile<S: Simd, const K: usize, const T: usize>(
    simd: S,
    input: &Input<'_>,
    window: &[&[f32]],
    tile: &mut Tile<'_>,
) {
    let d = input.dims.d;
    assert!(window.len() == K - 1 + T && window.iter().all(|x| x.len() == d));
    assert!(tile.dy.shape() == (T, d) && tile.dx.shape() == (T, d));
    for q in 0..d / S::F32_LANES {
        // SAFETY: `q` counts whole vectors of d channels, the length of all rows.
        unsafe { backward_vector::<S, K, T, true>(simd, input, window, tile, q) }
    }
    if !d.is_multiple_of(S::F32_LANES) {
        // SAFETY: nothing is asked of a partial vector.
        unsafe { backward_vector::<S, K, T, false>(simd, input, window, tile, d / S::F32_LANES) }
    }
}

/// # Safety
/// If `WHOLE`, all rows have at least `q + 1` vectors.
#[inline(always)]
unsafe fn backward_vector<S: Simd, const K: usize, const T: usize, const WHOLE: bool>(
    simd: S,
    input: &Input<'_>,
    window: &[&[f32]],
    tile: &mut Tile<'_>,
    q: usize,
) {
    let d = input.dims.d;
    // SAFETY: passed on to the caller.
    unsafe {
        let bias = load::<S, WHOLE>(simd, &input.bias, q);
        let (mut w, mut dw, mut x) = ([bias; K], [bias; K], [bias; K]);
        // later[i] is the gradient before the SiLU, i + 1 positions on; the last entry only makes the array K long.
        let mut later = [bias; K];
        for j in 0..K {
            w[j] = load::<S, WHOLE>(simd, &input.weight[j * d..][..d], q);
            dw[j] = load::<S, WHOLE>(simd, &tile.sums[j * d..][..d], q);
            // The window of the last position, advanced by one.
            x[j] = load::<S, WHOLE>(simd, window[(T + j).min(T + K - 2)], q);
        }
        for i in 0..K - 1 {
            later[i] = load::<S, WHOLE>(simd, &tile.halo[i * d..][..d], q);
        }
        let mut dbias = load::<S, WHOLE>(simd, &tile.sums[K * d..][..d], q);
        for p in (0..T).rev() {
            for j in (1..K).rev() {
                x[j] = x[j - 1];
            }
            x[0] = load::<S, WHOLE>(simd, window[p], q);
            let mut g = load::<S, WHOLE>(simd, tile.dy.row(p), q);
            if input.args.silu {
                let mut sum = bias;
                for j in 0..K {
                    sum = simd.mul_add_e_f32s(w[j], x[j], sum);
                }
                g = simd.mul_f32s(g, math::dsilu(simd, sum));
            }
            dbias = simd.add_f32s(dbias, g);
            let mut dx = simd.mul_f32s(w[K - 1], g);
            for j in 0..K {
                dw[j] = simd.mul_add_e_f32s(g, x[j], dw[j]);
            }
            for i in 0..K - 1 {
                dx = simd.mul_add_e_f32s(w[K - 2 - i], later[i], dx);
            }
            for i in (1..K - 1).rev() {
                later[i] = later[i - 1];
            }
            later[0] = g;
            store::<S, WHOLE>(simd, tile.dx.row(p), q, dx);
        }
        for j in 0..K {
            store::<S, WHOLE>(simd, &mut tile.sums[j * d..][..d], q, dw[j]);
        }
        store::<S, WHOLE>(simd, &mut tile.sums[K * d..][..d], q, dbias);
        for i in 0..K - 1 {
            store::<S, WHOLE>(simd, &mut tile.halo[i * d..][..d], q, later[i]);
        }
    }
}

/// One position, any number of taps.
#[inline(always)]
fn backward_any<S: Simd>(simd: S, input: &Input<'_>, window: &[&[f32]], tile: &mut Tile<'_>) {
    let Dims { d, k, .. } = input.dims;
    for from in (0..d).step_by(S::F32_LANES) {
        let to = d.min(from + S::F32_LANES);
        let load = |row: &[f32]| simd.partial_load_f32s(&row[from..to]);
        let mut g = load(tile.dy.row(0));
        if input.args.silu {
            g = simd.mul_f32s(g, math::dsilu(simd, before(simd, input, window, from, to)));
        }
        for (j, sum) in tile.sums.chunks_exact_mut(d).enumerate() {
            let sum = &mut sum[from..to];
            let old = simd.partial_load_f32s(sum);
            let new = if j < k { simd.mul_add_e_f32s(g, load(window[j]), old) } else { simd.add_f32s(old, g) };
            simd.partial_store_f32s(sum, new);
        }
        let mut dx = simd.mul_f32s(load(&input.weight[(k - 1) * d..]), g);
        let mut later = g;
        for (i, halo) in tile.halo.chunks_exact_mut(d).enumerate() {
            let old = load(halo);
            dx = simd.mul_add_e_f32s(load(&input.weight[(k - 2 - i) * d..]), old, dx);
            simd.partial_store_f32s(&mut halo[from..to], later);
            later = old;
        }
        simd.partial_store_f32s(&mut tile.dx.row(0)[from..to], dx);
    }
}

struct Step<'a> {
    dims: Dims,
    x: Rows<'a>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    silu: bool,
    state: &'a mut [f32],
    y: RowsMut<'a>,
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Dims { d, k, .. } = self.dims;
        for from in (0..d).step_by(S::F32_LANES) {
            let to = d.min(from + S::F32_LANES);
            if k == 4 && to - from == S::F32_LANES {
                self.four_taps(simd, from, to);
            } else {
                self.any_taps(simd, from, to);
            }
        }
    }
}

impl Step<'_> {
    /// Four taps, a whole vector of channels: weights are transposed once for all rows.
    #[inline(always)]
    fn four_taps<S: Simd>(&mut self, simd: S, from: usize, to: usize) {
        let d = self.dims.d;
        let mut turned = [[0.0; LANES]; 4];
        let (taps, _) = self.weight[from * 4..to * 4].as_chunks::<4>();
        for (i, taps) in taps[..S::F32_LANES].iter().enumerate() {
            for j in 0..4 {
                turned[j][i] = taps[j];
            }
        }
        let mut w = [simd.splat_f32s(0.0); 4];
        for j in 0..4 {
            w[j] = simd.partial_load_f32s(&turned[j][..S::F32_LANES]);
        }
        let bias = match self.bias {
            Some(bias) => simd.partial_load_f32s(&bias[from..to]),
            None => simd.splat_f32s(0.0),
        };
        for (row, state) in self.state.chunks_exact_mut(3 * d).enumerate() {
            let mut x = [bias; 4];
            for j in 0..3 {
                x[j] = simd.partial_load_f32s(&state[j * d + from..j * d + to]);
            }
            x[3] = simd.partial_load_f32s(&self.x.row(row)[from..to]);
            let mut sum = bias;
            for j in 0..4 {
                sum = simd.mul_add_e_f32s(w[j], x[j], sum);
            }
            for j in 0..3 {
                simd.partial_store_f32s(&mut state[j * d + from..j * d + to], x[j + 1]);
            }
            simd.partial_store_f32s(&mut self.y.row(row)[from..to], act(simd, self.silu, sum));
        }
    }

    #[inline(always)]
    fn any_taps<S: Simd>(&mut self, simd: S, from: usize, to: usize) {
        let Dims { b, d, k, .. } = self.dims;
        let bias = match self.bias {
            Some(bias) => simd.partial_load_f32s(&bias[from..to]),
            None => simd.splat_f32s(0.0),
        };
        for row in 0..b {
            let state = &mut self.state[row * (k - 1) * d..][..(k - 1) * d];
            let now = simd.partial_load_f32s(&self.x.row(row)[from..to]);
            let mut sum = bias;
            for j in 0..k {
                let mut w = [0.0; LANES];
                for (w, taps) in w.iter_mut().zip(self.weight[from * k..to * k].chunks_exact(k)) {
                    *w = taps[j];
                }
                let x = if j + 1 < k { simd.partial_load_f32s(&state[j * d + from..j * d + to]) } else { now };
                sum = simd.mul_add_e_f32s(simd.partial_load_f32s(&w[..S::F32_LANES]), x, sum);
                if j > 0 {
                    simd.partial_store_f32s(&mut state[(j - 1) * d + from..(j - 1) * d + to], x);
                }
            }
            simd.partial_store_f32s(&mut self.y.row(row)[from..to], act(simd, self.silu, sum));
        }
    }
}
