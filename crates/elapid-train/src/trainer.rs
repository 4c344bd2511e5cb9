//! The training loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use elapid::autograd::Tape;
use elapid::checkpoint::SaveOptions;
use elapid::evaluate::{self, Summary};
use elapid::ops::Layout;
use elapid::params::ParamGrads;
use elapid::tokenizer::Tokenizer;
use elapid::{LanguageModel, State};

use crate::config::{Mode, TrainConfig};
use crate::data::{self, Batch, Corpus, Sequential, Streams, TokenStream, Windows};
use crate::metrics::{self, Record};
use crate::optim::{self, AdamW};
use crate::plot;
use crate::progress::{Progress, Status};
use crate::resume::{self, Position};
use crate::schedule::Schedule;
use crate::{Error, Result};

/// Positions of held-out text that are read at a time: what bounds the memory of a validation.
const POSITIONS: usize = 4096;

/// A run: what is trained, how far it has come, and the directory that it leaves.
///
/// The directory holds `config.toml` (every setting), the model of the lowest validation loss in the Hugging Face
/// layout, `metrics.jsonl`, `loss.svg`, `loss.png`, and `resume/`.
pub struct Trainer {
    config: TrainConfig,
    tokenizer: Tokenizer,
    schedule: Schedule,
    feed: Feed,
    train_tokens: u64,
    held_out: Option<HeldOut>,
    model: LanguageModel,
    optimiser: AdamW,
    grads: ParamGrads,
    /// The state at the end of the last step, of streams.
    carried: Option<State>,
    position: Position,
    metrics: metrics::Writer,
    notices: Vec<String>,
}

/// Where batches come from.
enum Feed {
    Windows(Windows),
    Streams(Streams),
}

impl Feed {
    fn batch(&self, index: u64) -> Batch {
        match self {
            Feed::Windows(windows) => windows.batch(index),
            Feed::Streams(streams) => streams.batch(index),
        }
    }
}

/// The text that training never sees.
struct HeldOut {
    batches: Sequential,
    /// Whether the state goes on from batch to batch.
    carries: bool,
    bytes_per_token: f64,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All steps are done.
    Finished,
    /// The validation loss stopped falling; see `train.patience`.
    Patience,
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
    /// The directory.
    pub dir: PathBuf,
}

/// Losses of one step.
struct Step {
    loss: f64,
    grad_norm: f64,
    tokens: u64,
}

impl Trainer {
    /// Starts a run in the config's directory, or goes on with the one that is there.
    ///
    /// # Errors
    /// If text, tokenizer or settings do not fit; if the directory holds a run and `resume` is false; if it holds none
    /// and `resume` is true, or one of other settings.
    pub fn new(config: TrainConfig, resume: bool, tokenising: &mut dyn FnMut(data::Progress)) -> Result<Self> {
        let dir = config.output.dir.clone();
        let from = prepare_directory(&dir, &config, resume)?;
        let tokenizer = config.data.open_tokenizer()?;
        let options = data::Options {
            cache: config.data.cache_dir(),
            separator: config.data.separator,
            progress: Some(tokenising),
        };
        let corpus = Corpus::prepare(&config.data.train_sources(), &config.data.held_out(), &tokenizer, options)?;
        let (train, data) = (&config.train, &config.data);
        let train_tokens = corpus.train.len();
        let feed = match data.mode {
            Mode::Windows => {
                Feed::Windows(Windows::new(corpus.train, train.batch, data.length, train.seed, data.pack)?)
            }
            Mode::Streams => Feed::Streams(Streams::new(corpus.train, train.batch, data.length, data.pack)?),
        };
        let held_out = corpus.val.map(|val| held_out(&val, &config, &tokenizer)).transpose()?;

        let (model, from) = match from {
            Some(from) => (LanguageModel::open(&from)?, Some(from)),
            None => {
                let resolved = config.model.resolve(&tokenizer).map_err(elapid::Error::from)?;
                (LanguageModel::new(resolved, train.seed)?, None)
            }
        };
        let options = optim::Options {
            beta1: train.beta1 as f32,
            beta2: train.beta2 as f32,
            eps: train.eps as f32,
            weight_decay: train.weight_decay as f32,
            decay_all: train.decay_all,
            clip: train.clip as f32,
        };
        let mut optimiser = AdamW::new(model.params(), options);
        let start = Position { step: 0, tokens: 0, seconds: 0.0, best: None, stale: 0 };
        let (position, carried) = match &from {
            Some(from) => resume::load(from, &model, &mut optimiser)?,
            None => (start, None),
        };
        config.save(&dir)?;
        let metrics = metrics::Writer::open(&dir.join("metrics.jsonl"), position.step)?;
        let (schedule, grads) = (train.lr_schedule()?, ParamGrads::default());
        let notices = corpus.notices;
        Ok(Self {
            config,
            tokenizer,
            schedule,
            feed,
            train_tokens,
            held_out,
            model,
            optimiser,
            grads,
            carried,
            position,
            metrics,
            notices,
        })
    }

    /// The model as it is now.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// The tokenizer of the text.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Every setting of the run.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.position.step
    }

    /// Tokens of training text.
    pub fn train_tokens(&self) -> u64 {
        self.train_tokens
    }

    /// Tokens of held-out text.
    pub fn held_out_tokens(&self) -> u64 {
        self.held_out.as_ref().map_or(0, |held_out| held_out.batches.tokens())
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
        let settings = self.config.train.clone();
        let mut stopped = Stopped::Finished;
        let mut last_loss = f64::NAN;
        let (mut since_log, mut logged) = ((Instant::now(), 0), false);
        while self.position.step < settings.steps {
            if stop.load(Ordering::Relaxed) || self.position.step >= last {
                stopped = Stopped::Interrupted;
                break;
            }
            let began = Instant::now();
            let lr = self.schedule.lr(self.position.step);
            let step = self.train_step(lr as f32)?;
            self.position.step += 1;
            self.position.tokens += step.tokens;
            self.position.seconds += began.elapsed().as_secs_f64();
            last_loss = step.loss;
            since_log.1 += step.tokens;

            let n = self.position.step;
            let every = |interval: u64| interval > 0 && n.is_multiple_of(interval);
            let end = n == settings.steps;
            let rate = since_log.1 as f64 / since_log.0.elapsed().as_secs_f64().max(1e-9);
            let validated = if every(settings.eval_every) || end { self.validate()? } else { None };
            let status =
                Status { step: n, loss: step.loss, val_loss: validated.map(|(loss, _)| loss), tokens_per_second: rate };
            let log = every(settings.log_every) || end || n == 1;
            progress.report(&status, log);
            if log || validated.is_some() {
                self.metrics.write(&Record {
                    step: n,
                    tokens: self.position.tokens,
                    seconds: self.position.seconds,
                    loss: step.loss,
                    lr,
                    grad_norm: step.grad_norm,
                    tokens_per_second: rate,
                    val_loss: validated.map(|(loss, _)| loss),
                    bits_per_byte: validated.map(|(_, bits)| bits),
                })?;
                (since_log, logged) = ((Instant::now(), 0), true);
            }
            if settings.patience > 0 && self.position.stale >= settings.patience {
                stopped = Stopped::Patience;
                break;
            }
            if every(settings.save_every) {
                self.save()?;
            }
        }
        self.save()?;
        if logged {
            self.draw()?;
        }
        let bits = self.position.best.and_then(|best| self.held_out.as_ref().map(|h| h.bits_per_byte(best)));
        Ok(Outcome {
            stopped,
            step: self.position.step,
            tokens: self.position.tokens,
            seconds: self.position.seconds,
            loss: last_loss,
            val_loss: self.position.best,
            bits_per_byte: bits,
            dir: self.config.output.dir.clone(),
        })
    }

    /// Forward and backward over `accumulate` batches, then one step of the optimiser.
    fn train_step(&mut self, lr: f32) -> Result<Step> {
        let parts = self.config.train.accumulate.max(1) as u64;
        self.grads.zero();
        let (mut loss_sum, mut tokens) = (0.0, 0);
        for part in 0..parts {
            let batch = self.feed.batch(self.position.step * parts + part);
            let layout = Layout { resets: batch.resets.map(Into::into), ..Layout::new(batch.b, batch.l) };
            let state = match (&self.feed, self.carried.take()) {
                (Feed::Streams(_), Some(state)) => state,
                _ => self.model.zero_state(batch.b),
            };
            let tape = Arc::new(Tape::new());
            let cx = self.model.training(&tape, layout.clone());
            let checkpointed = self.config.train.checkpoint_blocks;
            let (loss, next) = self.model.loss(&cx, &batch.tokens, &batch.targets, &state, checkpointed)?;
            let value = f64::from(loss.value());
            if !value.is_finite() {
                let found = self.model.first_non_finite(&layout, &batch.tokens, &state)?;
                let place = found.unwrap_or_else(|| "the output projection".to_owned());
                return Err(self.diverged(format!("the loss is {value}; the first number not finite is in {place}")));
            }
            tape.backward(&loss.mean, 1.0 / parts as f32, &mut self.grads)?;
            self.carried = matches!(self.feed, Feed::Streams(_)).then(|| next.detach());
            loss_sum += value / parts as f64;
            tokens += (batch.b * batch.l) as u64;
        }
        let stepped = self.optimiser.step(self.model.params_mut(), &self.grads, lr);
        let grad_norm = stepped.map_err(|error| self.diverged(error.to_string()))?;
        Ok(Step { loss: loss_sum, grad_norm, tokens })
    }

    fn diverged(&self, what: String) -> Error {
        let kept = match resume::latest(&self.config.output.dir) {
            Some((step, path)) => format!("The checkpoint of step {step} is in {}", path.display()),
            None => "No checkpoint had been written yet (train.save_every)".to_owned(),
        };
        Error::Diverged { step: self.position.step + 1, what, kept }
    }

    /// Loss in nats a token and bits a byte on held-out text; a new best model is kept in the run's directory.
    fn validate(&mut self) -> Result<Option<(f64, f64)>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let mut summary = Summary::default();
        let mut carried: Option<State> = None;
        for batch in (0..held_out.batches.len()).filter_map(|i| held_out.batches.batch(i)) {
            summary.tokens += batch.predictions();
            let layout = Layout { resets: batch.resets.map(Into::into), ..Layout::new(batch.b, batch.l) };
            let state = carried.take().unwrap_or_else(|| self.model.zero_state(batch.b));
            let cx = self.model.inference(layout);
            let (loss, next) = self.model.loss(&cx, &batch.tokens, &batch.targets, &state, false)?;
            summary.nats += loss.nll.as_slice().iter().map(|&nll| f64::from(nll)).sum::<f64>();
            carried = held_out.carries.then_some(next);
        }
        let loss = summary.loss();
        let bits = held_out.bits_per_byte(loss);
        if self.position.best.is_none_or(|best| loss < best) {
            (self.position.best, self.position.stale) = (Some(loss), 0);
            self.save_model()?;
        } else {
            self.position.stale += 1;
        }
        Ok(Some((loss, bits)))
    }

    /// Writes the model for use, with its tokenizer.
    fn save_model(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        self.model.save(dir, &SaveOptions::default())?;
        Ok(self.tokenizer.save(dir)?)
    }

    /// Writes what it takes to go on; without held-out text, the model for use as well.
    fn save(&mut self) -> Result<()> {
        let dir = &self.config.output.dir;
        resume::save(dir, &self.position, &self.model, &self.optimiser, self.carried.as_ref())?;
        if self.position.best.is_none() { self.save_model() } else { Ok(()) }
    }

    fn draw(&self) -> Result<()> {
        let dir = &self.config.output.dir;
        let name = dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy());
        let millions = self.model.params().count() as f64 / 1e6;
        plot::plot_run(dir, &format!("{name}: {millions:.1} M parameters"))
    }
}

impl HeldOut {
    fn bits_per_byte(&self, nats_per_token: f64) -> f64 {
        nats_per_token / self.bytes_per_token / std::f64::consts::LN_2
    }
}

/// What validation reads: windows as training has them, or in order with the state carried; packed as training is.
fn held_out(val: &TokenStream, config: &TrainConfig, tokenizer: &Tokenizer) -> Result<HeldOut> {
    let (b, l) = (config.train.batch, config.data.length);
    let count = match config.train.eval_batches {
        0 => val.len(),
        batches => val.len().min(batches * (b * l) as u64 + 1),
    };
    let (val, _) = val.split(count);
    let bytes_per_token = val.text_bytes(tokenizer)? as f64 / val.len().max(1) as f64;
    let carries = config.data.mode == Mode::Streams;
    let (b, l) = if carries { (1, l.min(evaluate::CHUNK)) } else { ((POSITIONS / l).max(1), l) };
    Ok(HeldOut { batches: Sequential::new(val, b, l, config.data.pack)?, carries, bytes_per_token })
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
            if (&old.model, &old.data) != (&config.model, &config.data) || old.train.seed != config.train.seed {
                let file = file.display();
                return Err(refused(format!(
                    "its [model], [data] or train.seed differ from {file}; go on with that file's settings (only \
                     [train] may change), or choose another directory by --output"
                )));
            }
            Ok(Some(path))
        }
    }
}
