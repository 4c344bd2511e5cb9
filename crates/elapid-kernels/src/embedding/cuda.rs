//! On a GPU. For the backward, positions are sorted by id, eight bits at a time (radix sort), and blocks sum chunks of them.
//! The work is proportional to the number of positions, whatever the size of the table and however often an id occurs, and
//! rows without a position are not touched. A row shared by several chunks is summed in their order, so runs do not differ.

use crate::DType;
use crate::cuda::{Buffer, Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::{Check, product};

static SOURCE: Source = Source { name: "embedding", text: include_str!("embedding.cu") };
const ENTRIES: [&str; 7] = ["forward", "count", "scan", "place", "bound", "backward", "join"];
/// Positions that a block sorts; bits that it sorts them by.
const STRETCH: usize = 2048;
const BITS: u32 = 8;
/// Minimum positions per summing block.
const CHUNK: usize = 16;
/// Columns per block of the kernels that sum chunks and that combine their parts.
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
    bounds: u64,
    from: u64,
    order: u64,
    shift: u32,
    digits: u32,
    chunk: u32,
}

pub(super) fn forward(ids: &Buffer, table: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let gpu = y.gpu();
    let args = Args { table: table.raw(), ..args(ids, table.rows(), &y.as_mat()) };
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(y.dtype()))?;
    // SAFETY: `Args` is laid out as in the source; `super` has checked that there are m ids and that y is m rows as wide as
    // the table, of its format. The kernel compares ids with v.
    unsafe {
        kernel.launch(Launch::linear(y.rows().div_ceil(if y.cols() < 512 { 4 } else { 1 }).min(1 << 20), 128), &args)
    }
}

pub(super) fn backward(ids: &Buffer, dy: Mat<'_>, dtable: MatMut<'_>) -> Result<()> {
    let (v, d) = dtable.shape();
    if dy.is_empty() || dtable.is_empty() {
        return Ok(());
    }
    let (gpu, m) = (dtable.gpu(), dy.rows());
    Check("embedding").that(u32::try_from(m).is_ok(), "ids", || "at most 2^32 - 1".into(), || m.to_string())?;
    let (stretches, chunk) = (m.div_ceil(STRETCH), (m / (16 * gpu.multiprocessors())).max(CHUNK));
    let chunks = m.div_ceil(chunk);
    let partial = gpu.alloc(product(&[2, chunks, d, 4]))?;
    let [counts, bounds] = [gpu.alloc(product(&[stretches, 4 << BITS]))?, gpu.alloc(product(&[2, v + 1, 4]))?];
    let mut sorted = [gpu.alloc(m * 4)?, gpu.alloc(m * 4)?];
    let mut args = Args {
        partial: partial.mat(2 * chunks, d, DType::F32).raw(),
        dtable: dtable.raw(),
        counts: counts.address(),
        bounds: bounds.address(),
        chunk: chunk as u32,
        ..args(ids, v, &dy)
    };
    let defines = defines(dy.dtype());
    let run = |entry, launch, args: &Args| {
        // SAFETY: `Args` is laid out as in the source; `super` has checked ids, dy and dtable, and the rest was made for
        // their sizes.
        unsafe { gpu.kernel(&SOURCE, entry, &defines)?.launch(launch, args) }
    };
    // Ids are 0 to v: v stands for those that are not in the table.
    let bits = usize::BITS - v.leading_zeros();
    for shift in (0..bits).step_by(BITS as usize) {
        (args.order, args.shift, args.digits) = (sorted[0].address(), shift, 1 << (bits - shift).min(BITS));
        run("count", Launch::linear(stretches, 1 << BITS), &args)?;
        run("scan", Launch::linear(1, 1024), &args)?;
        run("place", Launch::linear(stretches, 1 << BITS), &args)?;
        args.from = args.order;
        sorted.swap(0, 1);
    }
    let [sums, parts] = COLUMNS
        .map(|columns| Launch { grid: (chunks as u32, d.div_ceil(columns) as u32, 1), ..Launch::linear(1, 128) });
    run("bound", Launch::linear(m.div_ceil(256), 256), &args)?;
    run("backward", sums, &args)?;
    run("join", parts, &args)
}

fn args(ids: &Buffer, v: usize, y: &Mat<'_>) -> Args {
    Args {
        ids: ids.address(),
        table: RawMat::NULL,
        y: y.raw(),
        partial: RawMat::NULL,
        dtable: RawMat::NULL,
        m: y.rows() as i64,
        d: y.cols() as i64,
        v: v as i64,
        counts: 0,
        bounds: 0,
        from: 0,
        order: 0,
        shift: 0,
        digits: 0,
        chunk: 0,
    }
}

fn defines(dtype: DType) -> Vec<Define> {
    vec![Define::dtype("T", dtype)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [DType::F32, DType::Bf16].map(|t| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(t) }).to_vec()
}
