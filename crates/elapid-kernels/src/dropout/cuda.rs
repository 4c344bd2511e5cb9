//! On a GPU: every value is read once and written once; a thread draws for eight neighbouring elements, or for one where rows
//! do not allow it.

use super::mask::{Mask, Unit};
use crate::DType;
use crate::cuda::{Buffer, Define, Mat, MatMut, RawMat, Result, Source};
use crate::pointwise::cuda::{tiles, vector_define};

static SOURCE: Source =
    Source { name: "dropout", text: concat!(include_str!("../sampling/philox.cuh"), include_str!("dropout.cu")) };
const ENTRIES: [&str; 1] = ["forward"];

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    y: RawMat,
    /// The address of the number of the first sample: read at every launch, as a graph is replayed for other batches.
    first: u64,
    key: u64,
    rows: i64,
    cols: i64,
    l: i64,
    threshold: u32,
    factor: f32,
    by_sample: i32,
}

pub(super) fn forward(mask: &Mask, first: &Buffer, x: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let (gpu, (rows, cols)) = (y.gpu(), x.shape());
    if rows * cols == 0 {
        return Ok(());
    }
    let vector = cols.is_multiple_of(8) && x.is_aligned() && y.as_mat().is_aligned();
    let raw = Raw {
        x: x.raw(),
        y: y.raw(),
        first: first.address(),
        key: mask.key,
        rows: rows as i64,
        cols: cols as i64,
        l: mask.l as i64,
        threshold: mask.threshold(),
        factor: mask.factor(),
        by_sample: (mask.unit == Unit::Sample).into(),
    };
    let kernel = gpu.kernel(&SOURCE, "forward", &[Define::dtype("T", x.dtype()), vector_define(vector)])?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked that x and y have one shape and format, and that `first`
    // has one u64.
    unsafe { kernel.launch(tiles(gpu, rows, cols, vector), &raw) }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<crate::cuda::Unit> {
    let unit = |dtype, vector| crate::cuda::Unit {
        source: &SOURCE,
        entries: &ENTRIES,
        defines: vec![Define::dtype("T", dtype), vector_define(vector)],
    };
    [DType::F32, DType::Bf16].into_iter().flat_map(|dtype| [false, true].map(|vector| unit(dtype, vector))).collect()
}
