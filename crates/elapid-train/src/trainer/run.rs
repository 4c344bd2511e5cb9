//! The loop over steps, and what happens after each of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use elapid::models::Model;

use super::{Outcome, Stopped, Trainer};
use crate::metrics::{self, Record};
use crate::objectives::{Batch, Validation};
use crate::progress::{Progress, Status};
use crate::resume::{self, Saved};
use crate::{Result, data, plot};

/// The state of logging.
struct Log {
    since: Instant,
    tokens: u64,
    wrote: bool,
    loss: f64,
    figures: BTreeMap<String, f64>,
}

/// A step that was submitted and whose results were not taken yet.
struct Submitted {
    /// Its number, from 1.
    step: u64,
    lr: f64,
    began: Instant,
}

impl<M: Model> Trainer<M> {
    pub(super) fn run_steps(&mut self, last: u64, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        let settings = self.config.train.clone();
        let mut stopped = Stopped::Finished;
        let mut log = Log { since: Instant::now(), tokens: 0, wrote: false, loss: f64::NAN, figures: BTreeMap::new() };
        let mut submitted: VecDeque<Submitted> = VecDeque::new();
        let mut batches = self.batches();
        while self.position.step < settings.steps {
            let stops = self.stops(stop.load(Ordering::Relaxed))?;
            if stops || self.position.step >= last {
                if stops {
                    progress.note("asked to stop: saving");
                }
                stopped = Stopped::Interrupted;
                break;
            }
            let lr = self.schedule.lr(self.position.step);
            let (step, began) = (self.position.step + 1, Instant::now());
            let mut parts = batches.by_ref().take(self.learner.parts as usize);
            self.stepper.submit(&mut self.learner, step, &mut parts, lr as f32)?;
            submitted.push_back(Submitted { step, lr, began });
            self.position.step += 1;

            let n = self.position.step;
            let every = |interval: u64| interval > 0 && n.is_multiple_of(interval);
            let (eval, save) = (every(settings.eval_every) || n == settings.steps, every(settings.save_every));
            // Further steps may be in flight while waiting for the results of this one.
            let ahead = if eval || save { 0 } else { self.stepper.ahead() };
            while submitted.len() > ahead {
                let Some(first) = submitted.pop_front() else { break };
                let validates = eval && submitted.is_empty();
                self.file(&first, validates, &mut log, progress)?;
            }
            let enough = settings.patience > 0 && self.position.stale >= settings.patience;
            if self.agreed(eval && settings.patience > 0, enough)? {
                stopped = Stopped::Patience;
                break;
            }
            let reached = settings.stop_at_accuracy > 0.0 && self.position.accurate >= settings.stop_after;
            if self.agreed(eval && settings.stop_at_accuracy > 0.0, reached)? {
                stopped = Stopped::Accuracy;
                break;
            }
            if save {
                self.save()?;
            }
        }
        while let Some(first) = submitted.pop_front() {
            self.file(&first, false, &mut log, progress)?;
        }
        self.save()?;
        // A run that was killed at its end has no pictures yet.
        let drawn = self.run_dir.as_ref().is_none_or(|dir| dir.path().join("loss.png").exists());
        if self.metrics.is_some() && (log.wrote || !drawn) {
            self.draw()?;
        }
        Ok(self.outcome(stopped, &log))
    }

    fn outcome(&self, stopped: Stopped, log: &Log) -> Outcome {
        let mut figures = log.figures.clone();
        let best = self.position.best.map(|best| self.learner.objective.figures_of(best));
        figures.extend(best.into_iter().flatten().map(|(name, value)| (name.to_owned(), value)));
        Outcome {
            stopped,
            step: self.position.step,
            tokens: self.position.tokens,
            seconds: self.position.seconds,
            loss: log.loss,
            val_loss: self.position.best,
            figures,
            dir: self.config.output.dir.clone(),
        }
    }

    /// Records the results of a submitted step, and validates after it if `validates`.
    fn file(&mut self, submitted: &Submitted, validates: bool, log: &mut Log, progress: &Progress) -> Result<()> {
        let step = self.stepper.results(&self.learner)?;
        self.position.tokens += step.tokens;
        let now = Instant::now();
        self.position.seconds += (now - submitted.began.max(self.heard)).as_secs_f64();
        self.heard = now;
        (log.loss, log.tokens) = (step.loss, log.tokens + step.tokens);
        let (sum, steps) = (self.position.unlogged.0 + step.loss, self.position.unlogged.1 + 1);
        self.position.unlogged = (sum, steps);
        let mean_loss = sum / steps as f64;
        let settings = &self.config.train;
        let (n, end) = (submitted.step, submitted.step == settings.steps);
        let writes = n.is_multiple_of(settings.log_every.max(1)) || end || n == 1;
        let rate = log.tokens as f64 / (now - log.since).as_secs_f64().max(1e-9);
        let validated = if validates { self.validate()? } else { None };
        let val_loss = validated.as_ref().map(|validation| validation.loss);
        let accuracy = validated.as_ref().and_then(Validation::accuracy);
        let named = |(name, value): &metrics::Figure| ((*name).to_owned(), *value);
        let mut figures: BTreeMap<String, f64> =
            validated.iter().flat_map(|validation| &validation.figures).map(named).collect();
        if validated.is_some() {
            log.figures.clone_from(&figures);
        }
        progress.report(&Status { step: n, loss: mean_loss, val_loss, accuracy, tokens_per_second: rate }, writes);
        if writes || validated.is_some() {
            figures.extend(val_loss.map(|loss| (metrics::VAL_LOSS.to_owned(), loss)));
            let record = Record {
                step: n,
                tokens: self.position.tokens,
                seconds: self.position.seconds,
                loss: mean_loss,
                lr: submitted.lr,
                grad_norm: step.grad_norm,
                tokens_per_second: rate,
                figures,
            };
            self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(&record))?;
            (log.since, log.tokens, log.wrote) = (Instant::now(), 0, true);
            self.position.unlogged = (0.0, 0);
        }
        // Time of validation does not count as training.
        self.heard = Instant::now();
        Ok(())
    }

    /// This rank's batches from here on.
    fn batches(&self) -> impl Iterator<Item = Result<Batch>> + use<M> {
        let (rank, size) = self.place();
        let objective = self.learner.objective.clone();
        let numbers = (self.position.step * self.learner.parts..).map(move |part| part * size + rank);
        data::ahead(numbers, move |number| objective.batch(number))
    }

    /// This rank and the number of ranks.
    fn place(&self) -> (u64, u64) {
        let ranks = self.learner.ranks.as_ref();
        ranks.map_or((0, 1), |ranks| (ranks.world().rank as u64, ranks.size() as u64))
    }

    /// Whether to stop here; all ranks agree.
    fn stops(&self, asked: bool) -> Result<bool> {
        self.learner.ranks.as_ref().map_or(Ok(asked), |ranks| ranks.stop(asked))
    }

    /// The answer of rank 0, on all ranks.
    fn agreed(&self, asks: bool, yes: bool) -> Result<bool> {
        match &self.learner.ranks {
            None => Ok(yes),
            Some(ranks) if asks => ranks.agree(yes),
            Some(_) => Ok(false),
        }
    }

    /// Writes a checkpoint, and without held-out text also the model for use. Does nothing if the step is already saved.
    fn save(&mut self) -> Result<()> {
        let (Some(dir), Some(metrics)) = (&self.run_dir, &self.metrics) else { return Ok(()) };
        if self.saved == Some(self.position.step) {
            return Ok(());
        }
        self.learner.ranks.as_ref().map_or(Ok(()), |ranks| ranks.check())?;
        metrics.sync()?;
        if self.position.best.is_none() && !self.keeps_old_best {
            // Before the checkpoint, after which the run may be finished.
            self.save_model()?;
        }
        let saved = Saved {
            position: self.position,
            identity: &self.identity,
            model: self.learner.model.core(),
            tokenizer: self.tokenizer.as_ref(),
            optimiser: &self.learner.optimiser,
            carried: self.stepper.state(),
        };
        resume::save(dir.path(), &saved)?;
        self.saved = Some(self.position.step);
        Ok(())
    }

    fn draw(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        let name = dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy());
        let millions = self.learner.model.core().params().count() as f64 / 1e6;
        plot::plot_run(dir, &format!("{name}: {millions:.1} M parameters"))
    }
}
