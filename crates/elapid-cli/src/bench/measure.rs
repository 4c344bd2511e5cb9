//! Shared by the benchmarks: arguments, timing, reports compared with the limits of the machine.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::builder::RangedU64ValueParser;
use elapid::DType;
use elapid::LanguageModel;
use elapid::config::ModelConfig;
use elapid::tokenizer::Tokenizer;
use elapid_kernels::cuda::{self, Gpu};
use elapid_kernels::os::machine;
use elapid_kernels::packed::{self, Form};
use elapid_kernels::testing::Random;
use elapid_kernels::{Isa, ceiling};
use elapid_train::config::TrainConfig;
use serde_json::{Value, json};

use crate::model::{ModelArgument, Place};
use crate::output::{Output, bytes, number, pairs, percent, scaled, thousands};

/// Parses a count of at least 1.
pub(super) fn at_least_1() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Parses a number of repetitions.
pub(super) fn repetitions() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 20)
}

/// The model to measure.
#[derive(clap::Args)]
pub(super) struct ModelArguments {
    /// Random weights: a published size (130m 370m 790m 1.4b 2.8b), or `<d_model>x<layers>`
    #[arg(long, value_name = "SIZE", default_value = "130m", conflicts_with = "model")]
    pub(super) model_size: String,
    #[command(flatten)]
    pub(super) model: ModelArgument,
    /// Random weights for the [model] of a training config, as configs/models has them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "model_size"])]
    pub(super) config: Option<PathBuf>,
    /// A setting of that config, `model.key=value`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    pub(super) set: Vec<String>,
    /// Random weights; implied by --model-size and --config
    #[arg(long, conflicts_with = "model")]
    pub(super) random: bool,
    /// Vocabulary size [default: 50277 for a published size, else 256]
    #[arg(long, value_name = "N", conflicts_with = "model", value_parser = at_least_1())]
    pub(super) vocab: Option<usize>,
    /// Seed of weights and tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
}

/// A model and its name.
pub(super) struct Subject {
    pub(super) model: LanguageModel,
    pub(super) name: String,
    pub(super) random: Random,
}

impl ModelArguments {
    pub(super) fn subject(&self, output: Output) -> Result<Subject> {
        let random = Random::new(self.seed ^ 0x746f_6b65_6e73);
        if self.model.model.is_some() {
            let loaded = self.model.load(output)?;
            return Ok(Subject { model: loaded.model, name: loaded.name, random });
        }
        let (mut config, name) = match &self.config {
            None => (ModelConfig::mamba1(&self.model_size)?, self.model_size.clone()),
            Some(file) => {
                let mut training = TrainConfig::load(file)?;
                self.set.iter().try_for_each(|assignment| training.apply_override(assignment))?;
                let of_bytes = training.model.resolve(&Tokenizer::byte())?;
                (of_bytes, file.file_stem().unwrap_or_default().to_string_lossy().into_owned())
            }
        };
        config.vocab_size = self.vocab.unwrap_or(config.vocab_size);
        // The published tokenizer's ids have no meaning in another vocabulary.
        if self.vocab.is_some() {
            (config.bos_token_id, config.eos_token_id, config.pad_token_id) = (None, None, None);
        }
        let name = format!("{name} with random weights");
        let model = self.model.weights.of(LanguageModel::new(config, self.seed)?)?;
        Ok(Subject { model, name, random })
    }
}

impl Subject {
    /// Checks that passes over `b` rows of `l` positions fit into memory, with the logits of the last positions.
    pub(super) fn check_pass(&self, b: usize, l: usize, place: Place) -> Result<()> {
        let lower = if l > 1 { "--batch or --chunk" } else { "--batch" };
        let logits = b as u128 * self.model.config().padded_vocab_size() as u128;
        let needs = self.model.needs_of_pass(b, l, lower).and("logits", logits, place.dtype.bytes() as u32, lower);
        Ok(needs.check_on(place.device)?)
    }

    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        let v = self.model.config().vocab_size;
        (0..count).map(|_| self.random.below(v) as u32).collect()
    }

    /// Operations of the projection to the vocabulary, which the inner positions of a prompt skip.
    pub(super) fn head_flops(&self) -> u64 {
        let config = self.model.config();
        2 * config.padded_vocab_size() as u64 * config.d_model() as u64
    }

    pub(super) fn describe(&self) -> String {
        let form = self.model.form().map_or_else(String::new, |form| format!(" in {form}"));
        format!("{}, {} parameters{form}", self.name, thousands(self.model.params().count() as u64))
    }
}

/// Seconds of repeated calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) reps: usize,
}

impl Timing {
    /// Times `reps` calls of `f`, after `warmup` calls that are not counted.
    pub(super) fn of(warmup: usize, reps: usize, mut f: impl FnMut() -> Result<()>) -> Result<Self> {
        for _ in 0..warmup {
            f()?;
        }
        let mut seconds = Vec::new();
        for _ in 0..reps.max(1) {
            let started = Instant::now();
            f()?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let (min, max) = (seconds[0], seconds[seconds.len() - 1]);
        let median = (seconds[(seconds.len() - 1) / 2] + seconds[seconds.len() / 2]) / 2.0;
        Ok(Self { median, min, max, reps: seconds.len() })
    }

    /// Times `reps` calls of `f` by events on a GPU, after `warmup` that are not counted.
    pub(super) fn of_gpu(gpu: Gpu, warmup: usize, reps: usize, mut f: impl FnMut() -> Result<()>) -> Result<Self> {
        for _ in 0..warmup {
            f()?;
        }
        let mut failed = None;
        let times = gpu.time(reps.max(1), || {
            if let Err(error) = f() {
                failed = Some(error);
            }
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let mut seconds: Vec<f64> = times.into_iter().map(|ms| f64::from(ms) / 1e3).collect();
        seconds.sort_by(f64::total_cmp);
        let (min, max) = (seconds[0], seconds[seconds.len() - 1]);
        Ok(Self { median: seconds[seconds.len() / 2], min, max, reps: seconds.len() })
    }

    pub(super) fn milliseconds(&self) -> Value {
        json!({ "median": 1e3 * self.median, "min": 1e3 * self.min, "max": 1e3 * self.max, "reps": self.reps })
    }

    pub(super) fn describe(&self) -> String {
        let [median, min, max] = [self.median, self.min, self.max].map(|seconds| number(1e3 * seconds));
        format!("{median} ms (median of {}; {min} to {max})", self.reps)
    }
}

/// The work of one step of a model.
pub(super) struct Work {
    /// Tokens of a step.
    pub(super) tokens: usize,
    /// Additions, multiplications and exponentials.
    pub(super) flops: f64,
    /// Bytes that must be read from and written to memory; none if memory is not the limit.
    pub(super) bytes: Option<f64>,
}

/// Prints the results for the steps of a model. `extra` is added to the JSON object unchanged.
pub(super) fn report(
    subject: &Subject,
    what: &[(&'static str, String)],
    extra: Value,
    timing: Timing,
    work: &Work,
    output: Output,
) -> Result<()> {
    // Taken before the ceilings are measured, which needs memory too.
    let rss = machine::peak_memory();
    let read = work.bytes.map_or(usize::MAX, |bytes| bytes as usize);
    let form = subject.model.form().unwrap_or(Form::F32);
    let (flops_limit, read_limit) = (packed::product_ceiling(form), ceiling::read_ceiling(read));
    let rate = |amount: f64| amount / timing.median;
    let tokens_per_second = rate(work.tokens as f64);
    let flops = rate(work.flops);
    let mut object = json!({
        "model": subject.name,
        "parameters": subject.model.params().count(),
        "weights": form.name(),
        "tokens_per_second": tokens_per_second,
        "ms_per_step": 1e3 * timing.median,
        "ms": timing.milliseconds(),
        "tokens_per_step": work.tokens,
        "gflops": flops / 1e9,
        "gflops_ceiling": flops_limit / 1e9,
        "percent_of_gflops_ceiling": 100.0 * flops / flops_limit,
        "gb_per_second": work.bytes.map(|bytes| rate(bytes) / 1e9),
        "gb_per_second_ceiling": read_limit / 1e9,
        "percent_of_gb_per_second_ceiling": work.bytes.map(|bytes| 100.0 * rate(bytes) / read_limit),
        "peak_rss_bytes": rss,
        "threads": rayon::current_num_threads(),
        "isa": Isa::best().name(),
    });
    if let (Some(object), Value::Object(extra)) = (object.as_object_mut(), extra) {
        object.extend(extra);
    }
    output.result(&object, || {
        let mut lines = vec![("model", subject.describe())];
        lines.extend(what.iter().cloned());
        lines.push(("threads", format!("{}, {}", rayon::current_num_threads(), Isa::best().name())));
        lines.push(("a step", timing.describe()));
        lines.push(("speed", format!("{} tokens/s", number(tokens_per_second))));
        let products = format!("a loop of {form} multiply-adds");
        lines.push(("arithmetic", against(flops, "FLOP/s", flops_limit, &products)));
        if let Some(bytes) = work.bytes {
            lines.push(("memory", against(rate(bytes), "B/s", read_limit, "reading memory")));
        }
        lines.push(("peak memory", rss.map_or("unknown".into(), bytes)));
        pairs(&lines)
    })
}

/// [`report`] for a GPU, compared with its copy and matrix-product rates, measured in the same run.
pub(super) fn report_gpu(
    gpu: Gpu,
    dtype: DType,
    subject: &Subject,
    what: &[(&'static str, String)],
    extra: Value,
    timing: Timing,
    work: &Work,
    memory: usize,
    output: Output,
) -> Result<()> {
    let (copy, product) = (cuda::ceiling::copy(gpu)?, cuda::ceiling::matmul(gpu, dtype)?);
    let rate = |amount: f64| amount / timing.median;
    let (tokens_per_second, flops) = (rate(work.tokens as f64), rate(work.flops));
    let mut object = json!({
        "device": gpu.name(),
        "dtype": dtype.to_string(),
        "model": subject.name,
        "parameters": subject.model.params().count(),
        "tokens_per_second": tokens_per_second,
        "ms_per_step": 1e3 * timing.median,
        "ms": timing.milliseconds(),
        "tokens_per_step": work.tokens,
        "tflops": flops / 1e12,
        "tflops_ceiling": product / 1e12,
        "percent_of_tflops_ceiling": 100.0 * flops / product,
        "gb_per_second": work.bytes.map(|bytes| rate(bytes) / 1e9),
        "gb_per_second_ceiling": copy / 1e9,
        "percent_of_gb_per_second_ceiling": work.bytes.map(|bytes| 100.0 * rate(bytes) / copy),
        "device_bytes": memory,
    });
    if let (Some(object), Value::Object(extra)) = (object.as_object_mut(), extra) {
        object.extend(extra);
    }
    output.result(&object, || {
        let mut lines = vec![("device", gpu.name().to_owned()), ("model", subject.describe())];
        lines.extend(what.iter().cloned());
        lines.push(("a step", timing.describe()));
        lines.push(("speed", format!("{} tokens/s", number(tokens_per_second))));
        lines.push(("arithmetic", against(flops, "FLOP/s", product, "a large matrix product")));
        if let Some(bytes) = work.bytes {
            lines.push(("memory", against(rate(bytes), "B/s", copy, "a copy on the device")));
        }
        if let Some(launches) = object["launches"].as_u64() {
            lines.push(("launches", thousands(launches)));
        }
        lines.push(("device memory", bytes(memory as u64)));
        pairs(&lines)
    })
}

/// A rate beside its limit: `180 GFLOP/s, 79 % of the 228 GFLOP/s of …`.
pub(super) fn against(rate: f64, unit: &str, limit: f64, of: &str) -> String {
    format!("{}, {} of the {} of {of}", scaled(rate, unit), percent(rate / limit), scaled(limit, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_the_repetitions() {
        let mut calls = 0;
        let timing = Timing::of(2, 5, || {
            calls += 1;
            Ok(())
        });
        let timing = timing.unwrap();
        assert_eq!((calls, timing.reps), (7, 5));
        assert!(timing.min <= timing.median && timing.median <= timing.max);
    }
}
