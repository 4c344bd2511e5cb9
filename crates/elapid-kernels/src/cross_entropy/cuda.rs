//! On a GPU: logits of a block of rows by a matrix product, one kernel that turns them into losses and their gradient in
//! place, and two products for the gradients.

use super::{Args, Grads};
use crate::DType;
use crate::cuda::{Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::product;
use crate::linear::cuda::{backward_input, forward as logits_of, matmul};

static SOURCE: Source = Source { name: "cross_entropy", text: include_str!("cross_entropy.cu") };
const ENTRIES: [&str; 3] = ["count", "rows", "mean"];
const THREADS: u32 = 1024;
/// The longest row of logits that a warp processes, instead of a block of [`THREADS`].
const SHORT: usize = 512;
/// Maximum bytes of a block's logits.
const LOGITS: usize = 512 << 20;
/// Shared memory for a row: what a block of an H100 can have, minus what the kernel needs itself.
const SHARED: usize = 200 << 10;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    logits: RawMat,
    targets: u64,
    nll: u64,
    mean: u64,
    share: u64,
    first: i64,
    rows: i64,
    v: i64,
    m: i64,
    scale: f32,
    smoothing: f32,
    softcap: f32,
    gradient: i32,
    keeps: i32,
}

// Long: products and a kernel alternate over blocks of rows; all share the buffers.
pub(super) fn forward(
    args: &Args<Mat<'_>>,
    nll: MatMut<'_>,
    mean: MatMut<'_>,
    mut grads: Option<Grads<MatMut<'_>>>,
) -> Result<()> {
    let Args { h, w, targets, smoothing, softcap } = *args;
    let (gpu, m, v) = (h.gpu(), h.rows(), w.rows());
    let dtype = h.dtype();
    let chunks = product(&[m, v, dtype.bytes()]).div_ceil(LOGITS).max(1);
    let chunk = m.div_ceil(chunks).next_multiple_of(128).min(m.max(1));
    // Rows of logits begin at multiples of 16 bytes, whatever the vocabulary.
    let stride = v.next_multiple_of(8);
    let buffer = gpu.alloc(product(&[chunk, stride, dtype.bytes()]))?;
    let share = gpu.alloc(4)?;
    let vector = v.is_multiple_of(8);
    let shared = stride * dtype.bytes();
    let keeps = shared <= SHARED;
    let (threads, blocks) = if v <= SHORT { (32, 32) } else { (THREADS, 2) };
    let args = Raw {
        logits: RawMat::NULL,
        targets: targets.address(),
        nll: nll.address(),
        mean: mean.address(),
        share: share.address(),
        first: 0,
        rows: 0,
        v: v as i64,
        m: m as i64,
        scale: grads.as_ref().map_or(0.0, |grads| grads.scale),
        smoothing,
        softcap,
        gradient: grads.is_some().into(),
        keeps: keeps.into(),
    };
    let defines = defines(dtype, vector, softcap > 0.0);
    // SAFETY: `Raw` is laid out as in the source; `super` has checked sizes and formats, and `buffer` has `chunk` rows of
    // logits. The kernel compares targets with v.
    unsafe { gpu.kernel(&SOURCE, "count", &defines)?.launch(Launch::linear(1, THREADS), &args)? };
    let kernel = gpu.kernel(&SOURCE, "rows", &defines)?;
    for first in (0..m).step_by(chunk) {
        let rows = chunk.min(m - first);
        let logits = Mat::new(&buffer, 0, (rows, v), stride, dtype);
        let h = h.rows_range(first, rows);
        logits_of(h, w, None, logits.into_mut())?;
        let args = Raw { logits: logits.raw(), first: first as i64, rows: rows as i64, ..args };
        let launch = Launch {
            shared: if keeps { shared as u32 } else { 0 },
            ..Launch::linear(rows.min(blocks * gpu.multiprocessors()), threads)
        };
        // SAFETY: as above.
        unsafe { kernel.launch(launch, &args)? };
        if let Some(Grads { dh, dw, .. }) = &mut grads {
            backward_input(logits, w, dh.reborrow().rows_range(first, rows), false)?;
            matmul((logits, true), (h, false), dw.reborrow(), if first == 0 { 0.0 } else { 1.0 })?;
        }
    }
    if let Some(grads) = grads.filter(|_| m == 0) {
        gpu.zero(grads.dw)?;
    }
    // SAFETY: as above.
    unsafe { gpu.kernel(&SOURCE, "mean", &defines)?.launch(Launch::linear(1, THREADS), &args) }
}

fn defines(dtype: DType, vector: bool, capped: bool) -> Vec<Define> {
    let [vector, capped] = [("VECTOR", vector), ("CAPPED", capped)].map(|(name, on)| Define::new(name, i32::from(on)));
    vec![Define::dtype("T", dtype), vector, capped]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        for (vector, capped) in [(false, false), (true, false), (false, true), (true, true)] {
            units.push(Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(dtype, vector, capped) });
        }
    }
    units
}
