//! On a GPU. For the backward, positions are sorted by id (counted, placed, and those of one id put in order), and blocks
//! sum stretches of them: the work is that of the positions, whatever the size of the table, and rows without a position
//! are not touched. A row that several stretches share is added up in their order: no two runs differ.

use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::Check;

static SOURCE: Source = Source { name: "embedding", text: include_str!("embedding.cu") };
const ENTRIES: [&str; 7] = ["forward", "count", "scan", "place", "sort", "backward", "join"];
const CHECK: Check = Check("embedding");
/// Positions of a stretch; columns of a block of the kernels that sum them and that add up their parts.
const CHUNK: usize = 16;
const COLUMNS: [usize; 2] = [1024, 128];

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
    counts: u64,
    starts: u64,
    placed: u64,
    order: u64,
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
    let m = dy.rows;
    CHECK.that(u32::try_from(m).is_ok(), "ids", || "at most 2^32 - 1".into(), || m.to_string())?;
    let stretches = m.div_ceil(CHUNK);
    let partial = gpu.alloc(2 * stretches * d * 4)?;
    let numbers = gpu.alloc((2 * v + 1 + 2 * m) * 4)?;
    gpu.zero(numbers.mat_mut(1, v, DType::F32))?;
    let at = |numbers_before: usize| numbers.address() + 4 * numbers_before as u64;
    let args = Args {
        partial: partial.mat(2 * stretches, d, DType::F32).raw(),
        dtable: dtable.raw(),
        counts: at(0),
        starts: at(v),
        placed: at(2 * v + 1),
        order: at(2 * v + 1 + m),
        ..args(ids, v, &dy)
    };
    let defines = defines(dy.dtype);
    let positions = Launch::linear(m.div_ceil(256).min(8 * gpu.multiprocessors()), 256);
    let [sums, parts] = COLUMNS
        .map(|columns| Launch { grid: (stretches as u32, d.div_ceil(columns) as u32, 1), ..Launch::linear(1, 128) });
    for (entry, launch) in [
        ("count", positions),
        ("scan", Launch::linear(1, 1024)),
        ("place", positions),
        ("sort", positions),
        ("backward", sums),
        ("join", parts),
    ] {
        // SAFETY: `Args` is laid out as in the source; all matrices and numbers lie inside their buffers.
        unsafe { gpu.kernel(&SOURCE, entry, &defines)?.launch(launch, &args)? };
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
    Args { ids, table: null, y, partial: null, dtable: null, m, d, v, counts: 0, starts: 0, placed: 0, order: 0 }
}

fn defines(dtype: DType) -> Vec<Define> {
    vec![Define::dtype("T", dtype)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [DType::F32, DType::Bf16].map(|t| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(t) }).to_vec()
}
