//! On a GPU.

use crate::cuda::{Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::Check;

static SOURCE: Source = Source { name: "neg_exp", text: include_str!("neg_exp.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];
const CHECK: Check = Check("neg_exp");

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    x: RawMat,
    y: RawMat,
    dx: RawMat,
    rows: i64,
    cols: i64,
}

/// y = -exp(x), both f32 without gaps; `y` (=).
///
/// # Errors
/// If shapes differ.
pub fn forward(gpu: &Gpu, x: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    CHECK.shape("y", y.shape(), x.shape())?;
    let args = Args { x: x.raw(), y: y.raw(), dx: RawMat::NULL, ..sizes(&[x, y.as_mat()])? };
    launch(gpu, "forward", &args)
}

/// The gradient: `y` is the output of [`forward`], `dx` (+=).
///
/// # Errors
/// If shapes differ.
pub fn backward(gpu: &Gpu, y: Mat<'_>, dy: Mat<'_>, dx: MatMut<'_>) -> Result<()> {
    CHECK.shape("dy", dy.shape(), y.shape())?;
    CHECK.shape("dx", dx.shape(), y.shape())?;
    let args = Args { x: dy.raw(), y: y.raw(), dx: dx.raw(), ..sizes(&[y, dy, dx.as_mat()])? };
    launch(gpu, "backward", &args)
}

fn sizes(all: &[Mat<'_>]) -> Result<Args> {
    for x in all {
        CHECK.that(x.is_contiguous(), "x", || "no gaps between rows".into(), || format!("{x:?}"))?;
        CHECK.that(x.dtype() == crate::DType::F32, "x", || "f32".into(), || x.dtype().to_string())?;
    }
    let null = RawMat::NULL;
    Ok(Args { x: null, y: null, dx: null, rows: 1, cols: all[0].len() as i64 })
}

fn launch(gpu: &Gpu, entry: &'static str, args: &Args) -> Result<()> {
    let blocks = (args.cols as usize).div_ceil(256).min(16 * gpu.multiprocessors());
    // SAFETY: `Args` is laid out as in the source; all matrices lie inside their buffers.
    unsafe { gpu.kernel(&SOURCE, entry, &[])?.launch(Launch::linear(blocks, 256), args) }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    vec![Unit { source: &SOURCE, entries: &ENTRIES, defines: Vec::new() }]
}
