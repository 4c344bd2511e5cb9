//! The loop over steps: what is done after each of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::step::Asked;
use super::{Feed, Outcome, Stopped, Trainer};
use crate::Result;
use crate::cuda_step::{AHEAD, CudaStep};
use crate::metrics::Record;
use crate::plot;
use crate::progress::{Progress, Status};
use crate::resume::{self, Saved};

/// What was logged last.
struct Log {
    since: Instant,
    tokens: u64,
    wrote: bool,
    loss: f64,
    accuracy: Option<f64>,
}

impl Trainer {
    pub(super) fn run_steps(&mut self, last: u64, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        let settings = self.config.train.clone();
        let mut stopped = Stopped::Finished;
        let mut log = Log { since: Instant::now(), tokens: 0, wrote: false, loss: f64::NAN, accuracy: None };
        let mut asked: VecDeque<Asked> = VecDeque::new();
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
            asked.push_back(self.ask(lr, &mut batches)?);
            self.position.step += 1;

            let n = self.position.step;
            let every = |interval: u64| interval > 0 && n.is_multiple_of(interval);
            let (eval, save) = (every(settings.eval_every) || n == settings.steps, every(settings.save_every));
            // A GPU works on the next steps while the results of this one are on their way.
            let ahead = if eval || save { 0 } else { AHEAD };
            while asked.len() > ahead || asked.front().is_some_and(Asked::is_ready) {
                let Some(first) = asked.pop_front() else { break };
                let validates = eval && asked.is_empty();
                self.hear(&first, validates, &mut log, progress)?;
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
        while let Some(first) = asked.pop_front() {
            self.hear(&first, false, &mut log, progress)?;
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
        let bits = self.position.best.and_then(|best| self.held_out.as_ref()?.bits_per_byte(best));
        Outcome {
            stopped,
            step: self.position.step,
            tokens: self.position.tokens,
            seconds: self.position.seconds,
            loss: log.loss,
            val_loss: self.position.best,
            bits_per_byte: bits,
            accuracy: log.accuracy,
            dir: self.config.output.dir.clone(),
        }
    }

    /// Files the results of a step that was asked for, and validates after it if `validates`.
    fn hear(&mut self, asked: &Asked, validates: bool, log: &mut Log, progress: &Progress) -> Result<()> {
        let step = self.results(asked)?;
        self.position.tokens += step.tokens;
        let now = Instant::now();
        self.position.seconds += (now - asked.began.max(self.heard)).as_secs_f64();
        self.heard = now;
        (log.loss, log.tokens) = (step.loss, log.tokens + step.tokens);
        let settings = &self.config.train;
        let (n, end) = (asked.step, asked.step == settings.steps);
        let writes = n.is_multiple_of(settings.log_every.max(1)) || end || n == 1;
        let rate = log.tokens as f64 / (now - log.since).as_secs_f64().max(1e-9);
        let validated = if validates { self.validate()? } else { None };
        let val_loss = validated.map(|validation| validation.loss);
        let accuracy = validated.and_then(|validation| validation.accuracy);
        log.accuracy = accuracy.or(log.accuracy);
        progress.report(&Status { step: n, loss: step.loss, val_loss, accuracy, tokens_per_second: rate }, writes);
        if writes || validated.is_some() {
            let record = Record {
                step: n,
                tokens: self.position.tokens,
                seconds: self.position.seconds,
                loss: step.loss,
                lr: asked.lr,
                grad_norm: step.grad_norm,
                tokens_per_second: rate,
                val_loss,
                bits_per_byte: validated.and_then(|validation| validation.bits_per_byte),
                accuracy,
            };
            self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(&record))?;
            (log.since, log.tokens, log.wrote) = (Instant::now(), 0, true);
        }
        // A validation's time is not training's.
        self.heard = Instant::now();
        Ok(())
    }

    /// Whether to stop here: all ranks do, or none.
    fn stops(&self, asked: bool) -> Result<bool> {
        self.ranks.as_ref().map_or(Ok(asked), |ranks| ranks.stop(asked))
    }

    /// What rank 0 says, where all ranks ask.
    fn agreed(&self, asks: bool, yes: bool) -> Result<bool> {
        match &self.ranks {
            None => Ok(yes),
            Some(ranks) if asks => ranks.agree(yes),
            Some(_) => Ok(false),
        }
    }

    /// Writes what it takes to go on; without held-out text, the model for use as well. What is saved already is not
    /// saved again.
    fn save(&mut self) -> Result<()> {
        let (Some(dir), Some(metrics)) = (&self.run_dir, &self.metrics) else { return Ok(()) };
        if self.saved == Some(self.position.step) {
            return Ok(());
        }
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.check())?;
        metrics.sync()?;
        if self.position.best.is_none() && !self.keeps_old_best {
            // Before the checkpoint, with which the run may be at its end.
            self.save_model()?;
        }
        let streams = matches!(*self.feed, Feed::Streams(_));
        let carried = self.cuda.as_ref().filter(|_| streams).map(CudaStep::state).or(self.carried.as_ref());
        let saved = Saved {
            position: self.position,
            identity: &self.identity,
            model: &self.model,
            tokenizer: self.tokenizer.as_ref(),
            optimiser: &self.optimiser,
            carried,
        };
        resume::save(dir.path(), &saved)?;
        self.saved = Some(self.position.step);
        Ok(())
    }

    fn draw(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        let name = dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy());
        let millions = self.model.params().count() as f64 / 1e6;
        plot::plot_run(dir, &format!("{name}: {millions:.1} M parameters"))
    }
}
