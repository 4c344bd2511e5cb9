//! Regression on sequences.

use std::sync::Arc;

use elapid::State;
use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::models::{Model, SequenceModel};
use elapid::pass::Cx;

use super::labelled::{answers, sequence};
use super::{Array, ArraySpec, Batch, Inputs, Kind, Labelled, Objective, Validation};
use crate::tasks::Split;
use crate::{Error, Result, metrics};

/// Regression on sequences, read at the last position; the loss is the mean squared error.
#[derive(Clone)]
pub struct Regress {
    /// Sequences and their values, one per output of the form.
    pub set: Arc<Labelled<Vec<f32>>>,
    /// Rows per batch.
    pub rows: usize,
}

impl Regress {
    fn check(&self, label: &[f32]) -> Result<()> {
        let n = self.set.form.outputs;
        if label.len() == n {
            return Ok(());
        }
        let got = label.len().to_string();
        Err(Error::Argument { argument: "a label", wanted: format!("{n} values"), got })
    }
}

impl Objective for Regress {
    type Model = SequenceModel;

    fn model(&self, config: ModelConfig, seed: u64) -> Result<SequenceModel> {
        Ok(SequenceModel::new(config, self.set.form, seed)?)
    }

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.set.length)
    }

    fn arrays(&self) -> Vec<ArraySpec> {
        let shape = vec![self.rows, self.set.length, self.set.form.outputs];
        vec![self.set.input(self.rows), ArraySpec { name: "labels", kind: Kind::F32, shape }]
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        let ((b, l), n) = (self.shape(), self.set.form.outputs);
        let (input, labels) = self.set.rows(Split::Train, index.wrapping_mul(b as u64), b)?;
        let mut targets = vec![f32::NAN; b * l * n];
        for (row, label) in targets.chunks_mut(l * n).zip(labels) {
            self.check(&label)?;
            row[(l - 1) * n..].copy_from_slice(&label);
        }
        Ok(Batch { b, l, resets: None, arrays: vec![input, Array::F32(targets)] })
    }

    fn loss(
        &self,
        model: &SequenceModel,
        cx: &Cx,
        batch: &Inputs<'_>,
        state: &State,
        recompute: bool,
    ) -> Result<(Var, State)> {
        Ok(model.value_loss(cx, sequence(batch, self.set.form)?, &batch.tensor(1)?, state, recompute)?)
    }

    fn validate(&self, model: &SequenceModel, _step: u64) -> Result<Option<Validation>> {
        let (mut want, mut squares) = (Vec::new(), 0.0);
        for (first, b) in self.set.parts(self.rows) {
            let (input, labels) = self.set.rows(Split::HeldOut, first, b)?;
            labels.iter().try_for_each(|label| self.check(label))?;
            let got = answers(model, &input, (b, self.set.length), &model.core().zero_state(b)?)?;
            let labels: Vec<f32> = labels.into_iter().flatten().collect();
            squares += got.iter().zip(&labels).map(|(y, t)| f64::from(y - t).powi(2)).sum::<f64>();
            want.extend(labels.into_iter().map(f64::from));
        }
        if want.is_empty() {
            return Ok(None);
        }
        let count = want.len() as f64;
        let mean = want.iter().sum::<f64>() / count;
        let spread = want.iter().map(|t| (t - mean).powi(2)).sum::<f64>();
        let figures = vec![(metrics::R2, 1.0 - squares / spread)];
        Ok(Some(Validation { loss: squares / count, figures }))
    }
}
