//! On a GPU: a thread for each element of y.

use super::halves::Halves;
use crate::DType;
use crate::cuda::{Buffer, Define, Mat, RawMat, Result, Source, Unit};
use crate::pointwise::cuda::tiles;

static SOURCE: Source = Source { name: "two_halves", text: include_str!("two_halves.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    a: RawMat,
    b: RawMat,
    y: RawMat,
    positions: u64,
    border: u64,
    rows: i64,
    cols: i64,
    c: i64,
}

pub(super) fn run(
    entry: &'static str,
    halves: &Halves<'_>,
    positions: Option<&Buffer>,
    a: Mat<'_>,
    b: Mat<'_>,
    y: Mat<'_>,
) -> Result<()> {
    let (gpu, (rows, cols)) = (y.gpu(), y.shape());
    if y.is_empty() {
        return Ok(());
    }
    let raw = Raw {
        a: a.raw(),
        b: b.raw(),
        y: y.raw(),
        positions: positions.map_or(0, Buffer::address),
        border: halves.border,
        rows: rows as i64,
        cols: cols as i64,
        c: halves.c as i64,
    };
    let kernel = gpu.kernel(&SOURCE, entry, &[Define::dtype("T", y.dtype())])?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked shapes and formats, and that there is a position for
    // every row.
    unsafe { kernel.launch(tiles(gpu, rows, cols, false), &raw) }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |dtype| Unit { source: &SOURCE, entries: &ENTRIES, defines: vec![Define::dtype("T", dtype)] };
    [DType::F32, DType::Bf16].map(unit).to_vec()
}
