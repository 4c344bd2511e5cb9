//! Setup of a run: the directory, the data, the model, the optimiser, the other ranks.

use std::sync::Arc;
use std::time::Instant;

use elapid::checkpoint::Checkpoint;
use elapid::config::ModelConfig;
use elapid::memory::Needs;
use elapid::models::Model;
use elapid::params::ParamGrads;
use elapid::{Device, LanguageModel, State};
use elapid_kernels::cuda::nccl::Communicator;

use super::reads::{self, Prepared};
use super::steppers::{Learner, OnCpu, OnCuda, Stepper};
use super::{Start, Trainer, from};
use crate::config::{DataConfig, Mode, TrainConfig, TrainSettings};
use crate::cuda_step::CudaStep;
use crate::groups;
use crate::objectives::ObjectiveOf;
use crate::optim::{self, AdamW};
use crate::parallel::{Group, Reducer, start};
use crate::resume::{self, Chosen, Identity, Position};
use crate::run_dir::RunDir;
use crate::schedule::Warmup;
use crate::{Error, Result, data, metrics, tasks};

/// How and where a run starts.
struct Begin {
    config: TrainConfig,
    start: Start,
    device: Device,
    ranks: Option<Arc<Group>>,
    /// The model that a new run starts from.
    base: Option<Checkpoint>,
}

impl Trainer {
    pub(super) fn of_config(
        config: TrainConfig,
        start: Start,
        device: Device,
        ranks: Option<Arc<Group>>,
        tokenising: &mut dyn FnMut(data::Progress),
    ) -> Result<Self> {
        let mut begin = Begin::new(config, start, device, ranks)?;
        if begin.ranks.is_some() {
            check_mode(&begin.config)?;
        }
        begin.base = from::open(&mut begin.config, start)?;
        let task = tasks::open(&begin.config.task)?;
        let length = begin.config.data.length;
        let length = task.as_ref().and_then(|task| task.positions(length).ok()).unwrap_or(length);
        let shape = (begin.config.train.batch, length);
        begin.trainer(shape, |config, ranks| match &task {
            None => reads::text(config, ranks, tokenising),
            Some(task) => reads::made(task, config),
        })
    }
}

impl<M: Model> Trainer<M> {
    pub(super) fn of_objective(
        config: TrainConfig,
        start: Start,
        device: Device,
        ranks: Option<Arc<Group>>,
        objective: Arc<ObjectiveOf<M>>,
        ids: usize,
    ) -> Result<Self> {
        let begin = Begin::new(config, start, device, ranks)?;
        begin.trainer(objective.shape(), |config, _| {
            let model = config.model.resolve_for(ids);
            Ok(Prepared {
                objective,
                model: model.map_err(|error| elapid::Error::from(error).into()),
                tokenizer: None,
                train_tokens: 0,
                held_out_tokens: 0,
                fingerprint: String::new(),
                what: "data of its own".into(),
                notices: Vec::new(),
            })
        })
    }
}

impl Begin {
    fn new(mut config: TrainConfig, start: Start, device: Device, ranks: Option<Arc<Group>>) -> Result<Self> {
        if let Some(ranks) = &ranks {
            ranks.keeps_in(config.output.dir.clone());
        }
        config.train.warmup = Warmup::Steps(config.train.warmup.of(config.train.steps));
        Ok(Self { config, start, device, ranks, base: None })
    }

    /// The run, with batches of `shape`. The directory is claimed first, then data is read, then the model is made or read.
    fn trainer<M: Model>(
        self,
        shape: (usize, usize),
        prepare: impl FnOnce(&TrainConfig, Option<&Group>) -> Result<Prepared<M>>,
    ) -> Result<Trainer<M>> {
        let Self { config, start, device, ranks, base } = self;
        let first = ranks.as_ref().is_none_or(|ranks| ranks.is_first());
        let schedule = config.train.lr_schedule()?;
        // Before anything is read or made; checked again with the vocabulary of the text.
        needs(&config, config.model.with_any_vocabulary(), shape, device)?.check_on(device)?;
        let mut run_dir = first.then(|| claim(&config, start)).transpose()?;
        let Prepared { objective, model, tokenizer, train_tokens, held_out_tokens, fingerprint, what, mut notices } =
            prepare(&config, ranks.as_deref())?;
        let identity = Identity { data: fingerprint, measure: objective.measure() };

        let chosen = match run_dir.as_ref().filter(|_| start == Start::Resume) {
            Some(dir) => Some(resume::choose(dir.path(), &config, &identity)?),
            None => None,
        };
        let (model, chosen) = match chosen {
            Some((model, chosen)) => (model, Some(chosen)),
            None => (first_model(&config, base.as_ref(), model, &*objective, device)?, None),
        };
        notices.extend(base.iter().flat_map(Checkpoint::warnings).cloned());
        let mut learner = learner(objective, model, &config, device, ranks)?;
        let saved = chosen.as_ref().map(|chosen| chosen.position.step);
        let keeps_old_best = chosen.as_ref().is_some_and(|chosen| chosen.new_measure);
        let (mut position, carried) = restore(chosen, &mut learner, shape.0, &mut notices)?;
        let communicator = meet(&mut learner, &config, train_tokens, device, &mut position)?;
        let stepper = stepper(&learner, device, carried, communicator)?;
        let metrics = match &mut run_dir {
            Some(dir) => Some(open_dir(dir, start, &config, position, &mut notices)?),
            None => None,
        };
        Ok(Trainer {
            config,
            tokenizer,
            schedule,
            train_tokens,
            held_out_tokens,
            what,
            learner,
            stepper,
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

/// The initial state that steps read and change.
fn learner<M: Model>(
    objective: Arc<ObjectiveOf<M>>,
    model: M,
    config: &TrainConfig,
    device: Device,
    ranks: Option<Arc<Group>>,
) -> Result<Learner<M>> {
    let model = on_device(model, &*objective, config, device, ranks.as_deref())?;
    let optimiser = AdamW::new(model.core().params(), optimiser_options(&config.train))?;
    let grads = ParamGrads::of(model.core().params())?;
    let (parts, recompute) = (config.train.accumulate.max(1) as u64, config.train.checkpoint_blocks);
    let (seed, dir) = (config.train.seed, config.output.dir.clone());
    Ok(Learner { objective, model, optimiser, grads, ranks, seed, parts, recompute, dir })
}

/// The progress of a checkpoint; restores its optimiser and the state of its streams, of `rows` rows.
fn restore<M: Model>(
    chosen: Option<Chosen>,
    learner: &mut Learner<M>,
    rows: usize,
    notices: &mut Vec<String>,
) -> Result<(Position, Option<State>)> {
    let Some(chosen) = chosen else { return Ok((Position::default(), None)) };
    notices.extend(chosen.notices.iter().cloned());
    let position = chosen.position;
    Ok((position, chosen.restore(learner.model.core(), &mut learner.optimiser, rows)?))
}

/// With several ranks: checks that they match, and copies the same values to all of them.
fn meet<M: Model>(
    learner: &mut Learner<M>,
    config: &TrainConfig,
    tokens: u64,
    device: Device,
    position: &mut Position,
) -> Result<Option<Arc<Communicator>>> {
    let Some(ranks) = learner.ranks.clone() else { return Ok(None) };
    start::check(&ranks, config, tokens, learner.model.core(), device)?;
    let communicator = device.gpu().map(|gpu| start::connect(&ranks, gpu)).transpose()?;
    let (model, optimiser) = (learner.model.core_mut(), &mut learner.optimiser);
    start::share(&ranks, communicator.as_deref(), model, optimiser, position)?;
    Ok(communicator)
}

/// The stepper of a device.
fn stepper<M: Model>(
    learner: &Learner<M>,
    device: Device,
    carried: Option<State>,
    communicator: Option<Arc<Communicator>>,
) -> Result<Box<dyn Stepper<M>>> {
    let Some(gpu) = device.gpu() else { return Ok(Box::new(OnCpu::new(learner, carried))) };
    let (objective, model) = (learner.objective.clone(), &learner.model);
    let mut step = CudaStep::new(gpu, objective, model, learner.parts as usize, learner.seed)?;
    if let Some(state) = &carried {
        step.set_state(state)?;
    }
    if let Some(communicator) = communicator {
        step.reduce_by(Reducer::new(communicator, model.core().params())?);
    }
    Ok(Box::new(OnCuda::new(step)))
}

/// Prepares the directory for the run, and opens its metrics.
fn open_dir(
    dir: &mut RunDir,
    start: Start,
    config: &TrainConfig,
    position: Position,
    notices: &mut Vec<String>,
) -> Result<metrics::Writer> {
    match start {
        Start::Resume => {
            dir.clean()?;
            // As the killed run would have done.
            resume::prune(dir.path(), position.step)?;
        }
        Start::New | Start::Overwrite => dir.begin(start)?,
    }
    notices.append(&mut dir.notices);
    dir.save_config(config)?;
    metrics::Writer::open(&dir.path().join("metrics.jsonl"), position.step)
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

/// The device memory that a run over batches of `b` rows of `l` positions needs.
fn needs(config: &TrainConfig, model: ModelConfig, (b, l): (usize, usize), device: Device) -> Result<Needs> {
    let train = &config.train;
    let lower = "train.batch or data.length (--batch, --length), or set train.checkpoint_blocks";
    let parameters = Needs::of_parameters(&model);
    let model = LanguageModel::without_values(model)?;
    let (dtype, recompute) = (train.dtype.on(device), train.checkpoint_blocks);
    Ok(parameters.with(model.needs_of_training(b, l, dtype, recompute, lower)))
}

/// The model that a new run starts from, or one of this configuration with random weights.
fn first_model<M: Model>(
    config: &TrainConfig,
    base: Option<&Checkpoint>,
    resolved: Result<ModelConfig>,
    objective: &ObjectiveOf<M>,
    device: Device,
) -> Result<M> {
    if let Some(base) = base {
        needs(config, base.config.clone(), objective.shape(), device)?.check_on(device)?;
        return Ok(M::load(base)?);
    }
    let resolved = resolved?;
    needs(config, resolved.clone(), objective.shape(), device)?.check_on(device)?;
    objective.model(resolved, config.train.seed)
}

/// The model on the device, to be trained.
fn on_device<M: Model>(
    model: M,
    objective: &ObjectiveOf<M>,
    config: &TrainConfig,
    device: Device,
    ranks: Option<&Group>,
) -> Result<M> {
    let mut model = match ranks {
        Some(ranks) => alike(ranks, model, objective, config.train.seed)?,
        None => model,
    };
    if !config.train.group.is_empty() {
        groups::apply(&config.train.group, model.core_mut().params_mut())?;
    }
    Ok(match device {
        Device::Cpu => model,
        Device::Cuda(_) => model.on_device(device, config.train.dtype.on(device))?,
    })
}

/// The model, or on other ranks one of the same shape as on rank 0, which may read it from a checkpoint.
fn alike<M: Model>(ranks: &Group, model: M, objective: &ObjectiveOf<M>, seed: u64) -> Result<M> {
    let own = model.core().config().to_hf_json().to_string();
    let wanted = String::from_utf8_lossy(&ranks.broadcast(own.as_bytes())?).into_owned();
    if wanted == own {
        return Ok(model);
    }
    let (config, _) = ModelConfig::parse(&wanted, "the model of rank 0").map_err(elapid::Error::from)?;
    objective.model(config, seed)
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

/// Claims the directory for this run. A resumed run must have the settings that it was started with.
fn claim(config: &TrainConfig, start: Start) -> Result<RunDir> {
    let dir = RunDir::claim(config, start, &resume::is_whole)?;
    if start != Start::Resume {
        return Ok(dir);
    }
    let file = dir.path().join("config.toml");
    let old = TrainConfig::load(&file)?;
    let what = |config: &TrainConfig| {
        // The location of caches does not matter.
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

/// Whether a run may resume with another value of a setting.
fn is_free(field: &str) -> bool {
    (field.starts_with("train.") && !field.starts_with("train.seed"))
        || field.starts_with("output.")
        || field.starts_with("data.cache")
}
