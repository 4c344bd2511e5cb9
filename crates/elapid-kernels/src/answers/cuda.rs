//! On a GPU: a block of threads a row. What comes back is twelve bytes a row, not its logits.

use super::answer::Answer;
use crate::DType;
use crate::cuda::{Define, Launch, Mat, RawMat, Result, Source, Unit};
use crate::error::product;

static SOURCE: Source = Source { name: "answers", text: include_str!("answers.cu") };
const THREADS: u32 = 256;
/// Blocks a multiprocessor.
const BLOCKS: usize = 8;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    logits: RawMat,
    targets: u64,
    answers: u64,
    m: i64,
    v: i64,
}

pub(super) fn forward(logits: Mat<'_>, targets: &[i32]) -> Result<Vec<Answer>> {
    let (gpu, (m, v)) = (logits.gpu(), logits.shape());
    if m == 0 {
        return Ok(Vec::new());
    }
    let ids = gpu.upload(targets)?;
    let answers = gpu.alloc(product(&[m, size_of::<Answer>()]))?;
    let raw =
        Raw { logits: logits.raw(), targets: ids.address(), answers: answers.address(), m: m as i64, v: v as i64 };
    let kernel = gpu.kernel(&SOURCE, "answer", &defines(logits.dtype()))?;
    let launch = Launch::linear(m.min(BLOCKS * gpu.multiprocessors()), THREADS);
    // SAFETY: `Raw` is laid out as in the source, `super` has checked that targets are below v, and `answers` has m of them.
    unsafe { kernel.launch(launch, &raw)? };
    let words: Vec<u32> = gpu.download(&answers, 0, 3 * m)?;
    let (words, _) = words.as_chunks::<3>();
    let answer =
        |&[likeliest, nll, lead]: &[u32; 3]| Answer { likeliest, nll: f32::from_bits(nll), lead: f32::from_bits(lead) };
    Ok(words.iter().map(answer).collect())
}

fn defines(dtype: DType) -> Vec<Define> {
    vec![Define::dtype("T", dtype)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [DType::F32, DType::Bf16]
        .map(|dtype| Unit { source: &SOURCE, entries: &["answer"], defines: defines(dtype) })
        .to_vec()
}
