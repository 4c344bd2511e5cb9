//! On a GPU: the likeliest token, so that the next step can read it without the host.

use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, RawMat, Result, Source, Unit};
use crate::error::Check;

static SOURCE: Source = Source { name: "sampling", text: include_str!("sampling.cu") };
const ENTRIES: [&str; 1] = ["greedy"];

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    logits: RawMat,
    ids: u64,
    v: i64,
}

/// As [`super::greedy`] for every row: `logits` `[b v]`, `ids` `[b]` u32 (=). A row without a number gets the largest u32.
///
/// # Errors
/// If `ids` is too small, or there are no logits.
pub fn greedy(gpu: &Gpu, logits: Mat<'_>, ids: &Buffer) -> Result<()> {
    let check = Check("sampling");
    check.that(logits.cols > 0, "logits", || "at least one".into(), || "none".into())?;
    let got = || (ids.bytes() / 4).to_string();
    check.that(ids.bytes() >= 4 * logits.rows, "ids", || format!("{} ids", logits.rows), got)?;
    let args = Args { logits: logits.raw(), ids: ids.address(), v: logits.cols as i64 };
    let kernel = gpu.kernel(&SOURCE, "greedy", &[Define::dtype("T", logits.dtype)])?;
    // SAFETY: `Args` is laid out as in the source; all matrices lie inside their buffers.
    unsafe { kernel.launch(Launch::linear(logits.rows, 1024), &args) }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |dtype| Unit { source: &SOURCE, entries: &ENTRIES, defines: vec![Define::dtype("T", dtype)] };
    [DType::F32, DType::Bf16].map(unit).to_vec()
}
