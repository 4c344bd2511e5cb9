//! The sequences of a task, each a function of seed, split and position.

use std::sync::Arc;

use rand::SeedableRng;
use rayon::prelude::*;

use super::task::{Random, Sequence, Task, Unfit};
use crate::data::{Batch, IGNORE};

/// Disjoint streams of sequences (equal ones occur only by chance).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// To train on.
    Train,
    /// Held out, for the evaluations of a training run.
    HeldOut,
    /// Held out, for an evaluation afterwards.
    Test,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held out",
            Self::Test => "test",
        }
    }
}

/// The sequences of one length, split and seed, by number.
#[derive(Debug, Clone)]
pub struct Sequences {
    task: Arc<dyn Task>,
    length: usize,
    positions: usize,
    seed: u64,
    split: Split,
    /// Whether a batch has every next token as a target too.
    next_tokens: bool,
    /// Number of training sequences before they repeat; 0: they never do.
    repeat: u64,
}

impl Sequences {
    /// Sequences of a nominal length.
    ///
    /// # Errors
    /// If the task has no sequences of that length.
    pub fn new(task: Arc<dyn Task>, length: usize, seed: u64, split: Split) -> Result<Self, Unfit> {
        let positions = task.positions(length)?;
        Ok(Self { task, length, positions, seed, split, next_tokens: false, repeat: 0 })
    }

    /// The same, but in a [`batch`](Self::batch) the target is the next token wherever the task has none.
    #[must_use]
    pub fn with_next_tokens(self, next_tokens: bool) -> Self {
        Self { next_tokens, ..self }
    }

    /// The same, but training sequences repeat after `repeat`, unless it is 0.
    #[must_use]
    pub fn repeated(self, repeat: u64) -> Self {
        Self { repeat, ..self }
    }

    /// The task.
    pub fn task(&self) -> &dyn Task {
        self.task.as_ref()
    }

    /// Positions of each.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Sequence `number`: always the same.
    pub fn sequence(&self, number: u64) -> Sequence {
        let trains = self.split == Split::Train;
        let number = if trains { number.checked_rem(self.repeat).unwrap_or(number) } else { number };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(&(self.length as u64).to_le_bytes());
        hasher.update(self.split.name().as_bytes());
        let random = Random::from_seed(*hasher.finalize().as_bytes());
        if trains {
            self.task.training_sequence(self.length, number, random)
        } else {
            self.task.sequence(self.length, random)
        }
    }

    /// Batch `index` of `b` rows: row `r` is sequence `index * b + r`.
    pub fn batch(&self, index: u64, b: usize) -> Batch {
        let l = self.positions;
        let mut batch = Batch { tokens: vec![0; b * l], targets: vec![IGNORE; b * l], resets: None, b, l, epoch: 0 };
        let rows = batch.tokens.par_chunks_mut(l.max(1)).zip(batch.targets.par_chunks_mut(l.max(1)));
        rows.enumerate().for_each(|(row, (tokens, targets))| {
            let number = index.wrapping_mul(b as u64).wrapping_add(row as u64);
            fill(&mut self.sequence(number), tokens, targets);
            if self.next_tokens {
                let unasked = targets.iter_mut().zip(&tokens[1..]).filter(|(target, _)| **target == IGNORE);
                unasked.for_each(|(target, &next)| *target = next as i32);
            }
        });
        batch
    }
}

/// The next positions of a sequence.
pub(super) fn fill(sequence: &mut Sequence, tokens: &mut [u32], targets: &mut [i32]) {
    for ((token, target), next) in tokens.iter_mut().zip(targets).zip(sequence) {
        (*token, *target) = next;
    }
}
