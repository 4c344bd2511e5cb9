//! `elapid bench decode`: one token after another from a state.

use anyhow::Result;
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::Sampling;
use elapid::lm::Positions;
use elapid::{DType, Device, LanguageModel, Layout, State};
use elapid_kernels::cuda::Gpu;
use serde_json::json;

use super::measure::{ModelArguments, Timing, Work, at_least_1, repetitions, report, report_gpu};
use crate::failure::wrong;
use crate::model::Place;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  elapid bench decode --model-size 130m --random
  elapid bench decode --model-size 256x4 --vocab 1024 --batch 8
  elapid bench decode --config configs/models/llama-1.1b.toml --vocab 32000 --context 4096 --device cuda
  elapid bench decode --model DIR --json

Each step reads all weights once, and what attention keeps of each sequence, so memory bandwidth is the limit.";

/// Tokens of a context that are read in one pass.
const CHUNK: usize = 1024;

/// What to decode.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Sequences generated together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1())]
    batch: usize,
    /// Random tokens that each sequence has read before
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
    /// Dtype in which a GPU stores the states of heads of Mamba-2
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    state_dtype: DType,
    /// Steps to time, after some warm-up steps
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = repetitions())]
    reps: usize,
}

pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    if let Device::Cuda(gpu) = place.device {
        return on_cuda(arguments, gpu, place.dtype, output);
    }
    if arguments.state_dtype != DType::F32 {
        return Err(wrong("--state-dtype bf16 works on a GPU only; leave it out, or use --device cuda"));
    }
    let mut subject = arguments.model.subject(output)?;
    let (b, context) = (arguments.batch, arguments.context);
    subject.check_pass(b, 1, place)?;
    let tokens = subject.tokens(b * (arguments.context + 1));
    let model = &subject.model;
    let mut decoder = admitted(model, &tokens, b)?;
    let timing = Timing::of(8, arguments.reps, || Ok(decoder.step()?))?;
    decoder.tokens()?;
    let cost = model.cost(arguments.context as u64);
    let work =
        Work { tokens: b, flops: (b as u64 * cost.flops) as f64, bytes: Some(bytes(model, arguments, DType::F32)) };
    let what = [("decode", format!("batch of {b} after {context} tokens, greedy"))];
    report(&subject, &what, json!({ "bench": "decode", "batch": b, "context": context }), timing, &work, output)
}

/// The captured step, token after token, nothing read back in between.
fn on_cuda(arguments: &Arguments, gpu: Gpu, dtype: DType, output: Output) -> Result<()> {
    let mut subject = arguments.model.subject(output)?;
    let (b, context) = (arguments.batch, arguments.context);
    subject.check_pass(b, 1, Place { device: Device::Cuda(gpu), dtype })?;
    let tokens = subject.tokens(b * (arguments.context + 1));
    let model = subject.model.to(Device::Cuda(gpu), dtype)?.with_states_in(arguments.state_dtype);
    let mut decoder = admitted(&model, &tokens, b)?;
    let timing = Timing::of_gpu(gpu, 8, arguments.reps, || Ok(decoder.step()?))?;
    decoder.tokens()?;
    let cost = model.cost(arguments.context as u64);
    let work = Work { tokens: b, flops: (b as u64 * cost.flops) as f64, bytes: Some(bytes(&model, arguments, dtype)) };
    let what = [("decode", format!("batch of {b} after {context} tokens, greedy, {dtype}"))];
    let extra = json!({ "bench": "decode", "batch": b, "context": context, "state_dtype": arguments.state_dtype.to_string(), "launches": decoder.launches() });
    report_gpu(gpu, dtype, &subject, &what, extra, timing, &work, gpu.memory().reserved, output)
}

/// What a step reads and writes: the weights, states both ways, and caches.
fn bytes(model: &LanguageModel, arguments: &Arguments, dtype: DType) -> f64 {
    let (b, context) = (arguments.batch as u64, arguments.context as u64);
    let (states, kept) = model.state_elements(context);
    let state = 2 * arguments.state_dtype.bytes() as u64;
    (model.bytes_of_step() + dtype.bytes() as u64 * b * kept + state * b * states) as f64
}

/// A decoder of `b` greedy rows, each of which has read its part of these tokens but the last.
fn admitted(model: &LanguageModel, tokens: &[u32], b: usize) -> Result<Decoder> {
    let mut decoder = Decoder::new(model, b)?;
    let draws = Draws { sampling: Sampling { temperature: 0.0, ..Sampling::default() }, ..Draws::default() };
    for row in tokens.chunks_exact(tokens.len() / b) {
        let (head, last) = row.split_at(row.len() - 1);
        decoder.admit(&read(model, head)?, Next::Token(last[0]), &draws)?;
    }
    Ok(decoder)
}

fn read(model: &LanguageModel, tokens: &[u32]) -> Result<State> {
    let mut state = model.zero_state(1)?;
    for part in tokens.chunks(CHUNK) {
        let cx = model.inference(Layout::new(1, part.len()));
        (_, state) = model.logits(&cx, part, state, Positions::Last)?;
    }
    Ok(state)
}
