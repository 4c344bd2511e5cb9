//! Shared by forward and backward: tiles of positions, groups of channels, vectors of states.

use pulp::Simd;
use pulp::bytemuck::{self, Pod, Zeroable};

use crate::selective_scan::{Args, Dims};
use crate::{Rows, Segments, math};

/// Positions in a tile.
pub(super) const TILE: usize = 32;

/// Minimum channels per group, the unit of parallelism: a multiple of every vector's lanes.
pub(super) const GROUP: usize = 128;

/// Stride in vectors between vectors of channels in buffers `[vector t]`: one more than a tile, so that they do not all map
/// to the same few sets of the L1 cache.
pub(super) const STRIDE: usize = TILE + 1;

/// States per block: how many of one channel vector are in registers.
pub(super) const BLOCK: usize = 4;

/// Minimum steps of the recurrence, `b l d n`, for waking another thread.
pub(super) const SMALL: usize = 1 << 16;

/// Neighbouring positions of one row of the batch.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) from: usize,
    pub(super) len: usize,
    /// Whether the state is reset before it.
    pub(super) reset: bool,
}

/// The tiles of every row of the batch.
pub(super) fn tiles(segments: &Segments<'_>, b: usize, l: usize) -> Vec<Vec<Tile>> {
    let row = |b| {
        let (len, mut tiles) = (segments.len(b, l), Vec::new());
        let mut from = 0;
        while from < len {
            let end =
                (from + 1..len.min(from + TILE)).find(|&t| segments.reset(b, t, l)).unwrap_or(len.min(from + TILE));
            tiles.push(Tile { from, len: end - from, reset: segments.reset(b, from, l) });
            from = end;
        }
        tiles
    };
    (0..b).map(row).collect()
}

/// The inputs of a group of channels of one row of the batch.
#[derive(Clone, Copy)]
pub(super) struct Unit<'a> {
    /// Channels.
    pub(super) d: usize,
    pub(super) n: usize,
    pub(super) u: Rows<'a>,
    pub(super) delta: Rows<'a>,
    pub(super) delta_bias: Option<&'a [f32]>,
    pub(super) softplus: bool,
    pub(super) a: &'a [f32],
    pub(super) b: Rows<'a>,
    pub(super) c: Rows<'a>,
    pub(super) skip: Option<&'a [f32]>,
    pub(super) z: Option<Rows<'a>>,
    pub(super) tiles: &'a [Tile],
}

impl<'a> Unit<'a> {
    /// Up to `most` channels from `from` on.
    pub(super) fn new<'s: 'a>(
        dims: Dims,
        args: &Args<Rows<'s>>,
        b: usize,
        from: usize,
        most: usize,
        tiles: &'a [Tile],
    ) -> Self {
        let Dims { l, n, .. } = dims;
        let d = most.min(dims.d - from);
        let columns = |rows: Rows<'a>| rows.slice(b * l, l).columns(from, d);
        Self {
            d,
            n,
            u: columns(args.u),
            delta: columns(args.delta),
            delta_bias: args.delta_bias.map(|bias| &bias[from..][..d]),
            softplus: args.softplus,
            a: &args.a[from * n..][..d * n],
            b: args.b.slice(b * l, l),
            c: args.c.slice(b * l, l),
            skip: args.skip.map(|skip| &skip[from..][..d]),
            z: args.z.map(columns),
            tiles,
        }
    }

    /// Vectors of channels.
    pub(super) fn vectors<S: Simd>(&self) -> usize {
        self.d.div_ceil(S::F32_LANES)
    }

    /// The values before the states at position `t`: for each vector its index, Δ, dΔ / d delta if `SLOPE`, and Δu.
    #[inline(always)]
    pub(super) fn open<S: Simd, const SLOPE: bool>(
        &self,
        simd: S,
        t: usize,
        mut each: impl FnMut(usize, S::f32s, S::f32s, S::f32s),
    ) {
        let (delta, u) = (self.delta.row(t), self.u.row(t));
        for v in 0..self.vectors::<S>() {
            let from = v * S::F32_LANES;
            let bias = load_or_zero(simd, self.delta_bias, from);
            let x = simd.add_f32s(load(simd, delta, from), bias);
            let one = simd.splat_f32s(1.0);
            let (step, slope) = match (self.softplus, SLOPE) {
                (false, _) => (x, one),
                (true, false) => (math::softplus(simd, x), one),
                (true, true) => math::softplus_sigmoid(simd, x),
            };
            each(v, step, slope, simd.mul_f32s(step, load(simd, u, from)));
        }
    }

    /// Prefetches the inputs of position `t`.
    #[inline(always)]
    pub(super) fn prefetch(&self, t: usize) {
        prefetch(self.delta.row(t));
        prefetch(self.u.row(t));
        if let Some(z) = self.z {
            prefetch(z.row(t));
        }
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: all bits 0 are 16 zeros.
unsafe impl Zeroable for Line {}

// SAFETY: 64 bytes of f32 with an alignment of 64: no padding, and any bits are a value.
unsafe impl Pod for Line {}

/// Vectors that start at a cache line. Zeros at first.
pub(super) struct Buffer {
    lines: Vec<Line>,
    vectors: usize,
}

impl Buffer {
    pub(super) fn new<S: Simd>(vectors: usize) -> Self {
        Self { lines: vec![Line::zeroed(); (vectors * S::F32_LANES).div_ceil(16)], vectors }
    }

    #[inline(always)]
    pub(super) fn get<S: Simd>(&mut self) -> &mut [S::f32s] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.vectors]
    }
}

/// Up to a vector of `row` from `from` on; lanes after the end are 0.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, row: &[f32], from: usize) -> S::f32s {
    let rest = &row[from..];
    match S::as_simd_f32s(rest).0.first() {
        Some(&whole) => whole,
        None => simd.partial_load_f32s(rest),
    }
}

/// [`load`], or zeros.
#[inline(always)]
pub(super) fn load_or_zero<S: Simd>(simd: S, row: Option<&[f32]>, from: usize) -> S::f32s {
    row.map_or(simd.splat_f32s(0.0), |row| load(simd, row, from))
}

/// The inverse of [`load`].
#[inline(always)]
pub(super) fn store<S: Simd>(simd: S, row: &mut [f32], from: usize, x: S::f32s) {
    let rest = &mut row[from..];
    match S::as_mut_simd_f32s(rest).0.first_mut() {
        Some(whole) => *whole = x,
        None => simd.partial_store_f32s(rest, x),
    }
}

/// Prefetches a row into the L2 cache.
///
/// A group of channels reads short pieces of distant rows, which no hardware prefetcher follows.
#[inline(always)]
pub(super) fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..row.len() + 15).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(row.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// Part `i` of `of` of a tile's positions: what to prefetch after one block of states, so that the next tile is there in
/// time and never too many prefetches are in flight.
#[inline(always)]
pub(super) fn share(tile: Tile, i: usize, of: usize) -> std::ops::Range<usize> {
    tile.from + i * tile.len / of..tile.from + (i + 1) * tile.len / of
}

/// `[d n]` to vectors of channels `[d/lanes n lanes]`, times `scale`; lanes without a channel are 0.
pub(super) fn to_lanes<S: Simd>(from: &[f32], n: usize, scale: f32, to: &mut [S::f32s]) {
    let to: &mut [f32] = bytemuck::cast_slice_mut(to);
    for (d, row) in from.chunks_exact(n).enumerate() {
        let (v, lane) = (d / S::F32_LANES, d % S::F32_LANES);
        for (n_, &x) in row.iter().enumerate() {
            to[(v * n + n_) * S::F32_LANES + lane] = x * scale;
        }
    }
}

/// The inverse of [`to_lanes`].
pub(super) fn from_lanes<S: Simd>(from: &[S::f32s], n: usize, to: &mut [f32]) {
    let from: &[f32] = bytemuck::cast_slice(from);
    for (d, row) in to.chunks_exact_mut(n).enumerate() {
        let (v, lane) = (d / S::F32_LANES, d % S::F32_LANES);
        for (n_, x) in row.iter_mut().enumerate() {
            *x = from[(v * n + n_) * S::F32_LANES + lane];
        }
    }
}

/// Where blocks of states begin, and how wide they are: of [`BLOCK`], then of 1.
pub(super) fn blocks(n: usize) -> impl Iterator<Item = (usize, usize)> {
    let whole = n / BLOCK * BLOCK;
    (0..whole).step_by(BLOCK).map(|from| (from, BLOCK)).chain((whole..n).map(|from| (from, 1)))
}

/// A tile's rows of B or C `[t n]`, block after block: the block from state `n0` on is at `TILE * n0`, `[t width]`.
pub(super) fn pack(rows: Rows<'_>, tile: Tile, to: &mut [f32]) {
    for (n0, width) in blocks(rows.cols()) {
        for (t, to) in to[TILE * n0..][..tile.len * width].chunks_exact_mut(width).enumerate() {
            to.copy_from_slice(&rows.row(tile.from + t)[n0..][..width]);
        }
    }
}

/// Takes the first `count` elements off a slice.
pub(super) fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    rest.split_off_mut(..count).expect("outputs were sized for their parts")
}
