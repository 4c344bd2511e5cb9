//! Developer commands of elapid: `cargo xtask --help` lists them.

mod cargo;
mod ci;
mod cuda_check;
mod embed;
mod golden;
mod licences;
mod notices;
mod packages;
mod performance;
mod release;
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
    /// Runs the gate: formatting, structure, licences, lints, packages, CUDA kernels, tests, golden files, documentation.
    Ci,
    /// Runs all tests of the workspace, optimised.
    Test,
    /// Finds import cycles between files, long files and functions, folders without mod.rs, and paths in
    /// docs/ARCHITECTURE.md that do not exist.
    Structure,
    /// Packs all crates, checks what is in the packages, and builds from them without the repository.
    Package,
    /// Writes THIRD-PARTY.md, the licences of what is in the binary.
    Notices {
        /// Writes nothing; fails if the file is not up to date.
        #[arg(long)]
        check: bool,
    },
    /// Builds the binary as it is given to others, and checks it: no path of this machine in it, no glibc newer than 2.28 needed.
    Release {
        /// Target [default: this machine's]; x86_64-unknown-linux-gnu.2.28 is built by cargo-zigbuild for that glibc.
        #[arg(long, value_name = "TRIPLE")]
        target: Option<String>,
        /// Builds nothing; checks this binary.
        #[arg(long, value_name = "FILE", conflicts_with = "target")]
        check: Option<PathBuf>,
    },
    /// Writes the table of docs/PERFORMANCE.md from bench/record.
    Performance {
        /// Writes nothing; fails if the table is not up to date.
        #[arg(long)]
        check: bool,
    },
    /// Compiles every CUDA kernel without a GPU; fails if one does not compile, is missing or spills registers.
    CudaCheck {
        /// Architectures to compile for.
        #[arg(long, value_delimiter = ',', default_value = "sm_80,sm_90,sm_100")]
        arch: Vec<cuda_check::Arch>,
        /// Prints registers, spills, stack and shared memory of each kernel.
        #[arg(long)]
        verbose: bool,
        /// Instead fills ELAPID_CACHE with all kernels for this architecture, so that a machine with that folder compiles none.
        #[arg(long, value_name = "ARCH", conflicts_with_all = ["arch", "verbose"])]
        fill: Option<cuda_check::Arch>,
    },
    /// Replaces the model inside the binary by that of a training run, stored as bf16.
    Embed {
        /// The run's directory.
        run: PathBuf,
    },
    /// Compares elapid with recorded outputs of a reference implementation; prints one error ratio per line.
    Golden {
        /// Folders with config.json, model.safetensors and golden.safetensors, and files of single layers.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Largest error ratio of logits, losses per token, gradients and states.
        #[arg(long, default_value_t = 1e-5)]
        tolerance: f64,
        /// Device to compute on: cpu, cuda:0.
        #[arg(long, default_value = "cpu")]
        device: Device,
        /// Dtype of activations; bf16 has bounds of its own.
        #[arg(long, default_value = "f32")]
        dtype: DType,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Ci => ci::run(),
        Command::Test => ci::test(),
        Command::Structure => structure::run(&cargo::root()),
        Command::Package => packages::run(),
        Command::Notices { check } => notices::run(check),
        Command::Release { check: Some(binary), .. } => release::check(&binary),
        Command::Release { target, .. } => release::build(target.as_deref()),
        Command::Performance { check } => performance::run(&cargo::root(), check),
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
