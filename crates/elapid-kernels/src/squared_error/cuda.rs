//! On a GPU: blocks sum parts in f64, one block adds these in order.

use crate::DType;
use crate::cuda::{Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};

static SOURCE: Source = Source { name: "squared_error", text: include_str!("squared_error.cu") };
const ENTRIES: [&str; 3] = ["parts", "mean", "backward"];
const THREADS: u32 = 256;
/// Bytes of a part: a sum and a count, f64.
const PART: usize = 16;
/// Most parts; [`THREADS`] threads add them.
const PARTS: usize = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    y: RawMat,
    targets: u64,
    dy: RawMat,
    parts: u64,
    mean: u64,
    count: u64,
    len: i64,
    cols: i64,
    blocks: i32,
    scale: f32,
}

impl Raw {
    fn new(y: &Mat<'_>, targets: &Mat<'_>, count: u64) -> Self {
        let null = RawMat::NULL;
        let (len, cols) = (y.len() as i64, y.cols().max(1) as i64);
        let (y, targets) = (y.raw(), targets.address());
        Self { y, targets, dy: null, parts: 0, mean: 0, count, len, cols, blocks: 0, scale: 0.0 }
    }
}

pub(super) fn forward(y: Mat<'_>, targets: Mat<'_>, mean: MatMut<'_>, count: MatMut<'_>) -> Result<()> {
    let (gpu, defines) = (mean.gpu(), defines(y.dtype()));
    // A number of parts that depends on the size alone, so that the sum does not depend on the device.
    let blocks = y.len().div_ceil(8 * THREADS as usize).clamp(1, PARTS);
    let parts = gpu.alloc(blocks * PART)?;
    let args = Raw {
        parts: parts.address(),
        mean: mean.address(),
        blocks: blocks as i32,
        ..Raw::new(&y, &targets, count.address())
    };
    // SAFETY: `Raw` is laid out as in the source; `super` has checked that there is a target for every y, and `parts` has
    // one for every block.
    unsafe {
        gpu.kernel(&SOURCE, "parts", &defines)?.launch(Launch::linear(blocks, THREADS), &args)?;
        gpu.kernel(&SOURCE, "mean", &defines)?.launch(Launch::linear(1, THREADS), &args)
    }
}

pub(super) fn backward(y: Mat<'_>, targets: Mat<'_>, count: Mat<'_>, scale: f32, dy: MatMut<'_>) -> Result<()> {
    let gpu: Gpu = dy.gpu();
    let args = Raw { dy: dy.raw(), scale, ..Raw::new(&y, &targets, count.address()) };
    let blocks = y.len().div_ceil(THREADS as usize).min(16 * gpu.multiprocessors());
    // SAFETY: as in `forward`; dy has the shape and format of y.
    unsafe { gpu.kernel(&SOURCE, "backward", &defines(y.dtype()))?.launch(Launch::linear(blocks, THREADS), &args) }
}

fn defines(dtype: DType) -> [Define; 1] {
    [Define::dtype("T", dtype)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |dtype| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(dtype).to_vec() };
    [DType::F32, DType::Bf16].map(unit).to_vec()
}
