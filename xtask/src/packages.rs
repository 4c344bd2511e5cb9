//! The packages of the crates: what is in them, and that they build from it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::{cargo, cargo_in, metadata, root};

/// Files of the repository that every package has, unchanged.
const FILES: [&str; 3] = ["LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// Fields that a registry shows; `license` and `readme` among them.
const FIELDS: [&str; 7] = ["authors", "categories", "description", "documentation", "keywords", "license", "readme"];

/// Maximum size of a package in a registry, in bytes.
const LIMIT: u64 = 10 << 20;

/// An unpacked package.
struct Packed {
    name: String,
    folder: String,
}

/// Packs all crates but this one, checks the packages, and type-checks what is in them, in a workspace of their own.
///
/// `cargo package --workspace` without `--no-verify` compiles them as well, one after another, which takes minutes more.
pub(crate) fn run() -> Result<()> {
    let workspace = metadata(&["--no-deps"])?;
    let target = Path::new(workspace["target_directory"].as_str().context("cargo metadata has no target_directory")?);
    cargo(
        &["package", "--workspace", "--exclude", "xtask", "--offline", "--no-verify", "--allow-dirty", "--quiet"],
        &[],
    )?;
    let dir = target.join("package/unpacked");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let packages = workspace["packages"].as_array().context("cargo metadata has no packages")?;
    let mut packed = Vec::new();
    for package in packages.iter().filter(|package| package["name"] != "xtask") {
        packed.push(unpack(package, &target.join("package"), &dir)?);
    }
    fs::write(dir.join("Cargo.toml"), manifest(&fs::read_to_string(root().join("Cargo.toml"))?, &packed)?)?;
    fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock"))?;
    // The profile and the folder are those of the gate's lints: dependencies have been checked there.
    cargo_in(
        &dir,
        &["check", "--workspace", "--offline", "--quiet"],
        &[("CARGO_TARGET_DIR", &target.to_string_lossy())],
    )
}

/// Unpacks a crate's package into `dir` and checks what a registry and its readers want.
fn unpack(package: &Value, from: &Path, dir: &Path) -> Result<Packed> {
    let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let folder = format!("{}-{}", text("name"), text("version"));
    for field in FIELDS {
        let value = &package[field];
        let filled = value.as_str().is_some_and(|value| !value.is_empty())
            || value.as_array().is_some_and(|all| !all.is_empty());
        ensure!(filled, "{}: `package.{field}` is missing", text("manifest_path"));
    }
    let file = from.join(format!("{folder}.crate"));
    let size = fs::metadata(&file).with_context(|| format!("no package {}", file.display()))?.len();
    ensure!(
        size <= LIMIT,
        "{} has {size} bytes, a registry takes {LIMIT}: exclude what the crate does not need",
        file.display()
    );
    // Files get the time of now: with the old times of a package cargo would take what it has checked before.
    let done = Command::new("tar").arg("-xzmf").arg(&file).arg("-C").arg(dir).status().context("`tar` is missing")?;
    ensure!(done.success(), "`tar` did not unpack {}", file.display());
    for wanted in FILES {
        let packed = fs::read(dir.join(&folder).join(wanted)).with_context(|| format!("{folder} has no {wanted}"))?;
        ensure!(packed == fs::read(root().join(wanted))?, "{wanted} in {folder} is not that of the repository");
    }
    Ok(Packed { name: text("name"), folder })
}

/// The repository's manifest with the packages as its members, which take each other from there.
fn manifest(repository: &str, packed: &[Packed]) -> Result<String> {
    const MEMBERS: &str = r#"members = ["crates/*", "xtask"]"#;
    ensure!(repository.contains(MEMBERS), "Cargo.toml has no line `{MEMBERS}`: xtask/src/packages.rs replaces it");
    let folders: Vec<&str> = packed.iter().map(|one| one.folder.as_str()).collect();
    let mut text = repository.replace(MEMBERS, &format!("members = {folders:?}"));
    text.push_str("\n[patch.crates-io]\n");
    for Packed { name, folder } in packed {
        text.push_str(&format!("{name} = {{ path = {folder:?} }}\n"));
    }
    Ok(text)
}
