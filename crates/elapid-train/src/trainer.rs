//! The training loop.

mod reads;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use elapid::autograd::Tape;
use elapid::checkpoint::SaveOptions;
use elapid::evaluate::Summary;
use elapid::ops::{Layout, Targets};
use elapid::params::ParamGrads;
use elapid::tokenizer::Tokenizer;
use elapid::{Device, LanguageModel, State};

use crate::config::{Mode, TrainConfig};
use crate::cuda_step::{AHEAD, CudaStep, Pending};
use crate::data::{self, Batch, Sequential};
use crate::metrics::{self, Record};
use crate::optim::{self, AdamW};
use crate::parallel::{Group, Reducer, start};
use crate::plot;
use crate::progress::{Progress, Status};
use crate::resume::{self, Position};
use crate::schedule::Schedule;
use crate::tasks::{self, Reader, Score};
use crate::{Error, Result};
use reads::{Data, Feed, HeldOut};

/// A run: what is trained, how far it has come, and the directory that it leaves.
///
/// The directory holds `config.toml` (every setting), the model of the lowest validation loss in the Hugging Face
/// layout, `metrics.jsonl`, `loss.svg`, `loss.png`, and `resume/`.
pub struct Trainer {
    config: TrainConfig,
    /// The tokenizer of the text; a task has none.
    tokenizer: Option<Tokenizer>,
    schedule: Schedule,
    feed: Arc<Feed>,
    train_tokens: u64,
    held_out: Option<HeldOut>,
    model: LanguageModel,
    optimiser: AdamW,
    grads: ParamGrads,
    /// What a GPU trains with.
    cuda: Option<CudaStep>,
    /// The ranks that train together, if there are several.
    ranks: Option<Arc<Group>>,
    /// The state at the end of the last step, of streams on the processor.
    carried: Option<State>,
    position: Position,
    /// When the results of the last step came.
    heard: Instant,
    /// Where records go, at rank 0.
    metrics: Option<metrics::Writer>,
    notices: Vec<String>,
}

/// What a validation came to.
#[derive(Debug, Clone, Copy)]
struct Validation {
    loss: f64,
    bits_per_byte: Option<f64>,
    accuracy: Option<f64>,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All steps are done.
    Finished,
    /// The validation loss stopped falling; see `train.patience`.
    Patience,
    /// Enough validations reached `train.stop_at_accuracy`.
    Accuracy,
    /// It was asked to; it can be resumed.
    Interrupted,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why it ended.
    pub stopped: Stopped,
    /// Steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
    /// Training loss of the last step in nats a token; NaN if this session did none.
    pub loss: f64,
    /// Lowest loss on held-out text in nats a token, if there is such text.
    pub val_loss: Option<f64>,
    /// The same in bits a byte of text.
    pub bits_per_byte: Option<f64>,
    /// Share of right answers of a task at the last validation of this session.
    pub accuracy: Option<f64>,
    /// The directory.
    pub dir: PathBuf,
}

/// Losses of one step.
#[derive(Debug, Clone, Copy)]
struct Step {
    loss: f64,
    grad_norm: f64,
    tokens: u64,
}

/// A step that was asked for.
struct Asked {
    /// Its number, from 1.
    step: u64,
    lr: f64,
    began: Instant,
    work: Work,
}

enum Work {
    /// The processor has done it.
    Done(Step),
    /// A GPU may still be at it. The last batch is kept to say what went wrong; tokens and parts are those of all ranks.
    Pending { pending: Pending, tokens: u64, last: Option<Batch>, parts: u64 },
}

impl Asked {
    fn is_ready(&self) -> bool {
        matches!(self.work, Work::Done(_))
    }
}

/// What was logged last.
struct Log {
    since: Instant,
    tokens: u64,
    wrote: bool,
    loss: f64,
    accuracy: Option<f64>,
}

impl Trainer {
    /// Starts a run in the config's directory, or goes on with the one that is there.
    ///
    /// # Errors
    /// If text, tokenizer or settings do not fit; if the directory holds a run and `resume` is false; if it holds none
    /// and `resume` is true, or one of other settings.
    pub fn new(
        config: TrainConfig,
        resume: bool,
        device: Device,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        Self::start(config, resume, device, None, tokenising)
    }

    /// [`new`](Self::new) as one of several ranks, each with a GPU of its own, or on processors. The batch is that of one
    /// rank. Rank 0 alone has the directory, validates and reports.
    ///
    /// # Errors
    /// As [`new`](Self::new); if a rank is lost, or ranks do not fit together.
    pub fn parallel(
        config: TrainConfig,
        resume: bool,
        device: Device,
        ranks: Arc<Group>,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        let started = Self::start(config, resume, device, Some(ranks.clone()), tokenising);
        started.map_err(|error| blamed(Some(&ranks), error))
    }

    fn start(
        config: TrainConfig,
        resume: bool,
        device: Device,
        ranks: Option<Arc<Group>>,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        let dir = config.output.dir.clone();
        let first = ranks.as_ref().is_none_or(|ranks| ranks.is_first());
        if let Some(ranks) = &ranks {
            if config.data.mode == Mode::Streams {
                return Err(Error::Argument {
                    argument: "data.mode",
                    wanted: "\"windows\" on several GPUs".into(),
                    got: "\"streams\", whose states are those of one".into(),
                });
            }
            ranks.keeps_in(dir.clone());
        }
        let from = if first { prepare_directory(&dir, &config, resume)? } else { None };
        let task = tasks::open(&config.task)?;
        let Data { tokenizer, feed, train_tokens, held_out, notices } = match &task {
            None => reads::text(&config, ranks.as_deref(), tokenising)?,
            Some(task) => reads::made(task, &config)?,
        };
        let held_out = held_out.filter(|_| first);
        let (train, data) = (&config.train, &config.data);

        let (model, from) = match from {
            Some(from) => (LanguageModel::open(&from)?, Some(from)),
            None => {
                let resolved = match (&tokenizer, &task) {
                    (Some(tokenizer), _) => config.model.resolve(tokenizer),
                    (None, Some(task)) => config.model.resolve_for(task.vocab_size()),
                    (None, None) => unreachable!("text has a tokenizer"),
                };
                let resolved = resolved.map_err(elapid::Error::from)?;
                (LanguageModel::new(resolved, train.seed)?, None)
            }
        };
        let mut model = match device {
            Device::Cpu => model,
            Device::Cuda(_) => model.to_train(device, train.dtype.on(device))?,
        };
        let options = optim::Options {
            beta1: train.beta1 as f32,
            beta2: train.beta2 as f32,
            eps: train.eps as f32,
            weight_decay: train.weight_decay as f32,
            decay_all: train.decay_all,
            clip: train.clip as f32,
        };
        let mut optimiser = AdamW::new(model.params(), options)?;
        let start = Position { step: 0, tokens: 0, seconds: 0.0, best: None, stale: 0, accurate: 0 };
        let (mut position, carried) = match &from {
            Some(from) => resume::load(from, &model, &mut optimiser)?,
            None => (start, None),
        };
        let mut communicator = None;
        if let Some(ranks) = &ranks {
            start::check(ranks, &config, train_tokens, device)?;
            communicator = device.gpu().map(|gpu| start::connect(ranks, gpu)).transpose()?;
            start::share(ranks, communicator.as_deref(), &mut model, &mut optimiser, &mut position)?;
        }
        let grads = ParamGrads::of(model.params())?;
        let carries = matches!(feed, Feed::Streams(_));
        let mut cuda = None;
        if let Some(gpu) = device.gpu() {
            let length = if let Feed::Task(sequences, _) = &feed { sequences.positions() } else { data.length };
            let (shape, parts) = ((train.batch, length), train.accumulate.max(1));
            let mut step =
                CudaStep::new(gpu, &model, shape, data.pack, carries, parts)?.smoothed(train.label_smoothing as f32);
            if let Some(state) = &carried {
                step.set_state(state)?;
            }
            if let Some(communicator) = communicator {
                step.reduce_by(Reducer::new(communicator, model.params())?);
            }
            cuda = Some(step);
        }
        let mut metrics = None;
        if first {
            config.save(&dir)?;
            metrics = Some(metrics::Writer::open(&dir.join("metrics.jsonl"), position.step)?);
        }
        let schedule = train.lr_schedule()?;
        Ok(Self {
            config,
            tokenizer,
            schedule,
            feed: Arc::new(feed),
            train_tokens,
            held_out,
            model,
            optimiser,
            grads,
            cuda,
            ranks,
            carried,
            position,
            heard: Instant::now(),
            metrics,
            notices,
        })
    }

    /// The model as it is now.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// The tokenizer of the text; none of a task.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Every setting of the run.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.position.step
    }

    /// Tokens of training text; 0 of a task, which has no end.
    pub fn train_tokens(&self) -> u64 {
        self.train_tokens
    }

    /// Tokens of held-out text.
    pub fn held_out_tokens(&self) -> u64 {
        match &self.held_out {
            Some(HeldOut::Text { batches, .. }) => batches.tokens(),
            _ => 0,
        }
    }

    /// What the user should know of the text.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Trains until the last step, or until `stop` is set: then what is done is saved, and can be resumed.
    ///
    /// # Errors
    /// If a file cannot be written, or a number is not finite: the error has the step and the layer, and the last
    /// checkpoint stays.
    pub fn run(&mut self, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        self.run_until(self.config.train.steps, progress, stop)
    }

    /// [`run`](Self::run), to step `last` at most: the rest can be done later.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_until(&mut self, last: u64, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        self.run_steps(last, progress, stop).map_err(|error| blamed(self.ranks.as_deref(), error))
    }

    fn run_steps(&mut self, last: u64, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        let settings = self.config.train.clone();
        let mut stopped = Stopped::Finished;
        let mut log = Log { since: Instant::now(), tokens: 0, wrote: false, loss: f64::NAN, accuracy: None };
        let mut asked: VecDeque<Asked> = VecDeque::new();
        let mut batches = self.batches();
        while self.position.step < settings.steps {
            if self.stops(stop.load(Ordering::Relaxed))? || self.position.step >= last {
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
        if log.wrote && self.metrics.is_some() {
            self.draw()?;
        }
        let bits = self.position.best.and_then(|best| self.held_out.as_ref()?.bits_per_byte(best));
        Ok(Outcome {
            stopped,
            step: self.position.step,
            tokens: self.position.tokens,
            seconds: self.position.seconds,
            loss: log.loss,
            val_loss: self.position.best,
            bits_per_byte: bits,
            accuracy: log.accuracy,
            dir: self.config.output.dir.clone(),
        })
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

    /// Forward and backward over `accumulate` batches, then one step of the optimiser: done on the processor, asked for
    /// on a GPU.
    fn ask(&mut self, lr: f64, batches: &mut impl Iterator<Item = Batch>) -> Result<Asked> {
        let began = Instant::now();
        let step = self.position.step + 1;
        let size = self.place().1;
        let batches = batches.take(self.parts() as usize);
        // Batches of all ranks make one step.
        let parts = self.parts() * size;
        if self.cuda.is_none() {
            let batches: Vec<Batch> = batches.collect();
            let done = self.train_step(&batches, lr as f32)?;
            return Ok(Asked { step, lr, began, work: Work::Done(done) });
        }
        let (mut tokens, mut last) = (0, None);
        let Some(cuda) = &mut self.cuda else { unreachable!("it was just there") };
        cuda.begin(&mut self.grads)?;
        for batch in batches {
            let share = 1.0 / parts as f32;
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
    fn results(&self, asked: &Asked) -> Result<Step> {
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
            tape.backward(&loss.mean, 1.0 / parts as f32, &mut self.grads)?;
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
    fn batches(&self) -> impl Iterator<Item = Batch> + use<> {
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
    fn place(&self) -> (u64, u64) {
        self.ranks.as_ref().map_or((0, 1), |ranks| (ranks.world().rank as u64, ranks.size() as u64))
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

    /// The loss on what is held out, in nats; a new best model is kept in the run's directory.
    fn validate(&mut self) -> Result<Option<Validation>> {
        let validation = match &self.held_out {
            None => return Ok(None),
            Some(held_out @ HeldOut::Text { batches, carries, .. }) => {
                let loss = self.loss_of(batches, *carries)?;
                Validation { loss, bits_per_byte: held_out.bits_per_byte(loss), accuracy: None }
            }
            Some(HeldOut::Task(lengths, count)) => {
                let first = self.position.step.wrapping_mul(*count);
                let numbers = first..first.saturating_add(*count);
                let reader = Reader::on(self.model.device());
                let score = lengths.iter().try_fold(Score::default(), |sum, sequences| {
                    Ok::<_, Error>(sum + reader.score(&self.model, sequences, numbers.clone(), |_| ())?)
                })?;
                let loss = score.smoothed_loss(self.config.train.label_smoothing);
                Validation { loss, bits_per_byte: None, accuracy: Some(score.accuracy()) }
            }
        };
        if let Some(accuracy) = validation.accuracy {
            let reached = accuracy >= self.config.train.stop_at_accuracy;
            self.position.accurate = if reached { self.position.accurate + 1 } else { 0 };
        }
        if self.position.best.is_none_or(|best| validation.loss < best) {
            (self.position.best, self.position.stale) = (Some(validation.loss), 0);
            self.save_model()?;
        } else {
            self.position.stale += 1;
        }
        Ok(Some(validation))
    }

    /// Nats a token of held-out text.
    fn loss_of(&self, batches: &Sequential, carries: bool) -> Result<f64> {
        let mut summary = Summary::default();
        let mut carried: Option<State> = None;
        for batch in (0..batches.len()).filter_map(|i| batches.batch(i)) {
            summary.tokens += batch.predictions();
            let layout = Layout { resets: batch.resets.map(Into::into), ..Layout::new(batch.b, batch.l) };
            let state = match carried.take() {
                Some(state) => state,
                None => self.model.zero_state(batch.b)?,
            };
            let cx = self.model.inference(layout);
            let (loss, next) = self.model.loss(&cx, &batch.tokens, &batch.targets, &state, false)?;
            summary.nats += loss.nll.to_vec()?.iter().map(|&nll| f64::from(nll)).sum::<f64>();
            carried = carries.then_some(next);
        }
        Ok(summary.loss())
    }

    /// Writes the model for use, with its tokenizer if it has one.
    fn save_model(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        self.model.save(dir, &SaveOptions::default())?;
        Ok(self.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save(dir))?)
    }

    /// Writes what it takes to go on; without held-out text, the model for use as well.
    fn save(&mut self) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.check())?;
        let dir = &self.config.output.dir;
        let streams = matches!(*self.feed, Feed::Streams(_));
        let carried = self.cuda.as_ref().filter(|_| streams).map(CudaStep::state).or(self.carried.as_ref());
        resume::save(dir, &self.position, &self.model, &self.optimiser, carried)?;
        if self.position.best.is_none() { self.save_model() } else { Ok(()) }
    }

    fn draw(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        let name = dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy());
        let millions = self.model.params().count() as f64 / 1e6;
        plot::plot_run(dir, &format!("{name}: {millions:.1} M parameters"))
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

/// The lost rank that an error of the device came of, or the error.
fn blamed(ranks: Option<&Group>, error: Error) -> Error {
    match (ranks, &error) {
        (Some(ranks), Error::Elapid(inner)) if matches!(**inner, elapid::Error::Cuda(_)) => ranks.blame(error),
        _ => error,
    }
}

/// Makes sure that the directory is free, or holds a run of these settings to go on with; where that is then.
fn prepare_directory(dir: &Path, config: &TrainConfig, resume: bool) -> Result<Option<PathBuf>> {
    let refused = |reason: String| Error::Resume { path: dir.to_owned(), reason };
    match (resume, resume::latest(dir)) {
        (false, None) => {
            std::fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
            Ok(None)
        }
        (false, Some((step, _))) => Err(refused(format!(
            "it holds a run at step {step}; go on with it by --resume, or choose another directory by --output"
        ))),
        (true, None) => Err(refused("no run with a checkpoint is there; start one without --resume".into())),
        (true, Some((_, path))) => {
            let file = dir.join("config.toml");
            let old = TrainConfig::load(&file)?;
            let what = |config: &TrainConfig| {
                (config.model.clone(), config.data.clone(), config.task.clone(), config.train.seed)
            };
            if what(&old) != what(config) {
                let file = file.display();
                return Err(refused(format!(
                    "its [model], [data], [task] or train.seed differ from {file}; go on with that file's settings \
                     (only [train] may change), or choose another directory by --output"
                )));
            }
            Ok(Some(path))
        }
    }
}
