//! A training run: [`start`] opens what it needs, [`run`] is its loop, [`step`] one step of it, [`validate`] measures on
//! what is held out. What it reads is in [`reads`].

mod from;
mod reads;
mod run;
mod start;
mod step;
mod validate;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use elapid::params::ParamGrads;
use elapid::tokenizer::Tokenizer;
use elapid::{Device, LanguageModel, State};

use crate::config::TrainConfig;
use crate::cuda_step::CudaStep;
use crate::optim::AdamW;
use crate::parallel::Group;
use crate::progress::Progress;
use crate::resume::{Identity, Position};
use crate::run_dir::RunDir;
pub use crate::run_dir::Start;
use crate::schedule::Schedule;
use crate::{Error, Result, data, metrics};
use reads::{Feed, HeldOut};

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
    /// The state at the end of the last step, of streams on the CPU.
    carried: Option<State>,
    position: Position,
    /// What a checkpoint must have in common with the run.
    identity: Identity,
    /// The step of the newest checkpoint, which need not be saved again.
    saved: Option<u64>,
    /// The model in the directory is the best by another measure: it stays until the first validation.
    keeps_old_best: bool,
    /// When the results of the last step came.
    heard: Instant,
    /// Held until the run ends, at rank 0.
    run_dir: Option<RunDir>,
    /// Where records go, at rank 0.
    metrics: Option<metrics::Writer>,
    notices: Vec<String>,
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

impl Trainer {
    /// Starts a run in the config's directory, or goes on with the one that is there. The directory is locked as long as
    /// the trainer lives.
    ///
    /// # Errors
    /// If text, tokenizer or settings do not fit; if another run is using the directory; if it holds files that a new run
    /// would replace; if it holds no run to go on with, or one of other settings or other data.
    pub fn new(
        config: TrainConfig,
        start: Start,
        device: Device,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        Self::start(config, start, device, None, tokenising)
    }

    /// [`new`](Self::new) as one of several ranks, each with a GPU of its own, or on processors. The batch is that of one
    /// rank. Rank 0 alone has the directory, validates and reports.
    ///
    /// # Errors
    /// As [`new`](Self::new); if a rank is lost, or ranks do not fit together.
    pub fn parallel(
        config: TrainConfig,
        start: Start,
        device: Device,
        ranks: Arc<Group>,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        let started = Self::start(config, start, device, Some(ranks.clone()), tokenising);
        started.map_err(|error| blamed(Some(&ranks), error))
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

    /// What the user should know of the text, the directory, and the checkpoint.
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
}

/// The lost rank that an error of the device came of, or the error.
fn blamed(ranks: Option<&Group>, error: Error) -> Error {
    match (ranks, &error) {
        (Some(ranks), Error::Elapid(inner)) if matches!(**inner, elapid::Error::Cuda(_)) => ranks.cause_of(error),
        _ => error,
    }
}
