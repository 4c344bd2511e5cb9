//! The answers to a synthetic task.

use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::pass::Cx;
use elapid::{LanguageModel, State};

use super::language::{TOKENS, token_arrays, token_loss};
use super::{ArraySpec, Batch, Inputs, Objective, Validation};
use crate::metrics;
use crate::tasks::{Reader, Score, Sequences};
use crate::{Error, Result};

/// The answers to a synthetic task, with sequences generated on the fly.
#[derive(Debug, Clone)]
pub struct SyntheticTask {
    /// The training sequences.
    pub train: Sequences,
    /// Rows per batch.
    pub rows: usize,
    /// Label smoothing: the share of every target that is spread over all tokens.
    pub smoothing: f64,
    /// Held-out sequences by length, fresh at every validation.
    pub held_out: Vec<Sequences>,
    /// Batches of each length.
    pub count: u64,
}

impl Objective for SyntheticTask {
    type Model = LanguageModel;

    fn model(&self, config: ModelConfig, seed: u64) -> Result<LanguageModel> {
        Ok(LanguageModel::new(config, seed)?)
    }

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.train.positions())
    }

    fn arrays(&self) -> Vec<ArraySpec> {
        token_arrays(self.shape())
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        Ok(self.train.batch(index, self.rows).into())
    }

    fn loss(
        &self,
        model: &LanguageModel,
        cx: &Cx,
        batch: &Inputs<'_>,
        state: &State,
        recompute: bool,
    ) -> Result<(Var, State)> {
        token_loss(model, cx, batch, self.smoothing as f32, state, recompute)
    }

    fn validate(&self, model: &LanguageModel, step: u64) -> Result<Option<Validation>> {
        let first = step.wrapping_mul(self.count);
        let numbers = first..first.saturating_add(self.count);
        let reader = Reader::on(model.device());
        let score = self.held_out.iter().try_fold(Score::default(), |sum, sequences| {
            Ok::<_, Error>(sum + reader.score(model, sequences, numbers.clone(), |_| ())?)
        })?;
        let figures = vec![(metrics::ACCURACY, score.accuracy())];
        Ok(Some(Validation { loss: score.smoothed_loss(self.smoothing), figures }))
    }

    fn measure(&self) -> String {
        format!("train.label_smoothing = {}", self.smoothing)
    }

    fn first_non_finite(&self, model: &LanguageModel, batch: &Batch, state: &State) -> Result<Option<String>> {
        Ok(model.first_non_finite(&batch.layout(), batch.ids(TOKENS), state)?)
    }
}
