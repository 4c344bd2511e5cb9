//! On a GPU: the next token of every row, so that the next step can read it without the host.

use super::{Params, RECENT, check_params};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, RawMat, Result, Source, Unit};
use crate::error::Check;

static SOURCE: Source = Source { name: "sampling", text: include_str!("sampling.cu") };
const ENTRIES: [&str; 2] = ["greedy", "sample"];
const CHECK: Check = Check("sampling");
/// `sizeof(Shared)` of the source.
const SHARED: usize = 33_704;
/// Masses are sums of integers up to 2^44.
const MAX_VOCABULARY: usize = 1 << 19;

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    logits: RawMat,
    ids: u64,
    positions: u64,
    recent: u64,
    seed: u64,
    v: i64,
    top_k: i64,
    top_p: f64,
    log_min_p: f64,
    temperature: f32,
    penalty: f32,
}

/// What rows have read: how many tokens, and the last [`RECENT`] of them. All rows have read equally many.
#[derive(Debug)]
pub struct History {
    gpu: Gpu,
    rows: usize,
    /// `[b]` u64.
    positions: Buffer,
    /// `[RECENT b]` u32: token `p` of a row is in line `p % RECENT`.
    recent: Buffer,
}

impl History {
    /// Of rows that have read nothing.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn new(gpu: Gpu, rows: usize) -> Result<Self> {
        let (positions, recent) = (gpu.alloc(8 * rows)?, gpu.alloc(4 * RECENT * rows)?);
        let history = Self { gpu, rows, positions, recent };
        history.set(0, &vec![&[][..]; rows])?;
        Ok(history)
    }

    /// Says that every row has read `position` tokens, the last of which are `recent`, oldest first.
    ///
    /// # Errors
    /// If there are not as many rows, or the driver refuses.
    pub fn set(&self, position: u64, recent: &[&[u32]]) -> Result<()> {
        CHECK.len("recent", recent.len(), self.rows)?;
        self.gpu.write(&self.recent, 0, &lines(position, recent))?;
        self.set_position(position)
    }

    /// Says how many tokens every row has read; those remembered stay.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn set_position(&self, position: u64) -> Result<()> {
        self.gpu.write(&self.positions, 0, &vec![position; self.rows])
    }

    /// Says which token every row has at `position`.
    ///
    /// # Errors
    /// If there are not as many rows, or the driver refuses.
    pub fn set_tokens(&self, position: u64, tokens: &[u32]) -> Result<()> {
        CHECK.len("tokens", tokens.len(), self.rows)?;
        self.gpu.write(&self.recent, (position % RECENT as u64) as usize * self.rows, tokens)
    }
}

/// What [`History`] remembers of rows that have read `position` tokens; the largest u32 where there is no token.
pub(super) fn lines(position: u64, recent: &[&[u32]]) -> Vec<u32> {
    let mut lines = vec![u32::MAX; RECENT * recent.len()];
    for (row, tokens) in recent.iter().enumerate() {
        for (&id, before) in tokens.iter().rev().zip(1..=RECENT as u64) {
            let line = (position.wrapping_sub(before) % RECENT as u64) as usize;
            lines[line * recent.len() + row] = id;
        }
    }
    lines
}

/// As [`super::greedy`] for every row: `logits` `[b v]`, `ids` `[b]` u32 (=). A row with a logit
/// that is not finite gets the largest u32.
///
/// # Errors
/// If `ids` is too small, or there are no logits.
pub fn greedy(gpu: &Gpu, logits: Mat<'_>, ids: &Buffer) -> Result<()> {
    check_sizes(logits, ids)?;
    let args = Args {
        logits: logits.raw(),
        ids: ids.address(),
        positions: 0,
        recent: 0,
        seed: 0,
        v: logits.cols as i64,
        top_k: 0,
        top_p: 0.0,
        log_min_p: 0.0,
        temperature: 0.0,
        penalty: 0.0,
    };
    let kernel = gpu.kernel(&SOURCE, "greedy", &[Define::dtype("T", logits.dtype)])?;
    // SAFETY: `Args` is laid out as in the source; all matrices lie inside their buffers.
    unsafe { kernel.launch(Launch::linear(logits.rows, 1024), &args) }
}

/// As [`super::sample`] for every row, with the recent tokens of `history` and the number
/// [`philox::uniform`](super::philox::uniform)`(seed, row, position)`, the position being how many tokens were read.
///
/// `logits` `[b v]`, up to 2^19 tokens; `ids` `[b]` u32 (=). A row with a logit that is not finite gets the largest u32. The
/// token is written to the history, too, and the position is one more, so that a launch repeated draws the next token.
/// Where the number is within about 1e-6 of the border between two tokens, it may be the processor's neighbour.
///
/// # Errors
/// If a parameter is out of its range, sizes do not fit, or there are no logits.
pub fn sample(gpu: &Gpu, params: &Params, seed: u64, logits: Mat<'_>, history: &History, ids: &Buffer) -> Result<()> {
    check_params(params)?;
    check_sizes(logits, ids)?;
    let v = logits.cols;
    CHECK.len("history", history.rows, logits.rows)?;
    CHECK.that(v <= MAX_VOCABULARY, "logits", || format!("at most {MAX_VOCABULARY} a row"), || v.to_string())?;
    let args = Args {
        logits: logits.raw(),
        ids: ids.address(),
        positions: history.positions.address(),
        recent: history.recent.address(),
        seed,
        v: v as i64,
        top_k: if params.top_k == 0 { v } else { params.top_k.min(v) } as i64,
        top_p: params.top_p.into(),
        log_min_p: f64::from(params.min_p).ln(),
        // Half of it must not be 0.
        temperature: if params.temperature > 0.0 { params.temperature.max(f32::MIN_POSITIVE) } else { 0.0 },
        penalty: params.repetition_penalty,
    };
    let marks = if params.repetition_penalty == 1.0 { 0 } else { 4 * v.div_ceil(32) };
    let launch = Launch { shared: (SHARED + marks) as u32, ..Launch::linear(logits.rows, 1024) };
    let kernel = gpu.kernel(&SOURCE, "sample", &[Define::dtype("T", logits.dtype)])?;
    // SAFETY: `Args` is laid out as in the source; all matrices lie inside their buffers, and the history has as many rows.
    unsafe { kernel.launch(launch, &args) }
}

fn check_sizes(logits: Mat<'_>, ids: &Buffer) -> Result<()> {
    CHECK.that(logits.cols > 0, "logits", || "at least one".into(), || "none".into())?;
    let got = || (ids.bytes() / 4).to_string();
    CHECK.that(ids.bytes() >= 4 * logits.rows, "ids", || format!("{} ids", logits.rows), got)?;
    Ok(())
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |dtype| Unit { source: &SOURCE, entries: &ENTRIES, defines: vec![Define::dtype("T", dtype)] };
    [DType::F32, DType::Bf16].map(unit).to_vec()
}
