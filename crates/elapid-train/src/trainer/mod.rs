//! A training run: [`start`] opens what it needs, [`run`] is its loop, [`steppers`] take its steps, [`validate`] keeps the
//! best model. An [`Objective`] defines what it is trained for; [`reads`] makes the objectives of a config.

mod from;
mod reads;
mod run;
mod start;
mod steppers;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use elapid::models::Model;
use elapid::tokenizer::Tokenizer;
use elapid::{Device, LanguageModel};

use crate::config::TrainConfig;
use crate::objectives::Objective;
use crate::parallel::Group;
use crate::progress::Progress;
use crate::resume::{Identity, Position};
use crate::run_dir::RunDir;
pub use crate::run_dir::Start;
use crate::schedule::Schedule;
use crate::{Error, Result, data, metrics};
use steppers::{Learner, Stepper};

/// A run: its model, its progress, and its directory.
///
/// The directory holds `config.toml` (every setting), the model of the lowest validation loss in the Hugging Face
/// layout, `metrics.jsonl`, `loss.svg`, `loss.png`, and `resume/`.
pub struct Trainer<M: Model = LanguageModel> {
    config: TrainConfig,
    /// The tokenizer of the text, if the run trains on text.
    tokenizer: Option<Tokenizer>,
    schedule: Schedule,
    train_tokens: u64,
    held_out_tokens: u64,
    /// The training data, for the model's card.
    what: String,
    learner: Learner<M>,
    stepper: Box<dyn Stepper<M>>,
    position: Position,
    /// What must be equal in a checkpoint and the run.
    identity: Identity,
    /// The step of the newest checkpoint, which need not be saved again.
    saved: Option<u64>,
    /// Whether the model in the directory is the best by another measure; it stays until the first validation.
    keeps_old_best: bool,
    /// When the results of the last step arrived.
    heard: Instant,
    /// Held until the run ends, on rank 0.
    run_dir: Option<RunDir>,
    /// The metrics file, on rank 0.
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
    /// It was asked to stop; it can be resumed.
    Interrupted,
}

/// The result of a run.
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
    /// Training loss of the last step; NaN if this session did none.
    pub loss: f64,
    /// Lowest held-out loss, if there is held-out data.
    pub val_loss: Option<f64>,
    /// Further figures of this session's last validation, and figures derived from the lowest loss.
    pub figures: BTreeMap<String, f64>,
    /// The directory.
    pub dir: PathBuf,
}

impl Outcome {
    /// A figure by its name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }
}

impl Trainer {
    /// Starts a run on text or a task, as the config says, in the config's directory, or resumes the one that is there. The
    /// directory is locked as long as the trainer lives.
    ///
    /// # Errors
    /// If text, tokenizer or settings do not fit; if another run is using the directory; if it holds files that a new run
    /// would replace; if it holds no run to resume, or one with other settings or data.
    pub fn new(
        config: TrainConfig,
        start: Start,
        device: Device,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        Self::of_config(config, start, device, None, tokenising)
    }

    /// [`new`](Self::new) as one of several ranks, each on its own GPU, or on CPUs. The batch is that of one rank. Only rank
    /// 0 has the directory, validates and reports.
    ///
    /// # Errors
    /// As [`new`](Self::new); if a rank is lost, or ranks do not match.
    pub fn parallel(
        config: TrainConfig,
        start: Start,
        device: Device,
        ranks: Arc<Group>,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        let started = Self::of_config(config, start, device, Some(ranks.clone()), tokenising);
        started.map_err(|error| blamed(Some(&ranks), error))
    }
}

impl<M: Model> Trainer<M> {
    /// Starts a run of another objective, or resumes the one that is there, alone or as one of several ranks. `[data]` and
    /// `[task]` of the config are ignored; the model is that of `[model]` with a vocabulary of `ids`.
    ///
    /// # Errors
    /// As [`new`](Trainer::new).
    pub fn with_objective(
        config: TrainConfig,
        start: Start,
        device: Device,
        ranks: Option<Arc<Group>>,
        objective: impl Objective<Model = M>,
        ids: usize,
    ) -> Result<Self> {
        let started = Self::of_objective(config, start, device, ranks.clone(), Arc::new(objective), ids);
        started.map_err(|error| blamed(ranks.as_deref(), error))
    }

    /// The model as it is now.
    pub fn model(&self) -> &M {
        &self.learner.model
    }

    /// The tokenizer of the text; none for a task.
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

    /// Tokens of training text; 0 for a task, which has no end.
    pub fn train_tokens(&self) -> u64 {
        self.train_tokens
    }

    /// Tokens of held-out text.
    pub fn held_out_tokens(&self) -> u64 {
        self.held_out_tokens
    }

    /// Notices for the user about the text, the directory, and the checkpoint.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Trains until the last step, or until `stop` is set; then the run is saved and can be resumed.
    ///
    /// # Errors
    /// If a file cannot be written, or a value is not finite: the error names the step and the layer, and the last
    /// checkpoint stays.
    pub fn run(&mut self, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        self.run_until(self.config.train.steps, progress, stop)
    }

    /// [`run`](Self::run) up to step `last`; the rest can be done later.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_until(&mut self, last: u64, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        self.run_steps(last, progress, stop).map_err(|error| blamed(self.learner.ranks.as_deref(), error))
    }
}

/// The lost rank that caused a device error, or the error itself.
fn blamed(ranks: Option<&Group>, error: Error) -> Error {
    match (ranks, &error) {
        (Some(ranks), Error::Elapid(inner)) if matches!(**inner, elapid::Error::Cuda(_)) => ranks.cause_of(error),
        _ => error,
    }
}
