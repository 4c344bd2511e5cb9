//! On a GPU: sines and cosines of a few rows are computed once for all heads, in shared memory. Frequencies travel with the
//! launch, so nothing is uploaded.

use super::{Args, Pairs};
use crate::DType;
use crate::cuda::{Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit};

static SOURCE: Source = Source { name: "rotate", text: include_str!("rotate.cu") };
const THREADS: usize = 256;
/// Pairs of a head that one launch rotates.
const PAIRS: usize = 256;
/// Bytes of a pair's sine and cosine.
const ENTRY: usize = 8;
/// Most bytes of a block's sines and cosines.
const SHARED: usize = 16 << 10;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    y: RawMat,
    positions: u64,
    rows: i64,
    heads: i32,
    dim: i32,
    half: i32,
    first: i32,
    count: i32,
    tile: i32,
    rest: i32,
    factor: f32,
    sign: f32,
    grows: i32,
    centre: f64,
    last: u64,
    turns: [f64; PAIRS],
    growth: [f32; PAIRS],
}

/// `x` into y, or without it y in place.
// Long: each argument of the kernel is a line.
pub(super) fn forward(args: &Args<'_, Mat<'_>>, inverse: bool, x: Option<Mat<'_>>, y: MatMut<'_>) -> Result<()> {
    let (gpu, y) = (y.gpu(), y.as_mat());
    let (dim, half) = (args.dim, args.frequencies.len());
    let copies = x.is_some();
    let x = x.unwrap_or(y);
    if y.is_empty() {
        return Ok(());
    }
    let heads = y.cols() / dim;
    let (halves, wide) = match args.pairs {
        Pairs::Halves => (true, half.is_multiple_of(8)),
        Pairs::Interleaved => (false, half.is_multiple_of(4)),
    };
    let vector = wide && dim.is_multiple_of(8) && x.is_aligned() && y.is_aligned();
    let kernel = gpu.kernel(&SOURCE, "rotate", &defines(y.dtype(), halves, vector))?;
    for first in (0..half.max(1)).step_by(PAIRS) {
        let count = PAIRS.min(half - first);
        // The first launch copies what no launch rotates.
        let rest = if copies && first == 0 { dim - 2 * half } else { 0 };
        if count + rest == 0 {
            return Ok(());
        }
        let steps = heads * (count + rest).div_ceil(if vector { 8 } else { 1 });
        let tile = (4 * THREADS / steps).clamp(1, SHARED / ENTRY / count.max(1)).min(y.rows());
        let mut turns = [0.0; PAIRS];
        for (turns, frequency) in turns.iter_mut().zip(&args.frequencies[first..first + count]) {
            *turns = frequency / std::f64::consts::TAU;
        }
        let mut growth = [0.0; PAIRS];
        for (to, growth) in growth.iter_mut().zip(args.growth.iter().skip(first).take(count)) {
            *to = (growth * std::f64::consts::LOG2_E) as f32;
        }
        let raw = Raw {
            x: x.raw(),
            y: y.raw(),
            positions: args.positions.address(),
            rows: y.rows() as i64,
            heads: heads as i32,
            dim: dim as i32,
            half: half as i32,
            first: first as i32,
            count: count as i32,
            tile: tile as i32,
            rest: rest as i32,
            factor: args.factor as f32,
            sign: if inverse { -1.0 } else { 1.0 },
            grows: (!args.growth.is_empty()).into(),
            centre: args.centre,
            last: args.last,
            turns,
            growth,
        };
        let blocks = y.rows().div_ceil(tile).min(16 * gpu.multiprocessors());
        let shared = (tile * count * ENTRY) as u32;
        let launch = Launch { shared, ..Launch::linear(blocks, THREADS as u32).overlapping() };
        // SAFETY: `Raw` is laid out as in the source; `super` has checked shapes and formats, and that there is a position
        // for every row; a block has shared memory for `tile` rows of `count` pairs.
        unsafe { kernel.launch(launch, &raw)? };
    }
    Ok(())
}

fn defines(dtype: DType, halves: bool, vector: bool) -> Vec<Define> {
    let [halves, vector] = [("HALVES", halves), ("VECTOR", vector)].map(|(name, on)| Define::new(name, i32::from(on)));
    vec![Define::dtype("T", dtype), halves, vector]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        for (halves, vector) in [(true, true), (true, false), (false, true), (false, false)] {
            units.push(Unit { source: &SOURCE, entries: &["rotate"], defines: defines(dtype, halves, vector) });
        }
    }
    units
}
