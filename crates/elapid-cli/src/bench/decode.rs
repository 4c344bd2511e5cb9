//! `elapid bench decode`: one token after another from a state.

use anyhow::Result;
use elapid::LanguageModel;
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::Sampling;
use elapid::{DType, Device};
use elapid_kernels::cuda::Gpu;
use serde_json::json;

use super::measure::{ModelArguments, Timing, Work, at_least_1, repetitions, report, report_gpu};
use crate::model::Place;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  elapid bench decode --model-size 130m --random
  elapid bench decode --model-size 256x4 --vocab 1024 --batch 8
  elapid bench decode --model DIR --json

Each step reads all weights once, so memory bandwidth is the limit for a small batch.";

/// What to decode.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Sequences generated together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1())]
    batch: usize,
    /// Steps to time, after some warm-up steps
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = repetitions())]
    reps: usize,
}

pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    if let Device::Cuda(gpu) = place.device {
        return on_cuda(arguments, gpu, place.dtype, output);
    }
    let mut subject = arguments.model.subject(output)?;
    let b = arguments.batch;
    subject.check_pass(b, 1, place)?;
    let tokens = subject.tokens(b);
    let model = &subject.model;
    let mut decoder = admitted(model, &tokens)?;
    let timing = Timing::of(8, arguments.reps, || Ok(decoder.step()?))?;
    decoder.tokens()?;
    let cost = model.cost(0);
    let work = Work {
        tokens: b,
        flops: (b as u64 * cost.flops) as f64,
        bytes: Some(4.0 * (cost.params + 2 * b as u64 * cost.state) as f64),
    };
    let what = [("decode", format!("batch of {b}, greedy"))];
    report(&subject, &what, json!({ "bench": "decode", "batch": b }), timing, &work, output)
}

/// The captured step, token after token, nothing read back in between.
fn on_cuda(arguments: &Arguments, gpu: Gpu, dtype: DType, output: Output) -> Result<()> {
    let mut subject = arguments.model.subject(output)?;
    let b = arguments.batch;
    subject.check_pass(b, 1, Place { device: Device::Cuda(gpu), dtype })?;
    let tokens = subject.tokens(b);
    let model = subject.model.to(Device::Cuda(gpu), dtype)?;
    let mut decoder = admitted(&model, &tokens)?;
    let timing = Timing::of_gpu(gpu, 8, arguments.reps, || Ok(decoder.step()?))?;
    decoder.tokens()?;
    let cost = model.cost(0);
    let work = Work {
        tokens: b,
        flops: (b as u64 * cost.flops) as f64,
        bytes: Some((dtype.bytes() as u64 * cost.params + 8 * b as u64 * cost.state) as f64),
    };
    let what = [("decode", format!("batch of {b}, greedy, {dtype}"))];
    let extra = json!({ "bench": "decode", "batch": b, "launches": decoder.launches() });
    report_gpu(gpu, dtype, &subject, &what, extra, timing, &work, gpu.memory().reserved, output)
}

/// A decoder of greedy rows that have read nothing and begin with these tokens.
fn admitted(model: &LanguageModel, tokens: &[u32]) -> Result<Decoder> {
    let mut decoder = Decoder::new(model, tokens.len())?;
    let draws = Draws { sampling: Sampling { temperature: 0.0, ..Sampling::default() }, ..Draws::default() };
    let state = model.zero_state(1)?;
    for &token in tokens {
        decoder.admit(&state, Next::Token(token), &draws)?;
    }
    Ok(decoder)
}
