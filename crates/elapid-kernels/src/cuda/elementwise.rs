//! Elementwise conversion, sums and fills, and gathering rows.

use super::{Buffer, Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::DType;
use crate::error::Check;

static SOURCE: Source = Source { name: "elementwise", text: include_str!("elementwise.cu") };
const ENTRIES: [&str; 7] = ["convert", "add", "scale", "fill", "first_non_finite", "select_rows", "add_rows"];
const CHECK: Check = Check("elementwise");

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    from: RawMat,
    to: RawMat,
    rows: i64,
    cols: i64,
    factor: f32,
    found: u64,
    order: u64,
}

/// to = from, between dtypes.
///
/// # Errors
/// If shapes differ.
pub fn convert(gpu: &Gpu, from: Mat<'_>, to: MatMut<'_>) -> Result<()> {
    CHECK.shape("to", to.shape(), from.shape())?;
    if from.dtype() == to.dtype() {
        return gpu.copy(from, to);
    }
    launch(gpu, "convert", Some(from), &to, Extra::default())
}

/// to += from; f32 arithmetic, any dtypes.
///
/// # Errors
/// If shapes differ.
pub fn add(gpu: &Gpu, from: Mat<'_>, to: MatMut<'_>) -> Result<()> {
    CHECK.shape("to", to.shape(), from.shape())?;
    launch(gpu, "add", Some(from), &to, Extra::default())
}

/// x *= factor.
///
/// # Errors
/// If the driver refuses.
pub fn scale(gpu: &Gpu, x: MatMut<'_>, factor: f32) -> Result<()> {
    launch(gpu, "scale", None, &x, Extra { factor, ..Extra::default() })
}

/// x = value, everywhere.
///
/// # Errors
/// If the driver refuses.
pub fn fill(gpu: &Gpu, x: MatMut<'_>, value: f32) -> Result<()> {
    launch(gpu, "fill", None, &x, Extra { factor: value, ..Extra::default() })
}

/// Writes the row-major index of the first value that is not finite, or the largest u64, to `out`, u64 `[1]`.
///
/// # Errors
/// If `out` is too small.
pub fn first_non_finite(gpu: &Gpu, x: Mat<'_>, out: &Buffer) -> Result<()> {
    CHECK.that(out.bytes() >= 8, "out", || "8 bytes".into(), || out.bytes().to_string())?;
    gpu.write(out, 0, &[u64::MAX])?;
    launch(gpu, "first_non_finite", Some(x), &x.into_mut(), Extra { found: out.address(), ..Extra::default() })
}

/// Row r of `to` (=) is row `rows[r]` of `from`.
///
/// # Errors
/// If widths differ, there is not one number for every row of `to`, or a row does not exist; while a graph is captured.
pub fn select_rows(gpu: &Gpu, from: Mat<'_>, rows: &[u32], to: MatMut<'_>) -> Result<()> {
    CHECK.shape("to", to.shape(), (rows.len(), from.cols()))?;
    let missing = rows.iter().find(|&&row| row as usize >= from.rows());
    CHECK.that(missing.is_none(), "rows", || format!("rows below {}", from.rows()), || format!("{missing:?}"))?;
    take_rows(gpu, from, &gpu.upload(rows)?, to)
}

/// Every row of `to` (=) is `row`.
///
/// # Errors
/// If widths differ, or there is too little memory.
pub(crate) fn repeat(gpu: &Gpu, row: Mat<'_>, to: MatMut<'_>) -> Result<()> {
    CHECK.shape("row", row.shape(), (1, to.cols()))?;
    // Row 0 for every row.
    let first = gpu.alloc(size_of::<u32>() * to.rows())?;
    gpu.zero(first.mat_mut(1, to.rows(), DType::F32))?;
    take_rows(gpu, row, &first, to)
}

/// `rows` has a u32 for every row of `to`, below the rows of `from`.
fn take_rows(gpu: &Gpu, from: Mat<'_>, rows: &Buffer, to: MatMut<'_>) -> Result<()> {
    launch(gpu, "select_rows", Some(from), &to, Extra { order: rows.address(), ..Extra::default() })
}

/// to += Σ rows of `from`, in an order that depends only on their number; adds up the partial sums of blocks.
///
/// # Errors
/// If `to` is not one row of the same width.
pub fn add_rows(gpu: &Gpu, from: Mat<'_>, to: MatMut<'_>) -> Result<()> {
    CHECK.shape("to", (1, to.len()), (1, from.cols()))?;
    CHECK.that(to.is_contiguous(), "to", || "no gaps between rows".into(), || format!("{to:?}"))?;
    let kernel = gpu.kernel(&SOURCE, "add_rows", &defines(from.dtype(), to.dtype()))?;
    let (rows, cols) = (from.rows() as i64, from.cols() as i64);
    let args = Args { from: from.raw(), to: to.raw(), rows, cols, factor: 0.0, found: 0, order: 0 };
    // SAFETY: `Args` is laid out as in the source; both matrices lie inside their buffers.
    unsafe { kernel.launch(Launch::linear(from.cols().div_ceil(32), 256), &args) }
}

#[derive(Default)]
struct Extra {
    factor: f32,
    found: u64,
    order: u64,
}

fn launch(gpu: &Gpu, entry: &'static str, from: Option<Mat<'_>>, to: &MatMut<'_>, extra: Extra) -> Result<()> {
    let here = to.gpu() == *gpu && from.is_none_or(|from| from.gpu() == *gpu);
    CHECK.that(here, "device", || format!("{gpu:?}"), || format!("{from:?}, {to:?}"))?;
    if to.is_empty() {
        return Ok(());
    }
    // Without gaps, everything is one row.
    let flat = entry != "select_rows" && to.is_contiguous() && from.is_none_or(|from| from.is_contiguous());
    let (rows, cols) = if flat { (1, to.len()) } else { to.shape() };
    let Extra { factor, found, order } = extra;
    let kernel = gpu.kernel(&SOURCE, entry, &defines(from.map_or(to.dtype(), |from| from.dtype()), to.dtype()))?;
    let args = Args {
        from: from.map_or(RawMat::NULL, |from| from.raw()),
        to: to.raw(),
        rows: rows as i64,
        cols: cols as i64,
        factor,
        found,
        order,
    };
    let most = 16 * gpu.multiprocessors();
    let across = cols.div_ceil(256).min(most);
    let down = rows.min(most.div_ceil(across)).min(65_535);
    let launch = Launch { grid: (across as u32, down as u32, 1), ..Launch::linear(1, 256) };
    // SAFETY: `Args` is laid out as in the source; both matrices lie inside their buffers, and rows that are taken exist.
    unsafe { kernel.launch(launch, &args) }
}

fn defines(from: DType, to: DType) -> Vec<Define> {
    vec![Define::dtype("A", from), Define::dtype("B", to)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let formats = [DType::F32, DType::Bf16];
    let pairs = formats.into_iter().flat_map(|from| formats.map(|to| (from, to)));
    pairs.map(|(from, to)| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(from, to) }).collect()
}
