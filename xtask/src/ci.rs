//! The gate: what must pass before a change lands.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Formatting, structure, lints, CUDA kernels, tests, golden models, documentation, in that order; stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    crate::structure::run(&root())?;
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"], &[])?;
    cargo(&["xtask", "cuda-check"], &[])?;
    test()?;
    golden()?;
    cargo(&["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])
}

/// All tests, examples and documentation tests, optimised.
pub(crate) fn test() -> Result<()> {
    cargo(&["test"], &[])
}

/// Every folder of `golden/`.
fn golden() -> Result<()> {
    let folders = std::fs::read_dir("golden").context("no folder `golden`: run from the repository's root")?;
    let mut folders: Vec<_> = folders.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| p.is_dir()).collect();
    folders.sort();
    crate::golden::run(&folders, 1e-5, elapid::Device::Cpu, elapid::DType::F32)
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    eprintln!("== cargo {}", arguments.join(" "));
    let started = Instant::now();
    let status = Command::new("cargo").args(arguments).envs(variables.iter().copied()).current_dir(root()).status()?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    eprintln!("   {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain `cargo test` at the root runs the tests of every crate, and `cargo run` the one default program.
    #[test]
    fn every_crate_is_a_default_member() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
        assert!(!read("Cargo.toml").contains("default-members"), "the default is all members");
        let programs = |file: &str| read(file).matches("\ndefault-run = \"elapid\"\n").count();
        assert_eq!((programs("crates/elapid-cli/Cargo.toml"), programs("xtask/Cargo.toml")), (1, 0));
    }
}
