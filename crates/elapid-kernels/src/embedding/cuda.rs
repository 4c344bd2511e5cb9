//! On a GPU. The gradient of a row of the table is summed by one block in the order of positions, or by several in
//! parts that are added in order: no two runs differ.

use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::Check;

static SOURCE: Source = Source { name: "embedding", text: include_str!("embedding.cu") };
const ENTRIES: [&str; 3] = ["forward", "backward", "join"];
const CHECK: Check = Check("embedding");

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    ids: u64,
    table: RawMat,
    y: RawMat,
    partial: RawMat,
    dtable: RawMat,
    m: i64,
    d: i64,
    v: i64,
    part: i64,
    parts: i64,
}

/// Looks rows up.
///
/// `ids` `[m]` u32, `table` `[v d]`, `y` `[m d]` (=). A row of an id that is not in the table is NaN: who makes ids on a
/// device checks them first.
///
/// # Errors
/// If shapes or formats differ.
pub fn forward(gpu: &Gpu, ids: &Buffer, table: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    check(ids, table.cols, table.dtype, &y.as_mat())?;
    if y.is_empty() {
        return Ok(());
    }
    let args = Args { table: table.raw(), ..args(ids, table.rows, &y.as_mat()) };
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(y.dtype))?;
    // SAFETY: `Args` is laid out as in the source; all matrices lie inside their buffers.
    unsafe { kernel.launch(Launch::linear(y.rows.min(1 << 20), 128), &args) }
}

/// Adds the gradient of every looked-up row.
///
/// `ids` `[m]` u32, `dy` `[m d]`, `dtable` `[v d]` f32 (+=).
///
/// # Errors
/// If shapes differ, or there is too little memory.
pub fn backward(gpu: &Gpu, ids: &Buffer, dy: Mat<'_>, dtable: MatMut<'_>) -> Result<()> {
    check(ids, dtable.cols, dy.dtype, &dy)?;
    CHECK.that(dtable.dtype == DType::F32, "dtable", || "f32".into(), || dtable.dtype.to_string())?;
    let (v, d) = dtable.shape();
    if dy.is_empty() || dtable.is_empty() {
        return Ok(());
    }
    // A small table has rows that occur often: several blocks share them.
    let parts = (8 * gpu.multiprocessors()).div_ceil(v).min(dy.rows.div_ceil(512)).max(1);
    let part = dy.rows.div_ceil(parts);
    let partial = if parts > 1 { Some(gpu.alloc(parts * v * d * 4)?) } else { None };
    let args = Args {
        partial: partial.as_ref().map_or(RawMat::NULL, |p| p.mat(parts * v, d, DType::F32).raw()),
        dtable: dtable.raw(),
        part: part as i64,
        parts: parts as i64,
        ..args(ids, v, &dy)
    };
    let launch = Launch { grid: (v as u32, parts as u32, 1), ..Launch::linear(1, 128) };
    let defines = defines(dy.dtype);
    // SAFETY: `Args` is laid out as in the source; all matrices lie inside their buffers.
    unsafe { gpu.kernel(&SOURCE, "backward", &defines)?.launch(launch, &args)? };
    if parts > 1 {
        // SAFETY: as above.
        unsafe { gpu.kernel(&SOURCE, "join", &defines)?.launch(Launch::linear(v, 128), &args)? };
    }
    Ok(())
}

fn check(ids: &Buffer, d: usize, dtype: DType, y: &Mat<'_>) -> Result<()> {
    CHECK.shape("y", y.shape(), (ids.bytes() / 4, d))?;
    CHECK.that(y.dtype == dtype, "y", || dtype.to_string(), || y.dtype.to_string())?;
    Ok(())
}

fn args(ids: &Buffer, v: usize, y: &Mat<'_>) -> Args {
    let null = RawMat::NULL;
    let (m, d) = (y.rows as i64, y.cols as i64);
    let (ids, v, y) = (ids.address(), v as i64, y.raw());
    Args { ids, table: null, y, partial: null, dtable: null, m, d, v, part: 0, parts: 1 }
}

fn defines(dtype: DType) -> Vec<Define> {
    vec![Define::dtype("T", dtype)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [DType::F32, DType::Bf16].map(|t| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(t) }).to_vec()
}
