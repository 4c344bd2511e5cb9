//! How a run begins: the directory, what is read, the model, the optimiser, the other ranks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use elapid::config::ModelConfig;
use elapid::memory::Needs;
use elapid::params::ParamGrads;
use elapid::tokenizer::Tokenizer;
use elapid::{Device, LanguageModel, State};
use elapid_kernels::cuda::nccl::Communicator;

use super::Trainer;
use super::reads::{self, Data, Feed};
use crate::config::{Mode, TrainConfig, TrainSettings};
use crate::cuda_step::CudaStep;
use crate::optim::{self, AdamW};
use crate::parallel::{Group, Reducer, start};
use crate::resume::{self, Position};
use crate::tasks::{self, Task};
use crate::{Error, Result, data, metrics};

impl Trainer {
    pub(super) fn start(
        config: TrainConfig,
        resume: bool,
        device: Device,
        ranks: Option<Arc<Group>>,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        let dir = config.output.dir.clone();
        let first = ranks.as_ref().is_none_or(|ranks| ranks.is_first());
        if let Some(ranks) = &ranks {
            check_mode(&config)?;
            ranks.keeps_in(dir.clone());
        }
        let task = tasks::open(&config.task)?;
        // Before anything is read or made; with the vocabulary of the text it is looked at again.
        needs(&config, config.model.with_any_vocabulary(), task.as_deref(), device)?.check_on(device)?;
        let from = if first { prepare_directory(&dir, &config, resume)? } else { None };
        let Data { tokenizer, feed, train_tokens, held_out, notices } = match &task {
            None => reads::text(&config, ranks.as_deref(), tokenising)?,
            Some(task) => reads::made(task, &config)?,
        };

        let model = match &from {
            Some(from) => LanguageModel::open(from)?,
            None => {
                let resolved = resolve(&config, tokenizer.as_ref(), task.as_deref())?;
                needs(&config, resolved.clone(), task.as_deref(), device)?.check_on(device)?;
                LanguageModel::new(resolved, config.train.seed)?
            }
        };
        let mut model = match device {
            Device::Cpu => model,
            Device::Cuda(_) => model.to_train(device, config.train.dtype.on(device))?,
        };
        let mut optimiser = AdamW::new(model.params(), optimiser_options(&config.train))?;
        let (mut position, carried) = match &from {
            Some(from) => resume::load(from, &model, &mut optimiser)?,
            None => (Position::default(), None),
        };
        let mut communicator = None;
        if let Some(ranks) = &ranks {
            start::check(ranks, &config, train_tokens, &model, device)?;
            communicator = device.gpu().map(|gpu| start::connect(ranks, gpu)).transpose()?;
            start::share(ranks, communicator.as_deref(), &mut model, &mut optimiser, &mut position)?;
        }
        let grads = ParamGrads::of(model.params())?;
        let cuda = cuda_step(&config, device, &model, &feed, carried.as_ref(), communicator)?;
        let mut metrics = None;
        if first {
            config.save(&dir)?;
            metrics = Some(metrics::Writer::open(&dir.join("metrics.jsonl"), position.step)?);
        }
        let schedule = config.train.lr_schedule()?;
        Ok(Self {
            config,
            tokenizer,
            schedule,
            feed: Arc::new(feed),
            train_tokens,
            held_out: held_out.filter(|_| first),
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
}

/// Streams are those of one rank.
fn check_mode(config: &TrainConfig) -> Result<()> {
    match config.data.mode {
        Mode::Windows => Ok(()),
        Mode::Streams => Err(Error::Argument {
            argument: "data.mode",
            wanted: "\"windows\" on several GPUs".into(),
            got: "\"streams\", whose states are those of one".into(),
        }),
    }
}

/// What a run takes of the memory of its device.
fn needs(config: &TrainConfig, model: ModelConfig, task: Option<&dyn Task>, device: Device) -> Result<Needs> {
    let (train, data) = (&config.train, &config.data);
    let length = task.and_then(|task| task.positions(data.length).ok()).unwrap_or(data.length);
    let lower = "train.batch or data.length (--batch, --length), or set train.checkpoint_blocks";
    let parameters = Needs::of_parameters(&model);
    let model = LanguageModel::without_values(model)?;
    let (dtype, recompute) = (train.dtype.on(device), train.checkpoint_blocks);
    Ok(parameters.with(model.needs_of_training(train.batch, length, dtype, recompute, lower)))
}

/// The model's configuration with the vocabulary of the tokenizer, or of the task.
fn resolve(config: &TrainConfig, tokenizer: Option<&Tokenizer>, task: Option<&dyn Task>) -> Result<ModelConfig> {
    let resolved = match (tokenizer, task) {
        (Some(tokenizer), _) => config.model.resolve(tokenizer),
        (None, Some(task)) => config.model.resolve_for(task.vocab_size()),
        (None, None) => unreachable!("text has a tokenizer"),
    };
    Ok(resolved.map_err(elapid::Error::from)?)
}

fn optimiser_options(train: &TrainSettings) -> optim::Options {
    optim::Options {
        beta1: train.beta1 as f32,
        beta2: train.beta2 as f32,
        eps: train.eps as f32,
        weight_decay: train.weight_decay as f32,
        decay_all: train.decay_all,
        clip: train.clip as f32,
    }
}

/// What a GPU trains with; none on the CPU.
fn cuda_step(
    config: &TrainConfig,
    device: Device,
    model: &LanguageModel,
    feed: &Feed,
    carried: Option<&State>,
    communicator: Option<Arc<Communicator>>,
) -> Result<Option<CudaStep>> {
    let Some(gpu) = device.gpu() else { return Ok(None) };
    let (train, data) = (&config.train, &config.data);
    let length = if let Feed::Task(sequences, _) = feed { sequences.positions() } else { data.length };
    let (shape, parts) = ((train.batch, length), train.accumulate.max(1));
    let carries = matches!(feed, Feed::Streams(_));
    let step = CudaStep::new(gpu, model, shape, data.pack, carries, parts)?;
    let mut step = step.smoothed(train.label_smoothing as f32);
    if let Some(state) = carried {
        step.set_state(state)?;
    }
    if let Some(communicator) = communicator {
        step.reduce_by(Reducer::new(communicator, model.params())?);
    }
    Ok(Some(step))
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
