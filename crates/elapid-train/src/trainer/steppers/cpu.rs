//! Steps on the CPU: each is done when it has been submitted.

use std::collections::VecDeque;
use std::sync::Arc;

use elapid::State;
use elapid::autograd::{Tape, Var};
use elapid::models::Model;
use elapid::ops::{First, Seeds};
use elapid::params::ParamGrads;

use super::stepper::{Learner, Step, Stepper};
use crate::objectives::{ArraySpec, Batch, Inputs};
use crate::parallel::Group;
use crate::{Error, Result};

/// Steps on the CPU.
pub(in crate::trainer) struct OnCpu {
    arrays: Vec<ArraySpec>,
    carries: bool,
    carried: Option<State>,
    done: VecDeque<Step>,
}

impl OnCpu {
    /// Continues from the state of streams, if there are any.
    pub(in crate::trainer) fn new<M: Model>(learner: &Learner<M>, carried: Option<State>) -> Self {
        let (arrays, carries) = (learner.objective.arrays(), learner.objective.carries());
        Self { arrays, carries, carried, done: VecDeque::new() }
    }

    /// Forward and backward over a batch whose loss has weight `share`; returns the loss.
    fn run<M: Model>(
        &mut self,
        learner: &mut Learner<M>,
        (step, part): (u64, u64),
        batch: &Batch,
        share: f32,
    ) -> Result<f64> {
        let state = match self.carried.take().filter(|_| self.carries) {
            Some(state) => state,
            None => learner.model.core().zero_state(batch.b)?,
        };
        let tape = Arc::new(Tape::new());
        let first = First::Host(learner.batch_number(step, part) * batch.b as u64);
        let cx = learner.model.core().training(&tape, batch.layout()).with_seeds(Seeds { seed: learner.seed, first });
        let inputs = Inputs::host(&self.arrays, batch);
        let (loss, next) = learner.objective.loss(&learner.model, &cx, &inputs, &state, learner.recompute)?;
        let value = f64::from(loss.value().to_vec()?[0]);
        if !value.is_finite() {
            let found = learner.objective.first_non_finite(&learner.model, batch, &state)?;
            return Err(learner.not_finite(step, value, found));
        }
        let sides = cx.take_side_losses()?;
        let sides = sides.iter().map(|(side, weight)| (side, weight * share));
        let losses: Vec<(&Var, f32)> = [(&loss, share)].into_iter().chain(sides).collect();
        tape.backward(&losses, &mut learner.grads, &mut |_| Ok(()))?;
        self.carried = self.carries.then(|| next.detach());
        Ok(value)
    }
}

impl<M: Model> Stepper<M> for OnCpu {
    fn ahead(&self) -> usize {
        0
    }

    fn submit(
        &mut self,
        learner: &mut Learner<M>,
        step: u64,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        lr: f32,
    ) -> Result<()> {
        let batches: Vec<Batch> = batches.collect::<Result<_>>()?;
        let parts = batches.len() * learner.size() as usize;
        learner.grads.zero()?;
        let (mut loss, mut tokens) = (0.0, 0);
        for (part, batch) in (0..).zip(&batches) {
            loss += self.run(learner, (step, part), batch, 1.0 / parts as f32)? / parts as f64;
            tokens += batch.positions();
        }
        if let Some(ranks) = &learner.ranks {
            loss = sum_over(ranks, &mut learner.grads, loss)?;
            tokens *= ranks.size() as u64;
        }
        let stepped = learner.optimiser.step(learner.model.core_mut().params_mut(), &learner.grads, lr);
        let grad_norm = stepped.map_err(|error| learner.diverged(step, error.to_string()))?;
        self.done.push_back(Step { loss, grad_norm, tokens });
        Ok(())
    }

    fn results(&mut self, _learner: &Learner<M>) -> Result<Step> {
        let nothing = || Error::from(elapid::Error::Argument("results of a step that was not submitted".into()));
        self.done.pop_front().ok_or_else(nothing)
    }

    fn state(&self) -> Option<&State> {
        self.carried.as_ref()
    }
}

/// Replaces gradients and loss by their sums over ranks, on CPUs.
fn sum_over(ranks: &Group, grads: &mut ParamGrads, loss: f64) -> Result<f64> {
    let mut numbers: Vec<f32> = grads.iter().flat_map(|(_, sum)| sum.as_slice()).copied().collect();
    numbers.push(loss as f32);
    ranks.sum(&mut numbers)?;
    let mut rest = numbers.as_slice();
    for (_, sum) in grads.iter_mut() {
        let (these, others) = rest.split_at(sum.len());
        sum.make_mut().copy_from_slice(these);
        rest = others;
    }
    Ok(f64::from(rest[0]))
}
