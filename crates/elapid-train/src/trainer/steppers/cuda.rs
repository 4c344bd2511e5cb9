//! Steps on a GPU: submitted, and their results read some steps later.

use std::collections::VecDeque;

use elapid::State;
use elapid::models::Model;

use super::stepper::{Learner, Step, Stepper};
use crate::cuda_step::{AHEAD, CudaStep, Pending};
use crate::objectives::Batch;
use crate::{Error, Result, optim};

/// Steps on a GPU.
pub(in crate::trainer) struct OnCuda<M: Model> {
    step: CudaStep<M>,
    submitted: VecDeque<Submitted>,
}

/// A step that the device may still be working on.
struct Submitted {
    step: u64,
    pending: Pending,
    /// Positions of the batches of all ranks, and the number of these batches.
    tokens: u64,
    parts: u64,
    /// Kept to report where a loss was not finite.
    last: Option<Batch>,
}

impl<M: Model> OnCuda<M> {
    pub(in crate::trainer) fn new(step: CudaStep<M>) -> Self {
        Self { step, submitted: VecDeque::new() }
    }
}

impl<M: Model> Stepper<M> for OnCuda<M> {
    fn ahead(&self) -> usize {
        AHEAD
    }

    fn submit(
        &mut self,
        learner: &mut Learner<M>,
        step: u64,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        lr: f32,
    ) -> Result<()> {
        // One step has the batches of all ranks.
        let parts = learner.parts * learner.size();
        let (mut tokens, mut last) = (0, None);
        self.step.begin(&mut learner.grads)?;
        for (part, batch) in (0..).zip(batches) {
            let (batch, share, number) = (batch?, 1.0 / parts as f32, learner.batch_number(step, part));
            self.step.run(&learner.model, &mut learner.grads, (number, &batch), share, learner.recompute)?;
            tokens += batch.positions();
            last = Some(batch);
        }
        self.step.reduce(&learner.grads)?;
        learner.optimiser.enqueue(learner.model.core().params(), &learner.grads, lr)?;
        let norm = learner
            .optimiser
            .norm()
            .ok_or_else(|| elapid::Error::Argument("an optimiser that is not on a GPU".into()))?;
        let pending = self.step.end(norm)?;
        learner.model.core_mut().changed();
        let tokens = tokens * learner.size();
        self.submitted.push_back(Submitted { step, pending, tokens, parts, last });
        Ok(())
    }

    fn results(&mut self, learner: &Learner<M>) -> Result<Step> {
        let nothing = || Error::from(elapid::Error::Argument("results of a step that was not submitted".into()));
        let Submitted { step, pending, tokens, parts, last } = self.submitted.pop_front().ok_or_else(nothing)?;
        let (loss, norm, finite) = self.step.results(&pending)?;
        // Results are invalid after a rank was lost.
        learner.ranks.as_ref().map_or(Ok(()), |ranks| ranks.check())?;
        let loss = f64::from(loss) / parts as f64;
        if loss.is_finite() && finite {
            return Ok(Step { loss, grad_norm: f64::from(norm), tokens });
        }
        if loss.is_finite() {
            let error = optim::non_finite(learner.model.core().params(), &learner.grads);
            return Err(learner.diverged(step, error.to_string()));
        }
        let found = match last {
            Some(batch) => learner.objective.first_non_finite(&learner.model, &batch, self.step.state())?,
            None => None,
        };
        Err(learner.not_finite(step, loss, found))
    }

    fn state(&self) -> Option<&State> {
        self.step.carried()
    }
}
