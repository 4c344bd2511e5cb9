//! Developer commands: `cargo xtask ci`, `cargo xtask golden PATH...`.

mod ci;
mod golden;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Developer commands of elapid")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The gate: formatting, lints, tests, golden models, documentation.
    Ci,
    /// All tests of the workspace, optimised.
    Test,
    /// Compares elapid with recorded outputs of a reference implementation: one error ratio a line.
    Golden {
        /// Folders with config.json, model.safetensors and golden.safetensors.
        #[arg(required = true)]
        folders: Vec<PathBuf>,
        /// Largest error ratio of logits, losses a token, gradients and states.
        #[arg(long, default_value_t = 1e-5)]
        tolerance: f64,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Ci => ci::run(),
        Command::Test => ci::test(),
        Command::Golden { folders, tolerance } => golden::run(&folders, tolerance),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
