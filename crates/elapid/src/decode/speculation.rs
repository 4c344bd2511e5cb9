//! Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192) of one row on the CPU: tokens are guessed from what the text
//! repeats, and one pass over the guesses draws the real ones.
//!
//! A token is drawn from its logits, its position and its seed alone. So the tokens are those of decoding one at a time; a
//! guess only decides whether a pass was useful. A state is a value: when a guess was wrong the pass is forgotten, and the next
//! one reads what was drawn again from the state before.

use std::collections::HashMap;

use elapid_kernels::sampling::Scratch;

use super::draws::{Drawing, Draws};
use super::row::Next;
use crate::Layout;
use crate::lm::LanguageModel;
use crate::state::State;
use crate::{Error, Result};

/// Tokens that have to repeat for a guess.
const SAME: usize = 3;

/// Tokens that are read again after wrong guesses, at most; then a pass without guesses moves the state.
const AGAIN: usize = 12;

/// What was read and drawn, and where a run of [`SAME`] tokens was last.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    tokens: Vec<u32>,
    /// The place after each run.
    last: HashMap<[u32; SAME], usize>,
    /// The place after the run at the end, where it was before.
    before: Option<usize>,
}

impl History {
    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.tokens.push(token);
            self.before = self.tokens.last_chunk().and_then(|run| self.last.insert(*run, self.tokens.len()));
        }
    }

    /// Forgets the last tokens.
    fn shorten(&mut self, by: usize) {
        let kept = self.tokens.len() - by;
        let tokens = std::mem::take(self).tokens;
        self.extend(&tokens[..kept]);
    }

    /// What followed the run at the end when it was there before, up to `most` tokens.
    fn guess(&self, most: usize) -> Vec<u32> {
        let from = self.before.unwrap_or(self.tokens.len());
        self.tokens[from..].iter().copied().take(most).collect()
    }
}

/// One row in the making.
#[derive(Clone)]
pub(crate) struct Speculation {
    most: usize,
    /// Guesses of the next pass: more after right ones, fewer after wrong ones.
    width: usize,
    history: History,
    drawing: Drawing,
    scratch: Scratch,
    /// Before `unread`; none while a pass has it.
    base: Option<State>,
    /// Tokens after `base`: those that were handed out, then those that were drawn already.
    unread: Vec<u32>,
    handed: usize,
    /// The state after all of `unread` but the last, where a pass made it.
    ahead: Option<State>,
    passes: u64,
}

impl Speculation {
    /// A row that goes on from a state, with up to `most` guesses a pass. Gives the first token if `next` decides it.
    pub(crate) fn begin(
        model: &LanguageModel,
        (most, history): (usize, History),
        state: &State,
        next: Next<'_>,
        draws: &Draws<'_>,
    ) -> Result<(Self, Option<u32>)> {
        let v = model.config().padded_vocab_size();
        draws.check(v)?;
        let mut scratch = Scratch::default();
        let was_drawn = matches!(next, Next::Logits(_));
        let (drawing, token) = Drawing::begin(next, draws, state.position(), v, &mut scratch)?;
        let drawn = was_drawn.then_some(token);
        let mut row = Self {
            most,
            width: most,
            history,
            drawing,
            scratch,
            base: Some(state.clone()),
            unread: vec![token],
            handed: 1,
            ahead: None,
            passes: 0,
        };
        row.history.extend(drawn.as_slice());
        Ok((row, drawn))
    }

    /// The next token.
    pub(crate) fn next(&mut self, model: &LanguageModel) -> Result<u32> {
        if self.handed == self.unread.len() {
            elapid_kernels::team(|| self.pass(model))?;
        }
        self.handed += 1;
        Ok(self.unread[self.handed - 1])
    }

    fn pass(&mut self, model: &LanguageModel) -> Result<()> {
        if let Some(state) = self.ahead.take() {
            self.base = Some(state);
            self.unread.drain(..self.unread.len() - 1);
            self.handed = 1;
        }
        let guesses = if self.unread.len() > AGAIN { Vec::new() } else { self.history.guess(self.width) };
        let known = self.unread.len();
        let tokens: Vec<u32> = self.unread.iter().chain(&guesses).copied().collect();
        let at: Vec<u32> = (known as u32 - 1..tokens.len() as u32).collect();
        let cx = model.inference(Layout::new(1, tokens.len()));
        let (logits, state) = match guesses.is_empty() {
            true => model.logits_at(&cx, &tokens, self.base.take().ok_or_else(lost)?, &at)?,
            false => model.logits_at(&cx, &tokens, self.base.as_ref().ok_or_else(lost)?, &at)?,
        };
        let mut right = 0;
        loop {
            let id = self.drawing.draw(logits.rows().row(right), &mut self.scratch)?;
            self.unread.push(id);
            self.history.extend(&[id]);
            if guesses.get(right) != Some(&id) {
                break;
            }
            right += 1;
        }
        if right == guesses.len() {
            self.ahead = Some(state);
        }
        if !guesses.is_empty() {
            self.width = (2 * right + 1).min(self.most);
        }
        self.passes += 1;
        Ok(())
    }

    /// Passes over the model so far.
    pub(crate) fn passes(&self) -> u64 {
        self.passes
    }

    /// The state after all that was handed out but the last token, and what was read and handed out.
    pub(crate) fn into_state(mut self, model: &LanguageModel) -> Result<(State, History)> {
        self.history.shorten(self.unread.len() - self.handed);
        if let (Some(state), true) = (self.ahead.take(), self.handed == self.unread.len()) {
            return Ok((state, self.history));
        }
        let read = &self.unread[..self.handed - 1];
        let base = self.base.take().ok_or_else(lost)?;
        if read.is_empty() {
            return Ok((base, self.history));
        }
        let (_, state) = model.hidden(&model.inference(Layout::new(1, read.len())), read, base, false)?;
        Ok((state, self.history))
    }
}

fn lost() -> Error {
    Error::Argument("the sequence was lost when a pass failed; make another".into())
}
