//! Rows on the CPU: a batch of exactly the admitted ones.
//!
//! A step is one pass over the batch. The state is passed by value, so that caches write to their pages in place. Admitting and
//! releasing copy the fixed states of all rows, which is rare beside steps.

use std::sync::Arc;

use elapid_kernels::sampling::Scratch;

use crate::Layout;
use crate::lm::{LanguageModel, Positions};
use crate::pass::Cx;
use crate::state::State;
use crate::{Error, Result, Tensor};

use super::draws::{Drawing, Draws};
use super::row::Next;

#[derive(Default)]
pub(super) struct Batch {
    /// Of all rows; none without rows.
    state: Option<State>,
    /// What rows read next.
    tokens: Vec<u32>,
    rows: Vec<BatchRow>,
    /// `[rows v]` of the last step.
    logits: Option<Tensor>,
    scratch: Scratch,
    /// The pass of a step over these rows, from the first of them on.
    pass: Option<Cx>,
}

struct BatchRow {
    drawing: Drawing,
    /// The row of the last step's logits.
    logits: Option<usize>,
    /// Whether its last logits were not finite; its token is 0 then.
    failed: bool,
}

impl Batch {
    /// Admits a row as the last one.
    pub(super) fn admit(&mut self, state: State, next: Next<'_>, draws: &Draws<'_>, v: usize) -> Result<usize> {
        let (drawing, token) = Drawing::begin(next, draws, state.position(), v, &mut self.scratch)?;
        let rows = self.rows.len();
        self.state = Some(match &self.state {
            Some(batch) => State::stack(&[batch.clone(), state])?,
            None if rows > 0 => return Err(lost()),
            None => state,
        });
        self.tokens.push(token);
        self.rows.push(BatchRow { drawing, logits: None, failed: false });
        Ok(rows)
    }

    pub(super) fn step(&mut self, model: &LanguageModel) -> Result<()> {
        let state = self.state.take().ok_or_else(lost)?;
        let rows = self.rows.len();
        let cx = self.pass.get_or_insert_with(|| model.inference(Layout::new(rows, 1)).stepping(&Arc::default()));
        cx.layout.b = rows;
        let (logits, state) = model.logits(cx, &self.tokens, state, Positions::Last)?;
        self.state = Some(state);
        let logits = logits.value();
        for (i, (row, token)) in self.rows.iter_mut().zip(&mut self.tokens).enumerate() {
            let drawn = row.drawing.draw(logits.rows().row(i), &mut self.scratch);
            row.failed = drawn.is_err();
            row.logits = Some(i);
            *token = drawn.unwrap_or(0);
        }
        self.logits = Some(logits.clone());
        Ok(())
    }

    pub(super) fn read_next(&mut self, place: usize, id: u32) {
        self.tokens[place] = id;
        self.rows[place].failed = false;
    }

    /// None where the last logits were not finite.
    pub(super) fn token(&self, place: usize) -> Option<u32> {
        (!self.rows[place].failed).then_some(self.tokens[place])
    }

    pub(super) fn logits(&self, place: usize) -> Option<&[f32]> {
        let (logits, row) = self.logits.as_ref().zip(self.rows[place].logits)?;
        let v = logits.cols();
        Some(&logits.as_slice()[row * v..][..v])
    }

    pub(super) fn state(&self, place: usize) -> Result<State> {
        self.state.as_ref().ok_or_else(lost)?.select(&[place])
    }

    pub(super) fn release(&mut self, place: usize) -> Result<State> {
        let batch = self.state.as_ref().ok_or_else(lost)?;
        let released = if self.rows.len() == 1 {
            self.state.take().ok_or_else(lost)?
        } else {
            let released = batch.select(&[place])?;
            let others: Vec<usize> = (0..self.rows.len()).filter(|&row| row != place).collect();
            self.state = Some(batch.select(&others)?);
            released
        };
        self.tokens.remove(place);
        self.rows.remove(place);
        Ok(released)
    }
}

fn lost() -> Error {
    Error::Argument("the rows of this decoder were lost when a step failed; make another".into())
}
