//! `elapid doctor`: what this machine has, how fast it is, and whether elapid works on it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use elapid::generate::{Generator, Sampling};
use elapid::{LanguageModel, embedded};
use elapid_kernels::{Isa, ceiling};
use serde_json::json;

use crate::output::{Output, bytes, pairs, scaled, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid doctor                         takes about a second
  elapid doctor --json > machine.json   to keep beside benchmark results
  elapid doctor --threads 1             the limits of one core";

/// Nothing but what every command takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments, output: Output) -> Result<()> {
    let cpu = cpu_model();
    let features = features();
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = rayon::current_num_threads();
    let memory = (memory("MemTotal:"), memory("MemAvailable:"));
    let (read, fma, exp) = (ceiling::read_ceiling(), ceiling::fma_ceiling(), ceiling::exp_ceiling());
    let nvidia = nvidia();
    let built_in = check_embedded();
    let object = json!({
        "version": env!("CARGO_PKG_VERSION"),
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
        "exps_per_second": exp,
        "device": "cpu",
        "nvidia": { "library": nvidia.library, "driver": nvidia.driver, "used": false },
        "embedded_model": match &built_in {
            Ok(built_in) => json!({ "ok": true, "parameters": built_in.parameters, "sample": built_in.sample }),
            Err(error) => json!({ "ok": false, "error": error.to_string() }),
        },
    });
    output.result(&object, || {
        let amount = |n: Option<u64>| n.map_or("unknown".to_owned(), bytes);
        let instructions = format!("{} (this processor has {})", Isa::best().name(), available.join(", "));
        let mut lines = vec![
            ("elapid", env!("CARGO_PKG_VERSION").to_owned()),
            ("processor", cpu.clone()),
            ("features", if features.is_empty() { "none that matter".into() } else { features.join(" ") }),
            ("instructions", instructions),
            ("threads", format!("{threads} of {cores} cores")),
            ("memory", format!("{}, {} free", amount(memory.0), amount(memory.1))),
            ("", String::new()),
            ("memory read", format!("{}: the limit of generating text", scaled(read, "B/s"))),
            ("arithmetic", format!("{} of f32: the limit of training and reading prompts", scaled(fma, "FLOP/s"))),
            ("exponentials", format!("{}: the limit of the selective scan", scaled(exp, "exp/s"))),
            ("", String::new()),
            ("NVIDIA GPU", nvidia.describe()),
        ];
        lines.push(match &built_in {
            Ok(BuiltIn { parameters, sample }) => {
                ("built-in model", format!("works: {} parameters, says {sample:?}", thousands(*parameters as u64)))
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

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
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

/// A line of what Linux says of its memory, in bytes.
fn memory(field: &str) -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// What there is of NVIDIA's driver.
struct Nvidia {
    library: Option<PathBuf>,
    driver: Option<String>,
}

/// Looks for the driver's files; loads and starts nothing.
fn nvidia() -> Nvidia {
    const USUAL: [&str; 8] = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/nvidia/lib64",
        "/usr/local/cuda/compat",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
    ];
    let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let given: Vec<PathBuf> = std::env::split_paths(&given).filter(|dir| !dir.as_os_str().is_empty()).collect();
    let folders = given.iter().map(PathBuf::as_path).chain(USUAL.iter().map(Path::new));
    let library = folders.map(|dir| dir.join("libcuda.so.1")).find(|path| path.exists());
    let driver = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver =
        driver.and_then(|text| Some(text.lines().next()?.trim_start_matches("NVRM version:").trim().to_owned()));
    Nvidia { library, driver }
}

impl Nvidia {
    fn describe(&self) -> String {
        let found = match (&self.library, &self.driver) {
            (Some(path), Some(driver)) => format!("driver found: {driver}, {}", path.display()),
            (Some(path), None) => format!("driver library found: {}", path.display()),
            (None, Some(driver)) => format!("driver found ({driver}), but not its library libcuda.so.1"),
            (None, None) => "no driver found".to_owned(),
        };
        format!("{found}; this version runs on the CPU only")
    }
}

/// What the model inside the binary did.
struct BuiltIn {
    parameters: usize,
    sample: String,
}

/// Generates a few tokens.
fn check_embedded() -> Result<BuiltIn> {
    let model: LanguageModel = embedded::model()?;
    let tokenizer = embedded::tokenizer();
    let mut sequence = Generator::new(&model, Sampling { temperature: 0.0, ..Sampling::default() }, 0);
    sequence.read(&tokenizer.encode("ROMEO:")?)?;
    let ids = (0..16).map(|_| sequence.next_token()).collect::<elapid::Result<Vec<_>>>()?;
    let known: Vec<u32> = ids.into_iter().filter(|&id| (id as usize) < tokenizer.vocab_size()).collect();
    let sample = String::from_utf8_lossy(&tokenizer.decode_bytes(&known)?).into_owned();
    Ok(BuiltIn { parameters: model.params().count(), sample })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_said() {
        let none = Nvidia { library: None, driver: None };
        assert_eq!(none.describe(), "no driver found; this version runs on the CPU only");
        let some = Nvidia { library: Some("/lib/libcuda.so.1".into()), driver: None };
        assert!(some.describe().contains("/lib/libcuda.so.1"));
    }

    #[test]
    fn the_processor_has_a_name() {
        assert!(!cpu_model().is_empty());
    }
}
