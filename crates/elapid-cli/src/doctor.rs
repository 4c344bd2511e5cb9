//! `elapid doctor`: what this machine has, how fast it is, and whether elapid works on it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use elapid::generate::{Generator, Sampling};
use elapid::tokenizer::SpecialTokens;
use elapid::{LanguageModel, embedded};
use elapid_kernels::cuda::library::{self, Needed};
use elapid_kernels::cuda::{self, Gpu, compile};
use elapid_kernels::os::machine;
use elapid_kernels::packed::{self, Form};
use elapid_kernels::{Isa, ceiling};
use serde_json::{Value, json};

use crate::output::{Output, bytes, pairs, scaled, thousands};
use crate::version;

const EXAMPLES: &str = "\
Examples:
  elapid doctor                         takes about a second
  elapid doctor --json > machine.json   to keep beside benchmark results
  elapid doctor --threads 1             the limits of one core";

/// No arguments beyond the global ones.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {}

// Long: every fact twice, for programs and for people.
pub(crate) fn run(_: &Arguments, output: Output) -> Result<()> {
    let cpu = machine::cpu_model().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let features = features();
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = rayon::current_num_threads();
    let memory = (machine::memory(), machine::free_memory());
    let (read, fma, exp) = (ceiling::read_ceiling(usize::MAX), ceiling::fma_ceiling(), ceiling::exp_ceiling());
    let [bf16, int8] = [Form::Bf16, Form::Int8].map(packed::product_ceiling);
    let cuda = look_for_cuda();
    let built_in = check_embedded();
    let object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build": version::SHORT,
        "target": version::TARGET,
        "cpu": cpu,
        "features": features,
        "isa": Isa::best().name(),
        "isa_available": available,
        "cores": cores,
        "threads": threads,
        "memory_bytes": memory.0,
        "memory_available_bytes": memory.1,
        "read_bytes_per_second": read,
        "flops_per_second": fma,
        "bf16_flops_per_second": bf16,
        "int8_ops_per_second": int8,
        "exps_per_second": exp,
        "cuda": cuda.json(),
        "embedded_model": match &built_in {
            Ok(built_in) => json!({ "ok": true, "parameters": built_in.parameters, "sample": built_in.sample }),
            Err(error) => json!({ "ok": false, "error": error.to_string() }),
        },
    });
    output.result(&object, || {
        let amount = |n: Option<u64>| n.map_or("unknown".to_owned(), bytes);
        let instructions = format!("{} (this CPU has {})", Isa::best().name(), available.join(", "));
        let mut lines = vec![
            ("elapid", version::SHORT.to_owned()),
            ("CPU", cpu.clone()),
            ("features", if features.is_empty() { "none that matter".into() } else { features.join(" ") }),
            ("instructions", instructions),
            ("threads", format!("{threads} of {cores} cores")),
            ("memory", format!("{}, {} free", amount(memory.0), amount(memory.1))),
            ("", String::new()),
            ("memory read", format!("{}: limits generating text", scaled(read, "B/s"))),
            ("arithmetic", format!("{} of f32: limits training and reading prompts", scaled(fma, "FLOP/s"))),
            ("", format!("{} of bf16, {} of int8: limits --weights", scaled(bf16, "FLOP/s"), scaled(int8, "op/s"))),
            ("exponentials", format!("{}: limits the selective scan", scaled(exp, "exp/s"))),
            ("", String::new()),
        ];
        lines.extend(cuda.lines());
        lines.push(match &built_in {
            Ok(BuiltIn { parameters, sample }) => {
                ("built-in model", format!("works: {} parameters, generates {sample:?}", thousands(*parameters as u64)))
            }
            Err(error) => ("built-in model", format!("does not work: {error}")),
        });
        let text = pairs(&lines);
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    })?;
    match built_in {
        Ok(_) => Ok(()),
        Err(error) => bail!("the built-in model does not work: {error}"),
    }
}

/// The instruction sets that kernels use or will use.
fn features() -> Vec<&'static str> {
    #[allow(unused_mut)]
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! look {
            ($($name:tt)*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        look!("avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! look {
            ($($name:tt)*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        look!("neon" "fp16" "dotprod" "bf16" "i8mm" "sve" "sve2");
    }
    found
}

/// The libraries and GPUs that work on a GPU needs, and which are there.
struct Cuda {
    /// Each library, with its path or why it is missing.
    libraries: Vec<(Needed, Result<PathBuf, String>)>,
    /// The GPUs, or why there are none.
    gpus: Result<Vec<String>, String>,
}

fn look_for_cuda() -> Cuda {
    let found = |needed| (needed, library::load(needed).map(|found| found.path).map_err(|error| error.to_string()));
    let libraries = Needed::ALL.map(found).to_vec();
    let gpus = cuda::count().map_err(|error| error.to_string()).and_then(|count| {
        let describe = |i| Gpu::open(i).map(describe_gpu).map_err(|error| error.to_string());
        (0..count).map(describe).collect()
    });
    Cuda { libraries, gpus }
}

fn describe_gpu(gpu: Gpu) -> String {
    let (major, minor) = gpu.capability();
    format!(
        "cuda:{}: {}, compute capability {major}.{minor}, {} of memory, {} multiprocessors",
        gpu.ordinal(),
        gpu.name(),
        bytes(gpu.total_memory() as u64),
        gpu.multiprocessors()
    )
}

impl Cuda {
    fn json(&self) -> Value {
        let libraries = self.libraries.iter().map(|(needed, found)| match found {
            Ok(path) => json!({ "name": needed.name(), "path": path }),
            Err(error) => json!({ "name": needed.name(), "error": error }),
        });
        json!({
            "libraries": libraries.collect::<Vec<_>>(),
            "gpus": self.gpus.as_ref().ok(),
            "error": self.gpus.as_ref().err(),
            "kernel_cache": compile::folder(),
        })
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = match &self.gpus {
            Ok(gpus) if gpus.is_empty() => vec![("GPU", "the driver finds none".to_owned())],
            Ok(gpus) => gpus.iter().map(|gpu| ("GPU", gpu.clone())).collect(),
            Err(error) => vec![("GPU", format!("not usable: {error}"))],
        };
        // Without the driver, what else is missing does not matter.
        if self.libraries.iter().any(|(needed, found)| *needed == Needed::Driver && found.is_ok()) {
            for (needed, found) in &self.libraries {
                let what = found.as_ref().map_or_else(Clone::clone, |path| format!("found: {}", path.display()));
                lines.push((needed.name(), what));
            }
            lines.extend(compile::folder().map(|folder| ("kernel cache", folder.display().to_string())));
        }
        lines
    }
}

/// The result of running the model inside the binary.
struct BuiltIn {
    parameters: usize,
    sample: String,
}

/// Generates a few tokens.
fn check_embedded() -> Result<BuiltIn> {
    let model: LanguageModel = embedded::model()?;
    let tokenizer = embedded::tokenizer();
    let mut sequence = Generator::new(&model, Sampling { temperature: 0.0, ..Sampling::default() }, 0)?;
    sequence.read(&tokenizer.encode_prompt("ROMEO:")?)?;
    let ids = (0..16).map(|_| sequence.next_token()).collect::<elapid::Result<Vec<_>>>()?;
    let sample = tokenizer.decode(&ids, SpecialTokens::Skip)?;
    Ok(BuiltIn { parameters: model.params().count(), sample })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_its_fix() {
        let missing = |needed: Needed| (needed, Err(needed.fix().to_owned()));
        let none = Cuda { libraries: Needed::ALL.map(missing).to_vec(), gpus: Err("no driver".into()) };
        assert_eq!(none.lines(), [("GPU", "not usable: no driver".to_owned())]);
        assert_eq!(none.json()["error"], "no driver");
        let mut libraries = none.libraries;
        libraries[0].1 = Ok("/lib/libcuda.so.1".into());
        let some = Cuda { libraries, gpus: Ok(vec!["cuda:0".into()]) };
        let lines = some.lines();
        assert!(lines.contains(&("the NVIDIA driver", "found: /lib/libcuda.so.1".to_owned())), "{lines:?}");
        assert!(lines.iter().any(|(name, what)| *name == "NVRTC" && what.contains("pip install")), "{lines:?}");
    }
}
