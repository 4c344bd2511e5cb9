//! On a GPU.

use crate::cuda::{Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};

static SOURCE: Source = Source { name: "neg_exp", text: include_str!("neg_exp.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    x: RawMat,
    y: RawMat,
    dx: RawMat,
    rows: i64,
    cols: i64,
}

pub(super) fn forward(x: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let args = Args { x: x.raw(), y: y.raw(), dx: RawMat::NULL, rows: 1, cols: x.len() as i64 };
    launch(y.gpu(), "forward", x.len(), &args)
}

pub(super) fn backward(y: Mat<'_>, dy: Mat<'_>, dx: MatMut<'_>) -> Result<()> {
    let args = Args { x: dy.raw(), y: y.raw(), dx: dx.raw(), rows: 1, cols: y.len() as i64 };
    launch(dx.gpu(), "backward", y.len(), &args)
}

fn launch(gpu: Gpu, entry: &'static str, len: usize, args: &Args) -> Result<()> {
    let blocks = len.div_ceil(256).min(16 * gpu.multiprocessors());
    // SAFETY: `Args` is laid out as in the source; `super` has checked that all matrices are `len` f32 without gaps.
    unsafe { gpu.kernel(&SOURCE, entry, &[])?.launch(Launch::linear(blocks, 256), args) }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    vec![Unit { source: &SOURCE, entries: &ENTRIES, defines: Vec::new() }]
}
