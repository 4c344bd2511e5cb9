//! On a GPU: a warp for each head of a row.

use crate::DType;
use crate::cuda::{Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit};

static SOURCE: Source = Source { name: "taylor_map", text: include_str!("taylor_map.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];
/// Heads of a block: `WARPS` of the source.
const WARPS: usize = 8;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    y: RawMat,
    dx: RawMat,
    rows: i64,
    heads: i64,
    first: f32,
    square: f32,
    product: f32,
}

pub(super) fn forward(f: usize, x: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    run("forward", f, x, y.as_mat(), None)
}

pub(super) fn backward(f: usize, x: Mat<'_>, dy: Mat<'_>, dx: MatMut<'_>) -> Result<()> {
    run("backward", f, x, dy, Some(dx.as_mat()))
}

fn run(entry: &'static str, f: usize, x: Mat<'_>, y: Mat<'_>, dx: Option<Mat<'_>>) -> Result<()> {
    let (gpu, rows, heads) = (x.gpu(), x.rows(), x.cols() / f);
    if x.is_empty() {
        return Ok(());
    }
    let width = f as f32;
    let raw = Raw {
        x: x.raw(),
        y: y.raw(),
        dx: dx.map_or(RawMat::NULL, |dx| dx.raw()),
        rows: rows as i64,
        heads: heads as i64,
        first: width.powf(-0.25),
        square: (2.0 * width).sqrt().recip(),
        product: width.sqrt().recip(),
    };
    let blocks = (rows * heads).div_ceil(WARPS).min(64 * gpu.multiprocessors());
    let kernel = gpu.kernel(&SOURCE, entry, &defines(x.dtype(), f))?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked shapes and formats.
    unsafe { kernel.launch(Launch::linear(blocks, 32 * WARPS as u32), &raw) }
}

fn defines(dtype: DType, f: usize) -> Vec<Define> {
    vec![Define::dtype("T", dtype), Define::new("F", f)]
}

/// Specialisations for widths that models have.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |(dtype, f)| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(dtype, f) };
    [(DType::F32, 4), (DType::Bf16, 16)].map(unit).to_vec()
}
