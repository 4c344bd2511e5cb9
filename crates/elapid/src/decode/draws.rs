//! How a row draws its tokens.

use std::collections::VecDeque;

use elapid_kernels::embedding::check_ids;
use elapid_kernels::sampling::{self, Params as Sampling, Past, RECENT, Scratch, philox};

use super::row::Next;
use crate::Result;

/// How a row draws its tokens: each is a function of the logits, these settings, and the row's position.
///
/// The random number of a token depends on `seed`, `sample` and how many tokens were read before, on every device: a row that
/// goes on from a state, in whatever decoder, has the numbers that it would have had without the stop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draws<'a> {
    /// How to choose.
    pub sampling: Sampling,
    /// The seed.
    pub seed: u64,
    /// Tells sequences of the same seed and prompt apart: 0 for the first.
    pub sample: u64,
    /// The last tokens that the state has read, oldest first: the repetition penalty looks back at them.
    pub recent: &'a [u32],
    /// Every token generated before, one that was drawn and not read yet included; not those of the prompt. The presence and
    /// frequency penalties count them.
    pub generated: &'a [u32],
}

impl Draws<'_> {
    pub(super) fn check(&self, v: usize) -> Result<()> {
        sampling::check_params(&self.sampling)?;
        check_ids(self.recent, v)?;
        Ok(check_ids(self.generated, v)?)
    }
}

/// A row that draws on the CPU.
#[derive(Clone)]
pub(super) struct Drawing {
    sampling: Sampling,
    seed: u64,
    sample: u64,
    /// Tokens read before the next draw.
    position: u64,
    /// Empty without a repetition penalty.
    recent: VecDeque<u32>,
    /// `[v]`; empty without a presence or frequency penalty.
    counts: Vec<u16>,
}

impl Drawing {
    /// A row whose next draw is after `position` tokens, for a vocabulary of `v`.
    fn new(draws: &Draws<'_>, position: u64, v: usize) -> Self {
        let Draws { sampling, seed, sample, .. } = *draws;
        let counts = vec![0; if sampling.counts() { v } else { 0 }];
        let room = if sampling.repetition_penalty == 1.0 { 0 } else { RECENT };
        let mut row = Self { sampling, seed, sample, position, recent: VecDeque::with_capacity(room), counts };
        draws.recent[draws.recent.len().saturating_sub(RECENT)..].iter().for_each(|&id| row.remember(id));
        draws.generated.iter().for_each(|&id| row.count(id));
        row
    }

    /// A row that goes on from a state of `position` tokens, and the token that it reads next.
    ///
    /// # Errors
    /// If a logit is not finite.
    pub(super) fn begin(
        next: Next<'_>,
        draws: &Draws<'_>,
        position: u64,
        v: usize,
        scratch: &mut Scratch,
    ) -> Result<(Self, u32)> {
        match next {
            Next::Token(id) => {
                let mut row = Self::new(draws, position + 1, v);
                row.remember(id);
                Ok((row, id))
            }
            Next::Logits(logits) => {
                let mut row = Self::new(draws, position, v);
                let id = row.draw(&logits.to_vec()?, scratch)?;
                Ok((row, id))
            }
        }
    }

    /// Notes a token that the row was given.
    fn remember(&mut self, id: u32) {
        if self.sampling.repetition_penalty != 1.0 {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(id);
        }
    }

    fn count(&mut self, id: u32) {
        if let Some(count) = self.counts.get_mut(id as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Draws a token from logits `[v]`.
    ///
    /// # Errors
    /// If one is not finite.
    pub(super) fn draw(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<u32> {
        let uniform = philox::uniform(self.seed, self.sample, self.position);
        self.position += 1;
        let past = Past { recent: self.recent.make_contiguous(), counts: &self.counts };
        let id = sampling::sample(&self.sampling, logits, past, uniform, scratch)?;
        self.remember(id);
        self.count(id);
        Ok(id)
    }
}
