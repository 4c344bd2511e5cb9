//! Counting a model's right answers.

use std::ops::{Add, Range};

use elapid::{Device, LanguageModel, Layout, evaluate};
use rayon::prelude::*;

use super::sequences::{Sequences, fill};
use super::task::Sequence;
use crate::Result;
use crate::data::IGNORE;

/// Counts over a model's answers.
///
/// Accuracy is over answers, each an argmax over all token ids: in selective copying every copied token is an answer, in
/// induction heads there is one answer per sequence (Mamba, tables 1 and 2).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Positions with an answer.
    pub answers: u64,
    /// Right answers.
    pub right: u64,
    /// Sequences all of whose answers were right.
    pub sequences_right: u64,
    /// Sequences.
    pub sequences: u64,
    /// Sum of the negative log-likelihoods of the right answers, in nats.
    pub nats: f64,
    /// Sum over answers of the right logit minus the mean of all logits.
    pub lead: f64,
}

impl Score {
    /// Share of right answers; NaN without any.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.answers as f64
    }

    /// Mean negative log-likelihood per answer, in nats; NaN without any.
    pub fn loss(&self) -> f64 {
        self.nats / self.answers as f64
    }

    /// The loss with label smoothing, as [`elapid::ops::Targets::smoothed`] has it.
    pub fn smoothed_loss(&self, part: f64) -> f64 {
        (self.nats + part * self.lead) / self.answers as f64
    }
}

impl Add for Score {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            answers: self.answers + other.answers,
            right: self.right + other.right,
            sequences_right: self.sequences_right + other.sequences_right,
            sequences: self.sequences + other.sequences,
            nats: self.nats + other.nats,
            lead: self.lead + other.lead,
        }
    }
}

/// How sequences are read: in batches of rows and chunks of positions with the state carried, so that memory depends neither
/// on the length nor on the number of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Positions per row in a forward pass, at least 1.
    pub chunk: usize,
    /// Positions over all rows in a forward pass, at least 1.
    pub positions: usize,
}

impl Reader {
    /// Default positions per forward pass.
    pub const CHUNK: usize = 4096;

    /// Good values for a device; a GPU needs more to be busy.
    pub fn on(device: Device) -> Self {
        let rows = if device == Device::Cpu { 1 } else { 16 };
        Self { chunk: Self::CHUNK, positions: rows * Self::CHUNK }
    }

    /// Sequences per batch.
    fn rows(&self, sequences: &Sequences) -> u64 {
        (self.positions / self.chunk.max(1).min(sequences.positions().max(1))).max(1) as u64
    }

    /// Scores a model on the sequences with these numbers. `progress` receives the number of new positions read.
    ///
    /// # Errors
    /// If the model's vocabulary is smaller than the task's, or a device fails.
    pub fn score(
        &self,
        model: &LanguageModel,
        sequences: &Sequences,
        numbers: Range<u64>,
        mut progress: impl FnMut(usize),
    ) -> Result<Score> {
        let wanted = sequences.task().vocab_size();
        if model.config().padded_vocab_size() < wanted {
            return Err(crate::Error::Argument {
                argument: "the model's vocabulary",
                wanted: format!("{wanted} ids or more, as the task has"),
                got: model.config().padded_vocab_size().to_string(),
            });
        }
        let count = numbers.end.saturating_sub(numbers.start).min(self.rows(sequences));
        let (b, l) = (usize::try_from(count).unwrap_or(usize::MAX), self.chunk.max(1).min(sequences.positions()));
        model.needs_of_pass(b, l, "the positions read at a time (--chunk)").check_on(model.device())?;
        let mut score = Score::default();
        let mut from = numbers.start;
        while from < numbers.end {
            let to = numbers.end.min(from.saturating_add(self.rows(sequences)));
            self.score_rows(model, sequences, from..to, &mut score, &mut progress)?;
            from = to;
        }
        Ok(score)
    }

    fn score_rows(
        &self,
        model: &LanguageModel,
        sequences: &Sequences,
        numbers: Range<u64>,
        score: &mut Score,
        progress: &mut impl FnMut(usize),
    ) -> Result<()> {
        let mut rows: Vec<Sequence> = numbers.map(|number| sequences.sequence(number)).collect();
        let b = rows.len();
        let mut all_right = vec![true; b];
        let mut state = model.zero_state(b)?;
        let mut read = 0;
        while read < sequences.positions() {
            let l = self.chunk.max(1).min(sequences.positions() - read);
            let (mut tokens, mut targets) = (vec![0; b * l], vec![IGNORE; b * l]);
            let parts = tokens.par_chunks_mut(l).zip(targets.par_chunks_mut(l));
            rows.par_iter_mut().zip(parts).for_each(|(row, (tokens, targets))| fill(row, tokens, targets));
            let cx = model.inference(Layout::new(b, l));
            // Logits of the positions with an answer alone: with many ids, the others' would take most of the time.
            let asked: Vec<u32> = (0..b * l).filter(|&at| targets[at] >= 0).map(|at| at as u32).collect();
            if asked.is_empty() {
                state = model.hidden(&cx, &tokens, &state, false)?.1;
            } else {
                let (logits, next) = model.logits_at(&cx, &tokens, &state, &asked)?;
                state = next;
                let wanted: Vec<i32> = asked.iter().map(|&at| targets[at as usize]).collect();
                for ((&at, target), answer) in asked.iter().zip(&wanted).zip(evaluate::answers(&logits, &wanted)?) {
                    let right = answer.likeliest == *target as u32;
                    score.answers += 1;
                    score.nats += f64::from(answer.nll);
                    score.lead += f64::from(answer.lead);
                    if right { score.right += 1 } else { all_right[at as usize / l] = false }
                }
            }
            read += l;
            progress(b * l);
        }
        score.sequences += b as u64;
        score.sequences_right += all_right.iter().filter(|&&right| right).count() as u64;
        Ok(())
    }
}
