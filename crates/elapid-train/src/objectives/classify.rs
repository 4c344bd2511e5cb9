//! Classification of sequences.

use std::sync::Arc;

use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::models::{Model, SequenceModel};
use elapid::pass::Cx;
use elapid::{State, Tensor, evaluate};

use super::labelled::{answers, sequence};
use super::{Array, ArraySpec, Batch, Inputs, Kind, Labelled, Objective, Validation};
use crate::data::IGNORE;
use crate::tasks::Split;
use crate::{Result, metrics};

/// Classification of sequences, read at the last position.
#[derive(Clone)]
pub struct Classify {
    /// Sequences and their classes.
    pub set: Arc<Labelled<u32>>,
    /// Rows per batch.
    pub rows: usize,
    /// Label smoothing: the share of every target that is spread over all classes.
    pub smoothing: f32,
}

impl Objective for Classify {
    type Model = SequenceModel;

    fn model(&self, config: ModelConfig, seed: u64) -> Result<SequenceModel> {
        Ok(SequenceModel::new(config, self.set.form, seed)?)
    }

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.set.length)
    }

    fn arrays(&self) -> Vec<ArraySpec> {
        let shape = vec![self.rows, self.set.length];
        vec![self.set.input(self.rows), ArraySpec { name: "classes", kind: Kind::I32, shape }]
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        let (b, l) = self.shape();
        let (input, classes) = self.set.rows(Split::Train, index.wrapping_mul(b as u64), b)?;
        let mut targets = vec![IGNORE; b * l];
        for (row, class) in targets.chunks_mut(l).zip(classes) {
            row[l - 1] = class as i32;
        }
        Ok(Batch { b, l, resets: None, arrays: vec![input, Array::I32(targets)] })
    }

    fn loss(
        &self,
        model: &SequenceModel,
        cx: &Cx,
        batch: &Inputs<'_>,
        state: &State,
        recompute: bool,
    ) -> Result<(Var, State)> {
        let targets = batch.targets(1)?.smoothed(self.smoothing);
        let (loss, next) = model.class_loss(cx, sequence(batch, self.set.form)?, targets, state, recompute)?;
        Ok((loss.mean, next))
    }

    fn validate(&self, model: &SequenceModel, _step: u64) -> Result<Option<Validation>> {
        let (mut right, mut nats, n) = (0u64, 0.0, self.set.form.outputs);
        for (first, b) in self.set.parts(self.rows) {
            let (input, classes) = self.set.rows(Split::HeldOut, first, b)?;
            let logits = answers(model, &input, (b, self.set.length), &model.core().zero_state(b)?)?;
            let wanted: Vec<i32> = classes.into_iter().map(|class| class as i32).collect();
            for (answer, class) in evaluate::answers(&Tensor::new(logits, &[b, n]), &wanted)?.iter().zip(wanted) {
                right += u64::from(answer.likeliest == class as u32);
                nats += f64::from(answer.nll);
            }
        }
        let count = self.set.held_out as f64;
        let figures = vec![(metrics::ACCURACY, right as f64 / count)];
        Ok((self.set.held_out > 0).then_some(Validation { loss: nats / count, figures }))
    }
}
