//! Tells the program what it was built from: `elapid --version` prints it.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = variable("CARGO_PKG_VERSION");
    let version = commit().map_or_else(|| version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=ELAPID_VERSION={version}");
    println!("cargo::rustc-env=ELAPID_TARGET={}", variable("TARGET"));
    println!("cargo::rustc-env=ELAPID_FEATURES={}", features().join(" "));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// CUDA unless the program cannot load libraries, and the instructions that every CPU needs that runs it. Wider ones are chosen
/// at run time.
fn features() -> Vec<String> {
    const STATIC: &str = "crt-static";
    let enabled = variable("CARGO_CFG_TARGET_FEATURE");
    let is_static = variable("CARGO_CFG_TARGET_ENV") == "musl" && enabled.split(',').any(|one| one == STATIC);
    let mut features: Vec<String> = if is_static { Vec::new() } else { vec!["cuda".to_owned()] };
    features.extend(enabled.split(',').filter(|one| *one != STATIC).map(str::to_owned));
    features
}

/// The commit, with a `+` if sources differ from it: of the repository, or the one that `cargo package` wrote down.
/// A repository that this folder happens to lie in is not asked.
fn commit() -> Option<String> {
    let root = Path::new("../..");
    if root.join(".git").exists() && root.join("crates/elapid-cli/build.rs").exists() {
        return from_git(root);
    }
    let note = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = note.split_once("\"sha1\": \"")?;
    let commit = rest.get(..12)?;
    Some(format!("{commit}{}", if note.contains("\"dirty\": true") { "+" } else { "" }))
}

fn from_git(root: &Path) -> Option<String> {
    const SOURCES: [&str; 3] = ["Cargo.lock", "Cargo.toml", "crates"];
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // Git appends a line to this file at every commit and checkout.
    println!("cargo::rerun-if-changed={}", root.join(git(&["rev-parse", "--git-path", "logs/HEAD"])?).display());
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&[&["status", "--porcelain", "--untracked-files=no", "--"][..], &SOURCES].concat())?;
    Some(format!("{commit}{}", if changes.is_empty() { "" } else { "+" }))
}
