//! `elapid bench train`: training steps on random tokens.

use std::sync::Arc;

use anyhow::{Context, Result};
use elapid::Layout;
use elapid::autograd::Tape;
use elapid::memory::Needs;
use elapid::ops::{First, Seeds};
use elapid::params::ParamGrads;
use elapid::{DType, Device};
use elapid_kernels::cuda::Gpu;
use elapid_train::cuda_step::CudaStep;
use elapid_train::data;
use elapid_train::objectives::{Batch, Feed, Language};
use elapid_train::optim::{AdamW, Options};
use serde_json::json;

use super::measure::{ModelArguments, Subject, Timing, Work, at_least_1, repetitions, report, report_gpu};
use crate::failure::wrong;
use crate::model::Place;
use crate::output::{Output, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid bench train --model-size 256x4 --vocab 256 --batch 8 --length 256
  elapid bench train --model-size 130m --batch 1 --length 512 --recompute
  elapid bench train --config configs/models/transformer-125m.toml --vocab 50277 --length 2048 --device cuda
  elapid bench train --model DIR --json

Operations are counted as three times those of the forward pass.";

/// What to train.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Sequences per step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_1())]
    batch: usize,
    /// Tokens per sequence
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_1())]
    length: usize,
    /// Store only the inputs of blocks for the backward pass and recompute the rest
    #[arg(long)]
    recompute: bool,
    /// Steps to time, after one warm-up step
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = repetitions())]
    reps: usize,
}

impl Arguments {
    /// Checks that steps of these sizes fit into memory.
    fn check(&self, subject: &Subject, place: Place) -> Result<()> {
        let lower = "--batch or --length, or give --recompute";
        let training = subject.model.needs_of_training(self.batch, self.length, place.dtype, self.recompute, lower);
        let parameters = match place.device {
            Device::Cpu => Needs::default(),
            Device::Cuda(_) => Needs::of_parameters(subject.model.config()),
        };
        Ok(parameters.with(training).check_on(place.device)?)
    }
}

pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    if arguments.model.model.weights.form.is_some() {
        return Err(wrong("--weights is for inference: leave it out to train"));
    }
    if let Device::Cuda(gpu) = place.device {
        return on_cuda(arguments, gpu, place.dtype, output);
    }
    let mut subject = arguments.model.subject(output)?;
    let (b, l) = (arguments.batch, arguments.length);
    arguments.check(&subject, place)?;
    let tokens = subject.tokens(b * l);
    let targets: Vec<i32> = subject.tokens(b * l).into_iter().map(|id| id as i32).collect();
    let layout = Layout::new(b, l);
    let mut optimiser = AdamW::new(subject.model.params(), Options::default())?;
    let mut grads = ParamGrads::of(subject.model.params())?;
    let mut last = f32::NAN;
    let timing = Timing::of(1, arguments.reps, || {
        let model = &mut subject.model;
        grads.zero()?;
        {
            let tape = Arc::new(Tape::new());
            let seeds = Seeds { seed: 0, first: First::Host(0) };
            let cx = model.training(&tape, layout.clone()).with_seeds(seeds);
            let (loss, _) = model.loss(&cx, &tokens, &targets, &model.zero_state(b)?, arguments.recompute)?;
            last = loss.value()?;
            tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut |_| Ok(()))?;
        }
        optimiser.step(model.params_mut(), &grads, 1e-4)?;
        Ok(())
    })?;
    let work = Work { tokens: b * l, flops: 3.0 * (b * l) as f64 * subject.model.cost(0).flops as f64, bytes: None };
    let recompute = if arguments.recompute { ", blocks computed again" } else { "" };
    let what = [("train", format!("{b} x {} tokens, AdamW{recompute}", thousands(l as u64)))];
    let extra = json!({
        "bench": "train", "batch": b, "length": l, "recompute": arguments.recompute, "last_loss": last,
    });
    report(&subject, &what, extra, timing, &work, output)
}

/// The steps of a training run on a GPU: the recorded graph of forward and backward, and AdamW.
fn on_cuda(arguments: &Arguments, gpu: Gpu, dtype: DType, output: Output) -> Result<()> {
    let mut subject = arguments.model.subject(output)?;
    let (b, l) = (arguments.batch, arguments.length);
    arguments.check(&subject, Place { device: Device::Cuda(gpu), dtype })?;
    let batch = data::Batch {
        tokens: subject.tokens(b * l),
        targets: subject.tokens(b * l).into_iter().map(|id| id as i32).collect(),
        resets: None,
        b,
        l,
        epoch: 0,
    };
    let model = subject.model.to_train(Device::Cuda(gpu), dtype)?;
    let mut optimiser = AdamW::new(model.params(), Options::default())?;
    let mut grads = ParamGrads::of(model.params())?;
    let feed = Feed::Same(batch.clone());
    let objective = Language { feed, shape: (b, l), pack: false, smoothing: 0.0, held_out: None };
    let batch = Batch::from(batch);
    let mut step = CudaStep::new(gpu, Arc::new(objective), &model, 1, 0)?;
    let mut last = f32::NAN;
    let timing = Timing::of_gpu(gpu, 4, arguments.reps, || {
        step.begin(&mut grads)?;
        step.run(&model, &mut grads, (0, &batch), 1.0, arguments.recompute)?;
        optimiser.enqueue(model.params(), &grads, 1e-4)?;
        let norm = optimiser.norm().context("an optimiser of no GPU")?;
        let pending = step.end(norm)?;
        last = step.results(&pending)?.0;
        Ok(())
    })?;
    let flops = 3.0 * (b * l) as f64 * subject.model.cost(0).flops as f64;
    let work = Work { tokens: b * l, flops, bytes: None };
    let recompute = if arguments.recompute { ", blocks computed again" } else { "" };
    let what = [("train", format!("{b} x {} tokens, {dtype}, AdamW{recompute}", thousands(l as u64)))];
    let memory = gpu.memory().reserved + step.graph_memory().reserved;
    let extra = json!({
        "bench": "train", "batch": b, "length": l, "recompute": arguments.recompute, "last_loss": last,
        "launches": step.launches(), "device_bytes": memory,
    });
    report_gpu(gpu, dtype, &subject, &what, extra, timing, &work, memory, output)
}
