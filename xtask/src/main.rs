//! Developer commands: `cargo xtask ci`, `cargo xtask structure`, `cargo xtask cuda-check`, `cargo xtask golden PATH...`,
//! `cargo xtask embed RUN`.

mod ci;
mod cuda_check;
mod embed;
mod golden;
mod structure;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use elapid::{DType, Device};

#[derive(Parser)]
#[command(about = "Developer commands of elapid")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The gate: formatting, structure, lints, CUDA kernels, tests, golden models, documentation.
    Ci,
    /// All tests of the workspace, optimised.
    Test,
    /// Import circles between files, long files and functions, folders without mod.rs, paths of the map that do not exist.
    Structure,
    /// Compiles every CUDA kernel, on a machine that needs no GPU; fails if one does not compile, is missing or spills.
    CudaCheck {
        /// Architectures to compile for.
        #[arg(long, value_delimiter = ',', default_value = "sm_80,sm_90,sm_100")]
        arch: Vec<cuda_check::Arch>,
        /// Registers, spills, stack and shared memory of each.
        #[arg(long)]
        verbose: bool,
        /// Instead compile for this architecture into ELAPID_CACHE, so that a machine with that folder compiles none.
        #[arg(long, value_name = "ARCH", conflicts_with_all = ["arch", "verbose"])]
        fill: Option<cuda_check::Arch>,
    },
    /// Puts the model of a training run into the binary, as bf16.
    Embed {
        /// The run's directory.
        run: PathBuf,
    },
    /// Compares elapid with recorded outputs of a reference implementation: one error ratio a line.
    Golden {
        /// Folders with config.json, model.safetensors and golden.safetensors, and files of single layers.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Largest error ratio of logits, losses a token, gradients and states.
        #[arg(long, default_value_t = 1e-5)]
        tolerance: f64,
        /// Where to compute: cpu, cuda:0.
        #[arg(long, default_value = "cpu")]
        device: Device,
        /// Format of activations; bf16 is compared by bounds of its own.
        #[arg(long, default_value = "f32")]
        dtype: DType,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Ci => ci::run(),
        Command::Test => ci::test(),
        Command::Structure => structure::run(&ci::root()),
        Command::CudaCheck { fill: Some(arch), .. } => cuda_check::fill(arch),
        Command::CudaCheck { arch, verbose, .. } => cuda_check::run(&arch, verbose),
        Command::Embed { run } => embed::run(&run),
        Command::Golden { paths, tolerance, device, dtype } => golden::run(&paths, tolerance, device, dtype),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
