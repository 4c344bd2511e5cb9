//! One step: forward and backward over its batches, on the CPU or on a GPU, and the optimiser's update.

use std::sync::Arc;
use std::time::Instant;

use elapid::Layout;
use elapid::autograd::Tape;
use elapid::ops::Targets;
use elapid::params::ParamGrads;

use super::{Feed, Trainer};
use crate::cuda_step::Pending;
use crate::data::{self, Batch};
use crate::parallel::Group;
use crate::{Error, Result, optim, resume};

/// Losses of one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    pub(super) tokens: u64,
}

/// A step that was asked for.
pub(super) struct Asked {
    /// Its number, from 1.
    pub(super) step: u64,
    pub(super) lr: f64,
    pub(super) began: Instant,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// The CPU has done it.
    Done(Step),
    /// A GPU may still be at it. The last batch is kept to say what went wrong; tokens and parts are those of all ranks.
    Pending { pending: Pending, tokens: u64, last: Option<Batch>, parts: u64 },
}

impl Asked {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.work, Work::Done(_))
    }
}

impl Trainer {
    /// Forward and backward over `accumulate` batches, then one step of the optimiser: done on the CPU, asked for
    /// on a GPU.
    pub(super) fn ask(&mut self, lr: f64, batches: &mut impl Iterator<Item = Result<Batch>>) -> Result<Asked> {
        let began = Instant::now();
        let step = self.position.step + 1;
        let size = self.place().1;
        let batches = batches.take(self.parts() as usize);
        // Batches of all ranks make one step.
        let parts = self.parts() * size;
        if self.cuda.is_none() {
            let batches: Vec<Batch> = batches.collect::<Result<_>>()?;
            let done = self.train_step(&batches, lr as f32)?;
            return Ok(Asked { step, lr, began, work: Work::Done(done) });
        }
        let (mut tokens, mut last) = (0, None);
        let Some(cuda) = &mut self.cuda else { unreachable!("it was just there") };
        cuda.begin(&mut self.grads)?;
        for batch in batches {
            let (batch, share) = (batch?, 1.0 / parts as f32);
            cuda.run(&self.model, &mut self.grads, &batch, share, self.config.train.checkpoint_blocks)?;
            tokens += (batch.b * batch.l) as u64;
            last = Some(batch);
        }
        cuda.reduce(&self.grads)?;
        self.optimiser.enqueue(self.model.params(), &self.grads, lr as f32)?;
        let norm = self.optimiser.norm().ok_or_else(|| elapid::Error::Argument("an optimiser of no GPU".into()))?;
        let pending = cuda.end(norm)?;
        self.model.changed();
        Ok(Asked { step, lr, began, work: Work::Pending { pending, tokens: tokens * size, last, parts } })
    }

    /// What a step came to; waits for a GPU.
    pub(super) fn results(&self, asked: &Asked) -> Result<Step> {
        let (pending, tokens, last, parts) = match &asked.work {
            Work::Done(step) => return Ok(*step),
            Work::Pending { pending, tokens, last, parts } => (pending, *tokens, last, *parts),
        };
        let Some(cuda) = &self.cuda else { unreachable!("a GPU's results without it") };
        let (loss, norm, finite) = cuda.results(pending)?;
        // What a lost rank leaves is no result.
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.check())?;
        let loss = f64::from(loss) / parts as f64;
        if loss.is_finite() && finite {
            return Ok(Step { loss, grad_norm: f64::from(norm), tokens });
        }
        if loss.is_finite() {
            let error = optim::non_finite(self.model.params(), &self.grads);
            return Err(self.diverged(asked.step, error.to_string()));
        }
        let found = match last {
            Some(batch) => {
                let layout = Layout { resets: batch.resets.clone().map(Into::into), ..Layout::new(batch.b, batch.l) };
                self.model.first_non_finite(&layout, &batch.tokens, cuda.state())?
            }
            None => None,
        };
        Err(self.not_finite(asked.step, loss, found))
    }

    fn train_step(&mut self, batches: &[Batch], lr: f32) -> Result<Step> {
        let parts = batches.len() * self.place().1 as usize;
        self.grads.zero()?;
        let (mut loss_sum, mut tokens) = (0.0, 0);
        for batch in batches {
            let layout = Layout { resets: batch.resets.clone().map(Into::into), ..Layout::new(batch.b, batch.l) };
            let state = match (&*self.feed, self.carried.take()) {
                (Feed::Streams(_), Some(state)) => state,
                _ => self.model.zero_state(batch.b)?,
            };
            let tape = Arc::new(Tape::new());
            let cx = self.model.training(&tape, layout.clone());
            let train = &self.config.train;
            let targets = Targets::from(&batch.targets).smoothed(train.label_smoothing as f32);
            let (loss, next) = self.model.loss(&cx, &batch.tokens, targets, &state, train.checkpoint_blocks)?;
            let value = f64::from(loss.value()?);
            if !value.is_finite() {
                let found = self.model.first_non_finite(&layout, &batch.tokens, &state)?;
                return Err(self.not_finite(self.position.step + 1, value, found));
            }
            tape.backward(&[(&loss.mean, 1.0 / parts as f32)], &mut self.grads, &mut |_| Ok(()))?;
            self.carried = matches!(*self.feed, Feed::Streams(_)).then(|| next.detach());
            loss_sum += value / parts as f64;
            tokens += (batch.b * batch.l) as u64;
        }
        if let Some(ranks) = &self.ranks {
            loss_sum = sum_over(ranks, &mut self.grads, loss_sum)?;
            tokens *= ranks.size() as u64;
        }
        let stepped = self.optimiser.step(self.model.params_mut(), &self.grads, lr);
        let grad_norm = stepped.map_err(|error| self.diverged(self.position.step + 1, error.to_string()))?;
        Ok(Step { loss: loss_sum, grad_norm, tokens })
    }

    /// This rank's batches from here on.
    pub(super) fn batches(&self) -> impl Iterator<Item = Result<Batch>> + use<> {
        let (rank, size) = self.place();
        let feed = self.feed.clone();
        let numbers = (self.position.step * self.parts()..).map(move |part| part * size + rank);
        data::ahead(numbers, move |number| feed.batch(number))
    }

    /// Batches of a rank that make one step.
    fn parts(&self) -> u64 {
        self.config.train.accumulate.max(1) as u64
    }

    /// This rank and the number of ranks.
    pub(super) fn place(&self) -> (u64, u64) {
        self.ranks.as_ref().map_or((0, 1), |ranks| (ranks.world().rank as u64, ranks.size() as u64))
    }

    fn not_finite(&self, step: u64, loss: f64, found: Option<String>) -> Error {
        let elsewhere = self.ranks.as_ref().map_or("", |_| ", or in the batch of another rank");
        let place = found.unwrap_or_else(|| format!("the output projection{elsewhere}"));
        self.diverged(step, format!("the loss is {loss}; the first number not finite is in {place}"))
    }

    fn diverged(&self, step: u64, what: String) -> Error {
        let kept = match resume::latest(&self.config.output.dir) {
            Some((step, path)) => format!("The checkpoint of step {step} is in {}", path.display()),
            None => "No checkpoint had been written yet (train.save_every)".to_owned(),
        };
        Error::Diverged { step, what, kept }
    }
}

/// Gradients and loss ← their sums over ranks, on processors.
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
