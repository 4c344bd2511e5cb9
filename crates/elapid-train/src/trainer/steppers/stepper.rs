//! The trait of steppers, and the state that steps change.

use std::path::PathBuf;
use std::sync::Arc;

use elapid::State;
use elapid::models::Model;
use elapid::params::ParamGrads;

use crate::objectives::{Batch, ObjectiveOf};
use crate::optim::AdamW;
use crate::parallel::Group;
use crate::{Error, Result, resume};

/// The result of a step.
#[derive(Debug, Clone, Copy)]
pub(in crate::trainer) struct Step {
    /// The mean loss.
    pub(in crate::trainer) loss: f64,
    /// The norm of all gradients before clipping.
    pub(in crate::trainer) grad_norm: f64,
    /// Positions of all batches of all ranks.
    pub(in crate::trainer) tokens: u64,
}

/// The state that a step reads and changes.
pub(in crate::trainer) struct Learner<M> {
    pub(in crate::trainer) objective: Arc<ObjectiveOf<M>>,
    pub(in crate::trainer) model: M,
    pub(in crate::trainer) optimiser: AdamW,
    pub(in crate::trainer) grads: ParamGrads,
    /// The ranks that train together, if there are several.
    pub(in crate::trainer) ranks: Option<Arc<Group>>,
    /// What random numbers of training follow from.
    pub(in crate::trainer) seed: u64,
    /// Batches per step on each rank.
    pub(in crate::trainer) parts: u64,
    /// Whether activations inside layers are recomputed in the backward pass.
    pub(in crate::trainer) recompute: bool,
    /// The run's directory.
    pub(in crate::trainer) dir: PathBuf,
}

/// Takes steps: forward and backward over the batches of each, then the optimiser's update.
pub(in crate::trainer) trait Stepper<M: Model> {
    /// Steps that may be submitted before the results of the first of them are taken.
    fn ahead(&self) -> usize;

    /// Runs step `step`, or submits it to a device, with batches from `batches`.
    fn submit(
        &mut self,
        learner: &mut Learner<M>,
        step: u64,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        lr: f32,
    ) -> Result<()>;

    /// The results of the oldest submitted step whose results were not taken; waits for them.
    fn results(&mut self, learner: &Learner<M>) -> Result<Step>;

    /// The state after the last batch, if it is carried from batch to batch.
    fn state(&self) -> Option<&State>;
}

impl<M: Model> Learner<M> {
    /// Number of ranks.
    pub(super) fn size(&self) -> u64 {
        self.ranks.as_ref().map_or(1, |ranks| ranks.size() as u64)
    }

    /// The number of this rank's batch `part` of step `step` among all batches of the run.
    pub(super) fn batch_number(&self, step: u64, part: u64) -> u64 {
        let rank = self.ranks.as_ref().map_or(0, |ranks| ranks.world().rank as u64);
        (step.saturating_sub(1) * self.parts + part) * self.size() + rank
    }

    /// The error for a loss that is not finite; `found` is the first place with such a value.
    pub(super) fn not_finite(&self, step: u64, loss: f64, found: Option<String>) -> Error {
        let elsewhere = self.ranks.as_ref().map_or("", |_| ", or in the batch of another rank");
        let place = found.unwrap_or_else(|| format!("the output projection{elsewhere}"));
        self.diverged(step, format!("the loss is {loss}; the first value that is not finite is in {place}"))
    }

    pub(super) fn diverged(&self, step: u64, what: String) -> Error {
        let kept = match resume::latest(&self.dir) {
            Some((step, path)) => format!("The checkpoint of step {step} is in {}", path.display()),
            None => "No checkpoint had been written yet (train.save_every)".to_owned(),
        };
        Error::Diverged { step, what, kept }
    }
}
