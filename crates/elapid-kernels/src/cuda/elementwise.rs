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

/// Row r of `to` (=) is row `rows[r]` of `from`; `rows` u32. Rows must exist; the caller checks that.
///
/// # Errors
/// If widths differ, or `rows` is too short.
pub fn select_rows(gpu: &Gpu, from: Mat<'_>, rows: &Buffer, to: MatMut<'_>) -> Result<()> {
    CHECK.that(
        to.cols() == from.cols(),
        "to",
        || format!("rows of {}", from.cols()),
        || format!("rows of {}", to.cols()),
    )?;
    CHECK.that(rows.bytes() / 4 >= to.rows(), "rows", || to.rows().to_string(), || (rows.bytes() / 4).to_string())?;
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
    // SAFETY: `Args` is laid out as in the source; both matrices lie inside their buffers.
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
