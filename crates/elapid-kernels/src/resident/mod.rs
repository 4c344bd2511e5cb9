//! What kernels have in common that take a whole model through one position in one launch: blocks that are all resident and
//! synchronise between stages (`resident.cuh`), and sums and products of one row (`one_row.cuh`).

use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, Result, Source};
use crate::error::Check;

/// Computing warps; two more copy weights and prefetch small parameters.
pub(crate) const WARPS: usize = 16;

/// Threads of a block.
pub(crate) const THREADS: u32 = 32 * (WARPS as u32 + 2);

/// Dynamic shared memory of a block on every device since sm_80; sm_90 has 64 KiB more.
const SHARED: usize = 163 << 10;

/// Part of it for tracking which pieces of weights have arrived, and where they are.
pub(crate) const BARRIERS: usize = 32 * (8 + 8 + 4 + 4);

/// Maximum of `CHUNKS` of the source for one row: as many as registers hold.
pub(crate) const CHUNKS: usize = 10;

/// Shared memory of a block in bytes: as much as the device has, so that weights are copied far ahead.
pub(crate) fn room(gpu: &Gpu) -> usize {
    if gpu.capability() >= (9, 0) { SHARED + (64 << 10) } else { SHARED }
}

/// One block per multiprocessor.
pub(crate) fn launch(gpu: &Gpu) -> Launch {
    let shared = u32::try_from(room(gpu)).unwrap_or(u32::MAX);
    Launch { shared, ..Launch::linear(gpu.multiprocessors(), THREADS) }
}

/// `CHUNKS` of the source for one row.
pub(crate) fn chunks(d: usize) -> usize {
    d.div_ceil(256)
}

/// A weight of a product: bf16 rows without gaps, aligned.
pub(crate) fn matrix(check: Check, name: &'static str, m: Mat<'_>, shape: (usize, usize)) -> Result<()> {
    check.shape(name, m.shape(), shape)?;
    let fits = m.dtype() == DType::Bf16 && m.is_contiguous() && m.address().is_multiple_of(16);
    check.that(fits, name, || "bf16, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

/// A small parameter or a state: f32, without gaps, aligned.
pub(crate) fn vector(check: Check, name: &'static str, m: Mat<'_>, len: usize) -> Result<()> {
    check.len(name, m.len(), len)?;
    let fits = m.dtype() == DType::F32 && m.is_contiguous() && m.address().is_multiple_of(16);
    check.that(fits, name, || "f32, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

/// As an argument of a kernel, where sizes were checked.
pub(crate) fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Transpose {
    from: u64,
    to: u64,
    rows: i32,
    cols: i32,
}

/// A copy of a matrix with rows and columns exchanged, by the kernel `transpose` of `one_row.cuh`.
pub(crate) fn transpose(gpu: &Gpu, source: &'static Source, defines: &[Define], from: Mat<'_>) -> Result<Buffer> {
    let (rows, cols) = from.shape();
    let to = gpu.alloc(rows * cols * 2)?;
    let args = Transpose { from: from.address(), to: to.address(), rows: int(rows), cols: int(cols) };
    let grid = (cols.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1);
    let kernel = gpu.kernel(source, "transpose", defines)?;
    // SAFETY: `Transpose` is laid out as in the source; both matrices have rows cols numbers, without gaps.
    unsafe { kernel.launch(Launch { grid, ..Launch::linear(1, 256) }, &args)? };
    Ok(to)
}
