//! The gate: what must pass before a change lands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, root};

/// Formatting, structure, the table of figures, licences, lints, packages, CUDA kernels, tests, golden files, documentation, Python round trips,
/// in that order; stops at the first that fails. The last line says what was not run.
pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    crate::structure::run(&root())?;
    crate::performance::run(&root(), true)?;
    crate::notices::run(true)?;
    let unchecked = crate::licences::run()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"], &[])?;
    crate::packages::run()?;
    // The other architectures take as long again each: `.ci/gpu` compiles for them.
    cargo(&["xtask", "cuda-check", "--arch", "sm_90"], &[])?;
    let list = root().join("target/not-run");
    std::fs::create_dir_all(root().join("target"))?;
    std::fs::write(&list, "")?;
    cargo(&["test"], &[(NOT_RUN, &list.to_string_lossy())])?;
    golden()?;
    cargo(&["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    let lacks = python("tests/python/hf_roundtrip.py")?;
    println!("{}", not_run(&std::fs::read_to_string(&list)?, lacks.as_deref(), unchecked));
    Ok(())
}

/// Names the file to which tests that are not run append a line `LACK<tab>TEST` (`elapid_kernels::testing::not_run`).
const NOT_RUN: &str = "ELAPID_NOT_RUN";

/// The gate's summary of what it did not run: tests by what is missing, the reason for the Python round trip, and what is not
/// known of the dependencies.
fn not_run(list: &str, python: Option<&str>, dependencies: Option<&str>) -> String {
    let tests: BTreeSet<&str> = list.lines().collect();
    let mut lacks: BTreeMap<&str, usize> = BTreeMap::new();
    for test in tests {
        *lacks.entry(test.split('\t').next().unwrap_or_default()).or_default() += 1;
    }
    let mut parts: Vec<String> = lacks
        .iter()
        .map(|(lack, count)| match count {
            1 => format!("1 {lack} test"),
            count => format!("{count} {lack} tests"),
        })
        .collect();
    if !lacks.is_empty() {
        parts.push(".ci/gpu requires them".to_owned());
    }
    let mut texts = Vec::new();
    if let Some((last, rest)) = parts.split_last() {
        texts.push(format!("{} ({last})", rest.join(", ")));
    }
    texts.extend(python.map(|reason| format!("1 Python round trip ({reason})")));
    texts.extend(dependencies.map(str::to_owned));
    if texts.is_empty() { "not run: nothing".to_owned() } else { format!("not run: {}", texts.join(", ")) }
}

/// Runs a script; returns why it tested nothing, if it did not.
fn python(script: &str) -> Result<Option<String>> {
    eprintln!("== python3 {script}");
    let output = match Command::new("python3").arg(script).current_dir(root()).stderr(Stdio::inherit()).output() {
        Ok(output) => output,
        Err(error) => return Ok(Some(format!("python3: {error}"))),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    ensure!(output.status.success(), "`{script}` failed");
    Ok(text.lines().find_map(|line| line.strip_prefix("skipped: ")).map(str::to_owned))
}

/// All tests, examples and documentation tests, optimised.
pub(crate) fn test() -> Result<()> {
    cargo(&["test"], &[])
}

/// Every folder of a model in `golden/`, and every layer in `golden/mixers/`.
fn golden() -> Result<()> {
    let inside = |folder: &str| -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder);
        let entries = entries.with_context(|| format!("no folder `{folder}`: run from the repository's root"))?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
    };
    let models = inside("golden")?.into_iter().filter(|path| path.join("golden.safetensors").is_file());
    let mut all: Vec<_> = models.chain(inside("golden/mixers")?).collect();
    all.sort();
    crate::golden::run(&all, 1e-5, elapid::Device::Cpu, elapid::DType::F32)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Plain `cargo test` at the root runs the tests of every crate, and `cargo run` runs the one default program.
    #[test]
    fn every_crate_is_a_default_member() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
        assert!(!read("Cargo.toml").contains("default-members"), "the default is all members");
        let programs = |file: &str| read(file).matches("\ndefault-run = \"elapid\"\n").count();
        assert_eq!((programs("crates/elapid-cli/Cargo.toml"), programs("xtask/Cargo.toml")), (1, 0));
    }

    #[test]
    fn what_was_not_run_is_counted() {
        let list = "GPU\tkernels a\nGPU\tkernels b\nGPU\tkernels a\nNCCL\tkernels c\n";
        let wanted = "not run: 2 GPU tests, 1 NCCL test (.ci/gpu requires them), \
                      1 Python round trip (no torch), bans";
        assert_eq!(not_run(list, Some("no torch"), Some("bans")), wanted);
        assert_eq!(not_run("", Some("no torch"), None), "not run: 1 Python round trip (no torch)");
        assert_eq!(not_run("", None, None), "not run: nothing");
    }
}
