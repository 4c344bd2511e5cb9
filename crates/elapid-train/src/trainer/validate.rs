//! The held-out loss, and the best model by it.

use elapid::checkpoint::{Card, SaveOptions};
use elapid::models::Model;

use super::Trainer;
use crate::Result;
use crate::objectives::Validation;

impl<M: Model> Trainer<M> {
    /// Measures the held-out loss, on rank 0; a new best model is kept in the run's directory.
    pub(super) fn validate(&mut self) -> Result<Option<Validation>> {
        if self.run_dir.is_none() {
            return Ok(None);
        }
        let validation = self.learner.objective.validate(&self.learner.model, self.position.step)?;
        let Some(validation) = validation else { return Ok(None) };
        if let Some(accuracy) = validation.accuracy() {
            let reached = accuracy >= self.config.train.stop_at_accuracy;
            self.position.accurate = if reached { self.position.accurate + 1 } else { 0 };
        }
        // A loss that is not finite is never the best, as no later one would be lower.
        if validation.loss.is_finite() && self.position.best.is_none_or(|best| validation.loss < best) {
            (self.position.best, self.position.stale) = (Some(validation.loss), 0);
            self.keeps_old_best = false;
            self.save_model()?;
        } else {
            self.position.stale += 1;
        }
        Ok(Some(validation))
    }

    /// How the model was trained, for its card; equal for equal runs.
    fn story(&self) -> String {
        let train = &self.config.train;
        let (step, what, ranks) = (self.position.step, &self.what, self.learner.ranks.as_ref());
        let (b, l) = self.learner.objective.shape();
        let rows = b as u64 * train.accumulate as u64 * ranks.map_or(1, |ranks| ranks.size() as u64);
        let held_out = self.position.best.map_or(String::new(), |loss| format!(" Held-out loss: {loss:.4} nats."));
        format!(
            "{step} steps of {rows} x {l} tokens on {what}, seed {}.{held_out}\n\n`config.toml` has every setting: \
             `elapid train --config config.toml`.",
            train.seed
        )
    }

    /// Writes the model for use, with its tokenizer if it has one.
    pub(super) fn save_model(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        let card = Card { training: Some(self.story()), tokenizer: self.tokenizer.is_some() };
        let end_ids = self.tokenizer.as_ref().map(|tokenizer| tokenizer.end_ids().to_vec());
        self.learner.model.core().save(dir, &SaveOptions { end_ids, card: Some(card), ..SaveOptions::default() })?;
        Ok(self.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save(dir))?)
    }
}
