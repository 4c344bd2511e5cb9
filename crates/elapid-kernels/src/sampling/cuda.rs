//! On a GPU: the next token of every row, so that the next step can read it without the host.

use super::{Params, RECENT, check_params};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, Pod, RawMat, Result, Source, Unit};
use crate::error::Check;

static SOURCE: Source =
    Source { name: "sampling", text: concat!(include_str!("philox.cuh"), include_str!("sampling.cu")) };
const ENTRIES: [&str; 2] = ["greedy", "sample"];
const CHECK: Check = Check("sampling");
/// `sizeof(Shared)` of the source.
const SHARED: usize = 33_784;
/// Masses are sums of integers up to 2^44.
const MAX_VOCABULARY: usize = 1 << 19;

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    logits: RawMat,
    ids: u64,
    draws: u64,
    recent: u64,
    v: i64,
}

/// `Draw` of the source.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawDraw {
    seed: u64,
    sample: u64,
    position: u64,
    counts: u64,
    top_k: u64,
    top_p: f64,
    log_min_p: f64,
    temperature: f32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    active: u64,
}

// SAFETY: integers and floats, without padding: seven of 8 bytes, four of 4, one of 8.
unsafe impl Pod for RawDraw {}

/// How a row draws from now on.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// How to choose.
    pub params: Params,
    /// The seed.
    pub seed: u64,
    /// Which of the sequences with this seed it is.
    pub sample: u64,
    /// How many tokens will have been read at the next draw.
    pub position: u64,
    /// The last tokens before that, oldest first: for the repetition penalty.
    pub recent: &'a [u32],
    /// Every token generated so far, in any order: for the presence and frequency penalties.
    pub generated: &'a [u32],
}

/// How each row of a batch draws: on the device, so that one captured launch serves rows that come and go.
#[derive(Debug)]
pub struct Draws {
    gpu: Gpu,
    v: usize,
    /// `[b]` of `RawDraw`.
    rows: Buffer,
    /// `[b RECENT]` u32: token `p` of a row is in column `p % RECENT`.
    recent: Buffer,
    /// `[v]` u16 of each row that counts what it generated.
    counts: Vec<Option<Buffer>>,
}

impl Draws {
    /// Of `rows` rows that are nobody's: they draw token 0. `v` is the size of the vocabulary.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn new(gpu: Gpu, rows: usize, v: usize) -> Result<Self> {
        let inactive = gpu.upload(&vec![RawDraw::default(); rows])?;
        let recent = gpu.upload(&vec![u32::MAX; RECENT * rows])?;
        Ok(Self { gpu, v, rows: inactive, recent, counts: (0..rows).map(|_| None).collect() })
    }

    /// Says how a row draws from now on.
    ///
    /// # Errors
    /// If there is no such row, a parameter is out of its range, an id is not in the vocabulary, or there is too little memory.
    pub fn set(&mut self, row: usize, draw: &Draw<'_>) -> Result<()> {
        let Draw { params, seed, sample, position, recent, generated } = *draw;
        check_params(&params)?;
        self.check_row(row)?;
        for (name, ids) in [("recent", recent), ("generated", generated)] {
            let other = ids.iter().find(|&&id| id as usize >= self.v);
            CHECK.that(other.is_none(), name, || format!("ids below {}", self.v), || format!("{other:?}"))?;
        }
        self.gpu.write(&self.recent, row * RECENT, &line(position, recent))?;
        let counts = if params.counts() { Some(self.gpu.upload(&counts(generated, self.v))?) } else { None };
        let raw = RawDraw {
            seed,
            sample,
            position,
            counts: counts.as_ref().map_or(0, Buffer::address),
            top_k: if params.top_k == 0 { self.v } else { params.top_k.min(self.v) } as u64,
            top_p: params.top_p.into(),
            log_min_p: f64::from(params.min_p).ln(),
            // Half of it must not be 0: at least two of the least steps.
            temperature: if params.temperature > 0.0 { params.temperature.max(f32::from_bits(2)) } else { 0.0 },
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            active: 1,
        };
        self.gpu.write(&self.rows, row, &[raw])?;
        // What the row had before is freed after the write that forgets its address.
        self.counts[row] = counts;
        Ok(())
    }

    /// Makes a row nobody's.
    ///
    /// # Errors
    /// If there is no such row, or the driver refuses.
    pub fn clear(&mut self, row: usize) -> Result<()> {
        self.check_row(row)?;
        self.gpu.write(&self.rows, row, &[RawDraw::default()])?;
        self.counts[row] = None;
        Ok(())
    }

    fn check_row(&self, row: usize) -> Result<()> {
        let rows = self.counts.len();
        Ok(CHECK.that(row < rows, "row", || format!("below {rows}"), || row.to_string())?)
    }
}

impl Drop for Draws {
    /// A graph may go on with the rows, which say where counts are: they are nobody's before the counts are freed.
    fn drop(&mut self) {
        if self.counts.iter().all(Option::is_none) {
            return;
        }
        let rows = self.rows.mat_mut(1, self.rows.bytes() / 4, DType::F32);
        // Captured, it would be done at a later time.
        if self.gpu.is_capturing() || self.gpu.zero(rows).is_err() {
            std::mem::forget(std::mem::take(&mut self.counts));
        }
    }
}

/// The last of `recent`, oldest first, where a row that has read `position` tokens has them; the largest u32 where there is
/// no token.
pub(super) fn line(position: u64, recent: &[u32]) -> Vec<u32> {
    let mut line = vec![u32::MAX; RECENT];
    for (&id, before) in recent.iter().rev().zip(1..=RECENT as u64) {
        line[(position.wrapping_sub(before) % RECENT as u64) as usize] = id;
    }
    line
}

/// How often each token of a vocabulary of `v` is among `tokens`, as a row counts: no further than u16 goes.
pub(super) fn counts(tokens: &[u32], v: usize) -> Vec<u16> {
    let mut counts = vec![0u16; v];
    for &id in tokens {
        counts[id as usize] = counts[id as usize].saturating_add(1);
    }
    counts
}

/// As [`super::greedy`] for every row: `logits` `[b v]`, `ids` `[b]` u32 (=). A row with a logit
/// that is not finite gets the largest u32.
///
/// # Errors
/// If `ids` is too small, or there are no logits.
pub fn greedy(gpu: &Gpu, logits: Mat<'_>, ids: &Buffer) -> Result<()> {
    check_sizes(logits, logits.rows(), ids)?;
    let args = Args { logits: logits.raw(), ids: ids.address(), draws: 0, recent: 0, v: logits.cols() as i64 };
    let kernel = gpu.kernel(&SOURCE, "greedy", &[Define::dtype("T", logits.dtype())])?;
    // SAFETY: `Args` is laid out as in the source; all matrices lie inside their buffers.
    unsafe { kernel.launch(Launch::linear(logits.rows(), 1024), &args) }
}

/// As [`super::sample`] for every row, as `draws` says, with the number
/// [`philox::uniform`](super::philox::uniform)`(seed, sample, position)`.
///
/// `logits` `[b v]`, up to 2^19 tokens; `ids` `[b]` u32 (=). A row with a logit that is not finite gets the largest u32, one
/// that is nobody's gets 0. The token is noted in `draws`, too, and the position is one more, so that a launch repeated draws
/// the next token. Where the number is within about 1e-6 of the border between two tokens, it may be the CPU's neighbour.
///
/// # Errors
/// If sizes do not fit, or there are no logits.
pub fn sample(logits: Mat<'_>, draws: &Draws, ids: &Buffer) -> Result<()> {
    CHECK.len("logits", logits.rows(), draws.counts.len())?;
    launch(logits, draws, 0, ids)
}

/// [`sample`] for row `row` alone, whose logits are `[1 v]`; `ids` is that of all rows.
///
/// # Errors
/// As [`sample`], or if there is no such row.
pub fn sample_row(logits: Mat<'_>, draws: &Draws, row: usize, ids: &Buffer) -> Result<()> {
    draws.check_row(row)?;
    CHECK.len("logits", logits.rows(), 1)?;
    launch(logits, draws, row, ids)
}

/// Rows from `first` on, as many as there are logits.
fn launch(logits: Mat<'_>, draws: &Draws, first: usize, ids: &Buffer) -> Result<()> {
    check_sizes(logits, first + logits.rows(), ids)?;
    let v = logits.cols();
    CHECK.len("logits", v, draws.v)?;
    CHECK.that(v <= MAX_VOCABULARY, "logits", || format!("at most {MAX_VOCABULARY} a row"), || v.to_string())?;
    let args = Args {
        logits: logits.raw(),
        ids: ids.address() + 4 * first as u64,
        draws: draws.rows.address() + (size_of::<RawDraw>() * first) as u64,
        recent: draws.recent.address() + (4 * RECENT * first) as u64,
        v: v as i64,
    };
    let launch = Launch { shared: (SHARED + 4 * v.div_ceil(32)) as u32, ..Launch::linear(logits.rows(), 1024) };
    let kernel = draws.gpu.kernel(&SOURCE, "sample", &[Define::dtype("T", logits.dtype())])?;
    // SAFETY: `Args` and `RawDraw` are laid out as in the source; all rows lie inside their buffers, and counts are `[v]`.
    unsafe { kernel.launch(launch, &args) }
}

fn check_sizes(logits: Mat<'_>, rows: usize, ids: &Buffer) -> Result<()> {
    CHECK.that(logits.cols() > 0, "logits", || "at least one".into(), || "none".into())?;
    let got = || (ids.bytes() / 4).to_string();
    CHECK.that(ids.bytes() >= 4 * rows, "ids", || format!("{rows} ids"), got)?;
    Ok(())
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |dtype| Unit { source: &SOURCE, entries: &ENTRIES, defines: vec![Define::dtype("T", dtype)] };
    [DType::F32, DType::Bf16].map(unit).to_vec()
}
