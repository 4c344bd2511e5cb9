//! Developer commands: `cargo xtask ci`, `cargo xtask golden PATH...`, `cargo xtask embed RUN`.

mod ci;
mod embed;
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
    /// Puts the model of a training run into the binary, as bf16.
    Embed {
        /// The run's directory.
        run: PathBuf,
    },
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
        Command::Embed { run } => embed::run(&run),
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
