//! Running cargo in the repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::Value;

/// Targets that elapid is built for, one for each system.
pub(crate) const TARGETS: [&str; 3] = ["x86_64-unknown-linux-gnu", "x86_64-pc-windows-gnu", "aarch64-apple-darwin"];

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs cargo at the root of the repository, and prints the command and its seconds.
pub(crate) fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    cargo_in(&root(), arguments, variables)
}

/// Runs cargo in a folder, and prints the command and its seconds.
pub(crate) fn cargo_in(dir: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    eprintln!("== cargo {}", arguments.join(" "));
    let started = Instant::now();
    let status = Command::new("cargo").args(arguments).envs(variables.iter().copied()).current_dir(dir).status()?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    eprintln!("   {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// What `cargo metadata` says about the workspace.
pub(crate) fn metadata(arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--format-version", "1"]).args(arguments).current_dir(root());
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`cargo metadata` failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}
