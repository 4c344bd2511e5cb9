//! The loss on what is held out, and the model that is kept for it.

use elapid::Layout;
use elapid::State;
use elapid::checkpoint::{Card, SaveOptions};
use elapid::evaluate::Summary;

use super::{HeldOut, Trainer};
use crate::data::Sequential;
use crate::tasks::{Reader, Score};
use crate::{Error, Result};

/// What a validation came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validation {
    pub(super) loss: f64,
    pub(super) bits_per_byte: Option<f64>,
    pub(super) accuracy: Option<f64>,
}

impl Trainer {
    /// The loss on what is held out, in nats; a new best model is kept in the run's directory.
    pub(super) fn validate(&mut self) -> Result<Option<Validation>> {
        let validation = match &self.held_out {
            None => return Ok(None),
            Some(held_out @ HeldOut::Text { batches, carries, .. }) => {
                let loss = self.loss_of(batches, *carries)?;
                Validation { loss, bits_per_byte: held_out.bits_per_byte(loss), accuracy: None }
            }
            Some(HeldOut::Task(lengths, count)) => {
                let first = self.position.step.wrapping_mul(*count);
                let numbers = first..first.saturating_add(*count);
                let reader = Reader::on(self.model.device());
                let score = lengths.iter().try_fold(Score::default(), |sum, sequences| {
                    Ok::<_, Error>(sum + reader.score(&self.model, sequences, numbers.clone(), |_| ())?)
                })?;
                let loss = score.smoothed_loss(self.config.train.label_smoothing);
                Validation { loss, bits_per_byte: None, accuracy: Some(score.accuracy()) }
            }
        };
        if let Some(accuracy) = validation.accuracy {
            let reached = accuracy >= self.config.train.stop_at_accuracy;
            self.position.accurate = if reached { self.position.accurate + 1 } else { 0 };
        }
        // A loss that is not finite is no best: nothing would be lower than that.
        if validation.loss.is_finite() && self.position.best.is_none_or(|best| validation.loss < best) {
            (self.position.best, self.position.stale) = (Some(validation.loss), 0);
            self.keeps_old_best = false;
            self.save_model()?;
        } else {
            self.position.stale += 1;
        }
        Ok(Some(validation))
    }

    /// Nats a token of held-out text.
    fn loss_of(&self, batches: &Sequential, carries: bool) -> Result<f64> {
        let mut summary = Summary::default();
        let mut carried: Option<State> = None;
        for batch in (0..batches.len()).filter_map(|i| batches.batch(i).transpose()) {
            let batch = batch?;
            summary.tokens += batch.predictions();
            let layout = Layout { resets: batch.resets.map(Into::into), ..Layout::new(batch.b, batch.l) };
            let state = match carried.take() {
                Some(state) => state,
                None => self.model.zero_state(batch.b)?,
            };
            let cx = self.model.inference(layout);
            let (loss, next) = self.model.loss(&cx, &batch.tokens, &batch.targets, &state, false)?;
            summary.nats += loss.nll.to_vec()?.iter().map(|&nll| f64::from(nll)).sum::<f64>();
            carried = carries.then_some(next);
        }
        Ok(summary.loss())
    }

    /// How the model was trained, for its card: the same run says the same.
    fn story(&self) -> String {
        let (data, train) = (&self.config.data, &self.config.train);
        let what = match &self.tokenizer {
            Some(_) => data.train.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
            None => format!("the task {}", self.config.task.name),
        };
        let step = self.position.step;
        let rows =
            train.batch as u64 * train.accumulate as u64 * self.ranks.as_ref().map_or(1, |ranks| ranks.size() as u64);
        let held_out = self.position.best.map_or(String::new(), |loss| format!(" Held-out loss: {loss:.4} nats."));
        format!(
            "{step} steps of {rows} x {} tokens on {what}, seed {}.{held_out}\n\n`config.toml` has every setting: \
             `elapid train --config config.toml`.",
            data.length, train.seed
        )
    }

    /// Writes the model for use, with its tokenizer if it has one.
    pub(super) fn save_model(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        let card = Card { training: Some(self.story()), tokenizer: self.tokenizer.is_some() };
        let end_ids = self.tokenizer.as_ref().map(|tokenizer| tokenizer.end_ids().to_vec());
        self.model.save(dir, &SaveOptions { end_ids, card: Some(card), ..SaveOptions::default() })?;
        Ok(self.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save(dir))?)
    }
}
