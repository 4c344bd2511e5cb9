//! The `elapid` command line: generates, evaluates, inspects and measures selective state space models.
//!
//! Exit codes: 0 done, 1 the work failed, 2 the command line or a file was wrong.
#![forbid(unsafe_code)]

mod answers;
mod bench;
mod compare;
mod convert;
mod doctor;
mod eval;
mod failure;
mod generate;
mod input;
mod inspect;
mod model;
mod output;
mod plot;
mod ranks;
mod report;
mod runs;
mod score;
mod shell;
mod signals;
mod terminal;
mod threads;
mod tokenize;
mod tokenizer;
mod trace;
mod train;
mod trial;
mod version;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use elapid::DType;
use elapid_kernels::{Isa, os};
use elapid_train::parallel::World;

use model::Place;
use output::Output;

const EXAMPLES: &str = "\
Examples:
  elapid generate \"ROMEO:\"
      continue a text with the model inside the binary
  elapid generate --model DIR --greedy \"Once\"
      with your own model, always the most likely token
  elapid train --data books/ --output runs/out/books
      train on your own text
  elapid eval --model DIR --data book.txt
      loss, perplexity and bits per byte of a text
  elapid bench decode --model-size 130m
      tokens per second, compared with the limit of this machine

Exit codes: 0 done, 1 the work failed, 2 the command line or a file was wrong.";

/// Selective state space models (Mamba and its relatives): train, generate, evaluate, inspect, measure. Without --model,
/// commands use the byte-level model inside the binary.
#[derive(Parser)]
#[command(name = "elapid", version = version::SHORT, long_version = version::LONG, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// One JSON object on stdout, for scripts
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Only the result and errors
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Compute threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..),
          help_heading = "Global options")]
    threads: Option<u16>,
    /// cpu, cuda, cuda:1 or auto [default: auto, the first GPU that works, else the CPU]
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        default_value = "auto",
        hide_default_value = true,
        help_heading = "Global options"
    )]
    device: String,
    /// f32, or bf16 on a GPU [default: bf16 on a GPU]
    #[arg(long, global = true, value_name = "DTYPE", help_heading = "Global options")]
    dtype: Option<DType>,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a text
    Generate(Box<generate::Arguments>),
    /// Train a language model on text
    Train(Box<train::Arguments>),
    /// Measure how well a model predicts a text or lists of tokens, or solves a synthetic task
    Eval(Box<eval::Arguments>),
    /// Compare the held-out figures of training runs: a table, curves
    Compare(compare::Arguments),
    /// Draw a figure of training runs: their curves in one chart
    Plot(plot::Arguments),
    /// Show a model's configuration, tensors, cost per token and state size, or values inside it
    Inspect(inspect::Arguments),
    /// Store a model's weights in another form: int8, int4, bf16
    Convert(convert::Arguments),
    /// Turn text into token ids, and ids into text
    Tokenize(tokenize::Arguments),
    /// Learn a vocabulary from text
    #[command(subcommand)]
    Tokenizer(tokenizer::Command),
    /// Show the hardware and its speed, and check that elapid works on this machine
    Doctor(doctor::Arguments),
    /// Measure speed on random values, compared with the limits of this machine
    #[command(subcommand)]
    Bench(bench::Command),
    /// Print a script by which a shell completes commands and options
    Completions(shell::Completions),
    /// Write manual pages
    Man(shell::Man),
    /// Try tokenizers in this process, which may end it
    #[command(name = trial::COMMAND, hide = true)]
    TryTokenizer(trial::Arguments),
}

#[global_allocator]
static ALLOCATOR: elapid_kernels::ProgramAllocator = elapid_kernels::ProgramAllocator;

fn main() -> ExitCode {
    os::memory::keep_freed_memory();
    os::process::return_error_for_large_files();
    let matches = numbers_after_options(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = failure::message(&error);
            if !message.is_empty() {
                Output { json: cli.json, quiet: false }.warn(format_args!("error: {message}"));
            }
            ExitCode::from(failure::code(&error))
        }
    }
}

/// Lets options read a negative number, so that who writes `--temperature -1` is told its range.
fn numbers_after_options(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| match arg.is_positional() || !arg.get_action().takes_values() {
            true => arg,
            false => arg.allow_negative_numbers(true),
        })
        .mut_subcommands(numbers_after_options)
}

fn run(cli: &Cli) -> Result<()> {
    Isa::from_env().map_err(|error| failure::wrong(error.to_string()))?;
    // No device is opened for it and no thread started, to keep it fast.
    if let Command::TryTokenizer(arguments) = &cli.command {
        return trial::run(arguments);
    }
    let mut world = None;
    if let Command::Train(arguments) = &cli.command {
        if let Some(gpus) = arguments.ranks()? {
            return ranks::launch(gpus, &cli.device, cli.threads);
        }
        world = World::from_env()?;
    }
    let place = Place::open(&cli.device, cli.dtype, world.as_ref())?;
    let output = Output { json: cli.json, quiet: cli.quiet };
    threads::start(cli.threads.map(usize::from), output)?;
    match &cli.command {
        Command::Generate(arguments) => generate::run(arguments, place, output),
        Command::Train(arguments) => train::run(arguments, place, cli.dtype, world.as_ref(), output),
        Command::Eval(arguments) => eval::run(arguments, place, output),
        Command::Compare(arguments) => compare::run(arguments, output),
        Command::Plot(arguments) => plot::run(arguments, output),
        Command::Inspect(arguments) => inspect::run(arguments, place, output),
        Command::Convert(arguments) => convert::run(arguments, output),
        Command::Tokenize(arguments) => tokenize::run(arguments, output),
        Command::Tokenizer(command) => tokenizer::run(command, output),
        Command::Completions(arguments) => arguments.run(Cli::command()),
        Command::Man(arguments) => arguments.run(Cli::command(), output),
        Command::Doctor(arguments) => doctor::run(arguments, output),
        Command::Bench(command) => bench::run(command, place, output),
        Command::TryTokenizer(arguments) => trial::run(arguments),
    }
}
