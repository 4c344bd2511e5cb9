//! `elapid train`: trains a language model on text, or on a synthetic task.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use elapid::generate::{Generator, Sampling};
use elapid::tokenizer::{SpecialTokens, Tokenizer};
use elapid::{DType, LanguageModel};
use elapid_train::config::{Dtype, TrainConfig};
use elapid_train::data;
use elapid_train::parallel::{Group, World};
use elapid_train::progress::Progress;
use elapid_train::schedule::Warmup;
use elapid_train::tasks::Kind;
use elapid_train::{Outcome, Start, Stopped, Trainer, metrics, shell_word};
use serde_json::json;

use crate::model::Place;
use crate::output::{Output, bytes, number, pairs, thousands};
use crate::{failure, ranks, signals, trial};

const EXAMPLES: &str = "\
Examples:
  elapid train
      train a small byte-level Mamba on the text inside the binary, in minutes on a laptop
  elapid train --data books/ --output runs/out/books --steps 5000
      train on your own files (*.txt, *.md and *.jsonl of a directory, .gz and .zst too); the last tenth is held out
  elapid train --config configs/books.toml --set train.lr=1e-3 --set model.n_layer=8
      take settings from a file and override some; crates/elapid-train/configs/default.toml explains every setting
  elapid train --task induction-heads
      train on a synthetic task with the paper's settings (copying, selective-copying, induction-heads, mqar or \
      state-tracking); other options override them. Sequences are generated on the fly, and accuracy is measured on fresh \
      ones
  elapid train --resume --output runs/out/books
      resume a run where it stopped, bit for bit; a run stops cleanly at Ctrl-C, SIGTERM and a closed terminal (a \
      second Ctrl-C or SIGTERM ends it at once)
  elapid train --from runs/out/books --data letters/ --output runs/out/letters --lr 3e-4
      fine-tune: start a new run from the weights, the sizes and the tokenizer of a model
  elapid train --gpus 8 --config configs/books.toml
      train on 8 GPUs of this host, one batch per GPU; torchrun and srun start one process per GPU themselves:
      torchrun --no-python --nproc-per-node 8 elapid train …, or srun --gpus-per-node 8 --ntasks-per-node 8 elapid \
      train …
      On several hosts, set ELAPID_SECRET_FILE to a file (mode 0600) with the same secret on each, or ELAPID_SECRET to \
      the secret itself; docs/several-gpus.md has the commands for torchrun, Slurm and mpirun

The output directory then has the model (config.json, model.safetensors, tokenizer.json, as --model and transformers \
read it), config.toml, metrics.jsonl, loss.png and loss.svg.";

/// Characters of the sample at the end.
const SAMPLE: usize = 400;

/// The model, the data and the output directory.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Settings file; what it leaves out has its default (crates/elapid-train/configs/default.toml) [default: all defaults, or
    /// the run's own settings with --resume]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Train on a synthetic task instead of text, with the paper's settings: copying, selective-copying, induction-heads, mqar or
    /// state-tracking
    #[arg(long, value_name = "NAME", conflicts_with_all = ["data", "val"])]
    task: Option<String>,
    /// Text to train on: a file, a directory, or `tinyshakespeare`; may be repeated
    #[arg(long, value_name = "PATH")]
    data: Vec<String>,
    /// Held-out text, instead of the last tenth; may be repeated
    #[arg(long, value_name = "PATH")]
    val: Vec<String>,
    /// Start from the weights, the sizes and the tokenizer of the model in a directory, trained by elapid or downloaded;
    /// --output must be another directory
    #[arg(long, value_name = "DIR")]
    from: Option<String>,
    /// Output directory; refused if it holds a model or another run
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Instead of refusing the output directory, move its contents into a subfolder (old-1)
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Optimiser steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Rows per batch
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    batch: Option<usize>,
    /// Tokens per row
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    length: Option<usize>,
    /// Peak learning rate
    #[arg(long, value_name = "X", value_parser = above_0)]
    lr: Option<f64>,
    /// Random seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Leave out what the tokenizer puts before each document, such as <s>, in training and in the trained model
    #[arg(long)]
    no_bos: bool,
    /// Any other setting, `section.key=value`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the settings of the run, each explained, instead of running: a config file to change
    #[arg(long)]
    print_config: bool,
    /// Resume the run in the output directory
    #[arg(long)]
    resume: bool,
    /// Number of GPUs of this host to train on; starts one process for each [default: one, or the ranks of torchrun or srun]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    gpus: Option<u16>,
}

fn at_least_1(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "wanted a whole number of at least 1".into())
}

fn above_0(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&x: &f64| x > 0.0 && x.is_finite());
    number.ok_or_else(|| "wanted a number above 0".into())
}

impl Arguments {
    /// How many ranks to start. Checks the settings first, so that an error in them is printed once and not by every rank.
    pub(crate) fn ranks(&self) -> Result<Option<usize>> {
        let gpus = self.gpus.filter(|&gpus| gpus > 1).map(usize::from);
        gpus.map(|gpus| self.settings().map(|_| gpus)).transpose()
    }

    fn start(&self) -> Start {
        match (self.resume, self.overwrite) {
            (true, _) => Start::Resume,
            (false, true) => Start::Overwrite,
            (false, false) => Start::New,
        }
    }

    /// The settings and notices about them. Later ones override earlier ones: defaults, file, short options, `--set`.
    fn settings(&self) -> Result<(TrainConfig, Vec<String>)> {
        let kind = self.task.as_deref().map(Kind::find).transpose()?;
        let defaults = kind.map_or(Ok(TrainConfig::default()), |kind| TrainConfig::parse(kind.settings, kind.name))?;
        let own = || {
            let dir = self.output.clone().unwrap_or_else(|| defaults.output.dir.clone());
            Some(dir.join("config.toml")).filter(|file| self.resume && file.is_file())
        };
        let mut config = match self.config.clone().or_else(own) {
            Some(file) => TrainConfig::load(&file)?,
            None => defaults,
        };
        if let Some(kind) = kind {
            config.task.name = kind.name.into();
        }
        if !self.data.is_empty() {
            config.data.train = self.data.clone().into();
        }
        if !self.val.is_empty() {
            config.data.val = self.val.clone().into();
        }
        if let Some(dir) = &self.output {
            config.output.dir = dir.clone();
        }
        if let Some(from) = &self.from {
            config.model.from = from.clone();
        }
        config.train.steps = self.steps.unwrap_or(config.train.steps);
        config.train.batch = self.batch.unwrap_or(config.train.batch);
        config.data.length = self.length.unwrap_or(config.data.length);
        config.train.lr = self.lr.unwrap_or(config.train.lr);
        config.train.seed = self.seed.unwrap_or(config.train.seed);
        config.data.bos &= !self.no_bos;
        for assignment in &self.set {
            config.apply_override(assignment)?;
        }
        let notices = self.follow(&mut config);
        config.validate("the command line")?;
        Ok((config, notices))
    }

    /// A setting that no longer fits a short option is adapted to it, unless it was set explicitly.
    fn follow(&self, config: &mut TrainConfig) -> Vec<String> {
        let set = |key: &str| self.set.iter().any(|one| one.split('=').next().is_some_and(|field| field.trim() == key));
        let mut notices = Vec::new();
        let (steps, warmup) = (config.train.steps, config.train.warmup.of(config.train.steps));
        if self.steps.is_some() && warmup > steps && !set("train.warmup") {
            let shorter = Warmup::Auto.of(steps);
            notices.push(format!("train.warmup = {warmup} is longer than --steps {steps}: {shorter} instead"));
            config.train.warmup = Warmup::Steps(shorter);
        }
        let (lr, floor) = (config.train.lr, config.train.min_lr);
        if self.lr.is_some() && lr > 0.0 && floor > lr && !set("train.min_lr") {
            notices.push(format!("train.min_lr = {floor} is above --lr {lr}: {} instead", lr / 10.0));
            config.train.min_lr = lr / 10.0;
        }
        notices
    }
}

pub(crate) fn run(
    arguments: &Arguments,
    place: Place,
    dtype: Option<DType>,
    world: Option<&World>,
    output: Output,
) -> Result<()> {
    // Only rank 0 prints.
    let first = world.is_none_or(|world| world.rank == 0);
    if arguments.print_config {
        let (config, notices) = arguments.settings()?;
        notices.iter().for_each(|notice| output.note(notice));
        let text = config.to_toml()?;
        return output.result(&json!({ "config": text }), || text.clone());
    }
    let output = if first { output } else { Output { json: false, quiet: true } };
    let ranks = ranks::join(world, output)?;
    let done = train(arguments, place, dtype, ranks.as_ref(), output);
    if let (Some(ranks), Err(error)) = (&ranks, &done) {
        ranks.report_failure(&failure::message(error));
    }
    done
}

// Long: the command from its arguments to its output, each step once.
fn train(
    arguments: &Arguments,
    place: Place,
    dtype: Option<DType>,
    ranks: Option<&Arc<Group>>,
    output: Output,
) -> Result<()> {
    let (mut config, notices) = arguments.settings()?;
    notices.iter().for_each(|notice| output.note(notice));
    config.train.dtype = match dtype {
        None => config.train.dtype,
        Some(DType::F32) => Dtype::F32,
        Some(DType::Bf16) => Dtype::Bf16,
    };
    if config.task.is_text() && config.data.tokenizer != "byte" {
        trial::check(Path::new(&config.data.tokenizer), output)?;
    }
    let bar = output.bar("tokenising", 0);
    let mut tokenising = |progress: data::Progress| {
        bar.set_length(progress.tokens * progress.total_bytes / progress.bytes.max(1));
        bar.set_position(progress.tokens);
    };
    let mut trainer = match ranks {
        None => Trainer::new(config, arguments.start(), place.device, &mut tokenising)?,
        Some(ranks) => Trainer::parallel(config, arguments.start(), place.device, ranks.clone(), &mut tokenising)?,
    };
    bar.finish_and_clear();
    trainer.notices().iter().for_each(|notice| output.warn(notice));
    introduce(&trainer, ranks.map_or(1, |ranks| ranks.size()), output);

    let stop = Arc::new(AtomicBool::new(false));
    if let Err(error) = signals::stop_at_signals(&stop) {
        // It needs a thread; the run can do without.
        output.warn(format_args!(
            "warning: {}; stop this run by `kill`, and continue it by --resume",
            failure::message(&error)
        ));
    }
    ranks::stop_with_launcher(&stop);
    let progress = Progress::new(trainer.step(), trainer.config().train.steps, output.quiet || output.json);
    let outcome = trainer.run(&progress, &stop);
    progress.finish();
    let outcome = outcome?;
    if let Some(ranks) = ranks {
        ranks.finish()?;
        if !ranks.is_first() {
            return Ok(());
        }
    }

    let interrupted = outcome.stopped == Stopped::Interrupted;
    // The user who stopped the run is waiting for it to end.
    let sample = match trainer.tokenizer() {
        Some(tokenizer) if !interrupted => Some(sample(&LanguageModel::open(&outcome.dir)?, tokenizer)?),
        _ => None,
    };
    let resume = interrupted.then(|| resume_command(&outcome, ranks.map_or(1, |ranks| ranks.size())));
    let object = json!({
        "stopped": stopped(outcome.stopped),
        "step": outcome.step,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "loss": finite(outcome.loss),
        "val_loss": outcome.val_loss,
        "bits_per_byte": outcome.figure(metrics::BITS_PER_BYTE),
        "accuracy": outcome.figure(metrics::ACCURACY),
        "output": outcome.dir,
        "sample": sample,
        "resume": resume,
    });
    output.result(&object, || summary(&outcome, sample.as_deref(), resume.as_deref()))
}

/// The command that resumes a run. The settings are in its directory; device and threads are on the command line only.
fn resume_command(outcome: &Outcome, ranks: usize) -> String {
    let mut command = format!("elapid train --resume --output {}", shell_word(&outcome.dir));
    let mut arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        for option in ["--device", "--threads"] {
            let value = match argument.strip_prefix(option) {
                Some("") => arguments.next(),
                Some(rest) => rest.strip_prefix('=').map(str::to_owned),
                None => None,
            };
            if let Some(value) = value {
                command += &format!(" {option} {}", shell_word(value.as_ref()));
            }
        }
    }
    if ranks::is_launched() {
        command += &format!(" --gpus {ranks}");
    }
    command
}

fn introduce(trainer: &Trainer, ranks: usize, output: Output) {
    let (config, cost) = (trainer.model().config(), trainer.model().cost(0));
    let model = format!(
        "{} layers of {}, {} parameters, {} per token forward",
        config.n_layer(),
        config.d_model(),
        thousands(trainer.model().params().count() as u64),
        crate::output::scaled(cost.flops as f64, "FLOP"),
    );
    let settings = trainer.config();
    let text = || {
        format!(
            "{} tokens, {} held out; {}",
            thousands(trainer.train_tokens()),
            thousands(trainer.held_out_tokens()),
            settings.data.train.join(", ")
        )
    };
    let task =
        || format!("{}, length {}, generated on the fly", settings.task.name, thousands(settings.data.length as u64));
    let data = if settings.task.is_text() { ("text", text()) } else { ("task", task()) };
    let mut lines = vec![
        ("model", model),
        data,
        ("output", trainer.config().output.dir.display().to_string()),
        ("state", bytes(4 * cost.state)),
    ];
    if ranks > 1 {
        let rows = ranks * trainer.config().train.batch * trainer.config().train.accumulate;
        lines.push(("ranks", format!("{ranks}, {rows} rows per step in total")));
    }
    output.note(pairs(&lines).trim_end());
    if trainer.step() > 0 {
        output.note(format_args!("resuming from step {}", thousands(trainer.step())));
    }
}

fn stopped(stopped: Stopped) -> &'static str {
    match stopped {
        Stopped::Finished => "finished",
        Stopped::Patience => "patience",
        Stopped::Accuracy => "accuracy",
        Stopped::Interrupted => "interrupted",
    }
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

fn summary(outcome: &Outcome, sample: Option<&str>, resume: Option<&str>) -> String {
    let mut lines = vec![
        ("steps", format!("{} ({})", thousands(outcome.step), stopped(outcome.stopped))),
        ("tokens", thousands(outcome.tokens)),
        ("time", format!("{:.0} s", outcome.seconds)),
    ];
    lines.extend(outcome.val_loss.map(|loss| ("held-out loss", format!("{loss:.4} nats per token"))));
    lines.extend(outcome.figure(metrics::BITS_PER_BYTE).map(|bits| ("bits per byte", number(bits))));
    lines.extend(outcome.figure(metrics::ACCURACY).map(|share| ("right answers", format!("{:.2} %", 100.0 * share))));
    lines.push(("model", outcome.dir.display().to_string()));
    lines.push(("picture", outcome.dir.join("loss.png").display().to_string()));
    lines.extend(resume.map(|command| ("resume with", command.to_owned())));
    let sample = sample.map_or(String::new(), |sample| format!("{sample}\n\n"));
    format!("{sample}{}", pairs(&lines))
}

/// A sample: the model's continuation of the tokens before a document, or else of a newline.
fn sample(model: &LanguageModel, tokenizer: &Tokenizer) -> Result<String> {
    let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
    let mut sequence = Generator::new(model, sampling, 0)?;
    let begin = match tokenizer.document_prefix() {
        [] => tokenizer.encode("\n")?,
        prefix => prefix.to_vec(),
    };
    sequence.read(&begin)?;
    let mut stream = tokenizer.stream(SpecialTokens::Skip).after(&begin)?;
    let mut text = String::new();
    while text.chars().count() < SAMPLE {
        let id = sequence.next_token()?;
        if tokenizer.end_ids().contains(&id) || id as usize >= tokenizer.vocab_size() {
            break;
        }
        text.push_str(&stream.push(id)?);
    }
    Ok(text.trim().to_owned())
}
