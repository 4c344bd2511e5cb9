//! `elapid bench`: speed on random values, compared with the limits of this machine, measured in the same run.

mod attention;
mod decode;
mod measure;
mod prefill;
mod scan;
mod scan_cuda;
mod train;

use anyhow::Result;
use clap::Subcommand;

use crate::model::Place;
use crate::output::Output;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// The selective scan alone, forward and backward
    Scan(scan::Arguments),
    /// Softmax attention alone, forward and backward
    Attention(attention::Arguments),
    /// One token after another, as generation does
    Decode(decode::Arguments),
    /// Reading a prompt
    Prefill(prefill::Arguments),
    /// A training step: forward, backward, AdamW
    Train(train::Arguments),
}

pub(crate) fn run(command: &Command, place: Place, output: Output) -> Result<()> {
    match command {
        Command::Scan(arguments) => scan::run(arguments, place, output),
        Command::Attention(arguments) => attention::run(arguments, place, output),
        Command::Decode(arguments) => decode::run(arguments, place, output),
        Command::Prefill(arguments) => prefill::run(arguments, place, output),
        Command::Train(arguments) => train::run(arguments, place, output),
    }
}
