//! `elapid bench train`: training steps on random tokens.

use std::sync::Arc;

use anyhow::Result;
use elapid::autograd::Tape;
use elapid::ops::Layout;
use elapid::params::ParamGrads;
use elapid_train::optim::{AdamW, Options};
use serde_json::json;

use super::{ModelArguments, Timing, Work, at_least_1, report};
use crate::output::{Output, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid bench train --model-size 256x4 --vocab 256 --batch 8 --length 256
  elapid bench train --model-size 130m --batch 1 --length 512 --recompute
  elapid bench train --model DIR --json

Operations are counted as three times those of the forward pass.";

/// What to train.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Sequences of a step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_1())]
    batch: usize,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_1())]
    length: usize,
    /// Keep only the inputs of blocks for the backward pass, and compute the rest again
    #[arg(long)]
    recompute: bool,
    /// Steps to time; before them, one more for warming up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_1())]
    reps: usize,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<()> {
    let mut subject = arguments.model.subject(output)?;
    let (b, l) = (arguments.batch, arguments.length);
    let tokens = subject.tokens(b * l);
    let targets: Vec<i32> = subject.tokens(b * l).into_iter().map(|id| id as i32).collect();
    let layout = Layout::new(b, l);
    let mut optimiser = AdamW::new(subject.model.params(), Options::default());
    let mut grads = ParamGrads::default();
    let mut last = f32::NAN;
    let timing = Timing::of(1, arguments.reps, || {
        let model = &mut subject.model;
        grads.zero();
        {
            let tape = Arc::new(Tape::new());
            let cx = model.training(&tape, layout.clone());
            let (loss, _) = model.loss(&cx, &tokens, &targets, &model.zero_state(b), arguments.recompute)?;
            last = loss.value();
            tape.backward(&loss.mean, 1.0, &mut grads)?;
        }
        optimiser.step(model.params_mut(), &grads, 1e-4)?;
        Ok(())
    })?;
    let work = Work { tokens: b * l, flops: 3.0 * (b * l) as f64 * subject.model.cost().flops as f64, bytes: None };
    let recompute = if arguments.recompute { ", blocks computed again" } else { "" };
    let what = [("train", format!("{b} x {} tokens, AdamW{recompute}", thousands(l as u64)))];
    let extra = json!({
        "bench": "train", "batch": b, "length": l, "recompute": arguments.recompute, "last_loss": last,
    });
    report(&subject, &what, extra, timing, &work, output)
}
