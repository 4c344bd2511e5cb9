//! `elapid bench prefill`: reading a prompt.

use anyhow::Result;
use elapid::Device;
use elapid::Layout;
use elapid::generate::PREFILL_CHUNK;
use elapid::lm::Positions;
use elapid::memory::Needs;
use serde_json::json;

use super::measure::{ModelArguments, Timing, Work, at_least_1, repetitions, report, report_gpu};
use crate::model::Place;
use crate::output::{Output, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid bench prefill --model-size 130m --random --length 1024
  elapid bench prefill --model-size 256x4 --batch 4 --length 4096 --chunk 256
  elapid bench prefill --model DIR --json

Prompts are read in chunks of positions, with logits only after the last one. On a CPU the chunk is that of `elapid \
generate`; on a GPU it is larger.";

/// Positions that a GPU reads at a time, over all prompts; bounds the memory.
const GPU_POSITIONS: usize = 32_768;

/// What to read.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Prompts read together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1())]
    batch: usize,
    /// Tokens per prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_1())]
    length: usize,
    /// Positions per forward pass [default: 512; on a GPU 32768 over all prompts]
    #[arg(long, value_name = "N", value_parser = at_least_1())]
    chunk: Option<usize>,
    /// Prompts to time, after one warm-up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = repetitions())]
    reps: usize,
}

pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    let mut subject = arguments.model.subject(output)?;
    let (b, l) = (arguments.batch, arguments.length);
    let whole = if place.device.gpu().is_some() { (GPU_POSITIONS / b).max(1) } else { PREFILL_CHUNK };
    let chunk = arguments.chunk.unwrap_or(whole).min(l);
    subject.check_pass(b, chunk, place)?;
    let tokens = (b as u128).saturating_mul(l as u128);
    Needs::default().and("tokens", tokens, 4, "--batch or --length").check()?;
    // Chunks of all rows, `[b chunk]` each.
    let chunks: Vec<(usize, Vec<u32>)> =
        (0..l).step_by(chunk).map(|from| (l - from).min(chunk)).map(|len| (len, subject.tokens(b * len))).collect();
    let model = subject.model.to(place.device, place.dtype)?;
    let read = || {
        let mut state = model.zero_state(b)?;
        for (len, tokens) in &chunks {
            let cx = model.inference(Layout::new(b, *len));
            (_, state) = model.logits(&cx, tokens, &state, Positions::Last)?;
        }
        Ok(())
    };
    let timing = match place.device {
        Device::Cpu => Timing::of(1, arguments.reps, read)?,
        Device::Cuda(gpu) => Timing::of_gpu(gpu, 2, arguments.reps, read)?,
    };
    let (cost, head) = (model.cost(0), subject.head_flops());
    let positions = (b * l) as u64;
    let flops = positions * (cost.flops - head) + (b * chunks.len()) as u64 * head;
    let work = Work { tokens: b * l, flops: flops as f64, bytes: None };
    let what = [("prefill", format!("{b} x {} tokens, {} at a time", thousands(l as u64), chunk))];
    let extra = json!({ "bench": "prefill", "batch": b, "length": l, "chunk": chunk });
    match place.device {
        Device::Cpu => report(&subject, &what, extra, timing, &work, output),
        Device::Cuda(gpu) => {
            let memory = gpu.memory().reserved;
            report_gpu(gpu, place.dtype, &subject, &what, extra, timing, &work, memory, output)
        }
    }
}
