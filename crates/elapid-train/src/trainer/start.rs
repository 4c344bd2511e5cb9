//! How a run begins: the directory, what is read, the model, the optimiser, the other ranks.

use std::sync::Arc;
use std::time::Instant;

use elapid::checkpoint::Checkpoint;
use elapid::config::ModelConfig;
use elapid::memory::Needs;
use elapid::params::ParamGrads;
use elapid::tokenizer::Tokenizer;
use elapid::{Device, LanguageModel, State};
use elapid_kernels::cuda::nccl::Communicator;

use super::reads::{self, Data, Feed};
use super::{Start, Trainer, from};
use crate::config::{DataConfig, Mode, TrainConfig, TrainSettings};
use crate::cuda_step::CudaStep;
use crate::optim::{self, AdamW};
use crate::parallel::{Group, Reducer, start};
use crate::resume::{self, Identity, Position};
use crate::run_dir::RunDir;
use crate::schedule::Warmup;
use crate::tasks::{self, Task};
use crate::{Error, Result, data, metrics};

impl Trainer {
    // Long: how a run begins, in the order that matters: what is refused comes before what is written.
    pub(super) fn start(
        mut config: TrainConfig,
        start: Start,
        device: Device,
        ranks: Option<Arc<Group>>,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        let first = ranks.as_ref().is_none_or(|ranks| ranks.is_first());
        if let Some(ranks) = &ranks {
            check_mode(&config)?;
            ranks.keeps_in(config.output.dir.clone());
        }
        config.train.warmup = Warmup::Steps(config.train.warmup.of(config.train.steps));
        let schedule = config.train.lr_schedule()?;
        let base = from::open(&mut config, start)?;
        let task = tasks::open(&config.task)?;
        // Before anything is read or made; with the vocabulary of the text it is looked at again.
        needs(&config, config.model.with_any_vocabulary(), task.as_deref(), device)?.check_on(device)?;
        let mut run_dir = first.then(|| claim(&config, start)).transpose()?;
        let Data { tokenizer, feed, train_tokens, held_out, fingerprint, mut notices } = match &task {
            None => reads::text(&config, ranks.as_deref(), tokenising)?,
            Some(task) => reads::made(task, &config)?,
        };
        let held_out = held_out.filter(|_| first);
        let measure = held_out.as_ref().map_or_else(String::new, |held_out| held_out.measure(&config));
        let identity = Identity { data: fingerprint, measure };

        let chosen = match run_dir.as_ref().filter(|_| start == Start::Resume) {
            Some(dir) => Some(resume::choose(dir.path(), &config, &identity)?),
            None => None,
        };
        let (model, chosen) = match chosen {
            Some((model, chosen)) => (model, Some(chosen)),
            None => (first_model(&config, base.as_ref(), tokenizer.as_ref(), task.as_deref(), device)?, None),
        };
        let mut model = on_device(model, &config, device, ranks.as_deref())?;
        let mut optimiser = AdamW::new(model.params(), optimiser_options(&config.train))?;
        let mut position = chosen.as_ref().map_or_else(Position::default, |chosen| chosen.position);
        let saved = chosen.as_ref().map(|chosen| chosen.position.step);
        let keeps_old_best = chosen.as_ref().is_some_and(|chosen| chosen.new_measure);
        notices.extend(base.iter().flat_map(Checkpoint::warnings).cloned());
        notices.extend(chosen.iter().flat_map(|chosen| chosen.notices.iter().cloned()));
        let restored = chosen.map(|chosen| chosen.restore(&model, &mut optimiser, config.train.batch));
        let carried = restored.transpose()?.flatten();
        let mut communicator = None;
        if let Some(ranks) = &ranks {
            start::check(ranks, &config, train_tokens, &model, device)?;
            communicator = device.gpu().map(|gpu| start::connect(ranks, gpu)).transpose()?;
            start::share(ranks, communicator.as_deref(), &mut model, &mut optimiser, &mut position)?;
        }
        let grads = ParamGrads::of(model.params())?;
        let cuda = cuda_step(&config, device, &model, &feed, carried.as_ref(), communicator)?;
        let mut metrics = None;
        if let Some(dir) = &mut run_dir {
            match start {
                Start::Resume => {
                    dir.clean()?;
                    // As the run that was killed would have done.
                    resume::prune(dir.path(), position.step)?;
                }
                Start::New | Start::Overwrite => dir.begin(start)?,
            }
            notices.append(&mut dir.notices);
            dir.save_config(&config)?;
            metrics = Some(metrics::Writer::open(&dir.path().join("metrics.jsonl"), position.step)?);
        }
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
            identity,
            saved,
            keeps_old_best,
            heard: Instant::now(),
            run_dir,
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

/// The model that a new run begins from, or one with random weights and the vocabulary of the tokenizer or the task.
fn first_model(
    config: &TrainConfig,
    base: Option<&Checkpoint>,
    tokenizer: Option<&Tokenizer>,
    task: Option<&dyn Task>,
    device: Device,
) -> Result<LanguageModel> {
    if let Some(base) = base {
        needs(config, base.config.clone(), task, device)?.check_on(device)?;
        return Ok(LanguageModel::load(base)?);
    }
    let resolved = resolve(config, tokenizer, task)?;
    needs(config, resolved.clone(), task, device)?.check_on(device)?;
    Ok(LanguageModel::new(resolved, config.train.seed)?)
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

/// The model as it is trained on a device.
fn on_device(
    model: LanguageModel,
    config: &TrainConfig,
    device: Device,
    ranks: Option<&Group>,
) -> Result<LanguageModel> {
    let model = match ranks {
        Some(ranks) => alike(ranks, model, config.train.seed)?,
        None => model,
    };
    Ok(match device {
        Device::Cpu => model,
        Device::Cuda(_) => model.to_train(device, config.train.dtype.on(device))?,
    })
}

/// The model, or one of the form that rank 0 has: that one may come from a checkpoint that only rank 0 reads.
fn alike(ranks: &Group, model: LanguageModel, seed: u64) -> Result<LanguageModel> {
    let own = model.config().to_hf_json().to_string();
    let wanted = String::from_utf8_lossy(&ranks.broadcast(own.as_bytes())?).into_owned();
    if wanted == own {
        return Ok(model);
    }
    let (config, _) = ModelConfig::parse(&wanted, "the model of rank 0").map_err(elapid::Error::from)?;
    Ok(LanguageModel::new(config, seed)?)
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

/// Takes the directory for this run; one that goes on must have the settings that it was begun with.
fn claim(config: &TrainConfig, start: Start) -> Result<RunDir> {
    let dir = RunDir::claim(config, start, &resume::is_whole)?;
    if start != Start::Resume {
        return Ok(dir);
    }
    let file = dir.path().join("config.toml");
    let old = TrainConfig::load(&file)?;
    let what = |config: &TrainConfig| {
        // Where caches are makes no difference.
        let data = DataConfig { cache: String::new(), ..config.data.clone() };
        (config.model.clone(), data, config.task.clone(), config.train.seed)
    };
    if what(&old) == what(config) {
        return Ok(dir);
    }
    let changed = config.differences(&old)?;
    let changed: Vec<&String> = changed.iter().filter(|field| !is_free(field)).collect();
    let shown = changed.iter().map(|field| field.as_str()).collect::<Vec<_>>().join(", ");
    let reason = format!(
        "its [model], [data], [task] or train.seed differ from {} (here {shown}); go on with that file's settings (only \
         [train] may change), choose another directory by --output, or begin a new run from its weights by --from",
        file.display()
    );
    Err(Error::Resume { path: dir.path().to_owned(), reason })
}

/// Whether a run may go on with another value of a setting.
fn is_free(field: &str) -> bool {
    (field.starts_with("train.") && !field.starts_with("train.seed"))
        || field.starts_with("output.")
        || field.starts_with("data.cache")
}
