//! THIRD-PARTY.md: whose work the binary contains, and under which licences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::{TARGETS, metadata, root};
use crate::licences;

const FILE: &str = "THIRD-PARTY.md";

const INTRODUCTION: &str = "\
# Third-party software and fonts

The binary `elapid` contains the software and fonts below; this file goes with it. `cargo xtask notices` writes it from the
dependencies for Linux, Windows and macOS. Where a licence may be chosen, the chosen one is listed.

The Rust standard library is in the binary as well (Apache-2.0), and in the static binary for Linux the C library musl (MIT,
Copyright © 2005-2020 Rich Felker, et al.). The text inside the binary, tinyshakespeare, is in the public domain.

";

/// Works inside a crate that have a licence of their own: the crate, the file of the licence, the works, the licences.
const WORKS: [(&str, &str, &str, &str); 1] = [(
    "dejavu",
    "assets/dejavu-fonts-ttf-2.37/LICENSE",
    "fonts DejaVu Sans, DejaVu Sans Bold",
    "Bitstream Vera, Arev; changes in the public domain",
)];

/// Writes the file, or with `check` compares it with what would be written.
pub(crate) fn run(check: bool) -> Result<()> {
    let text = text(&packages()?)?;
    let path = root().join(FILE);
    if check {
        let found = fs::read_to_string(&path).unwrap_or_default();
        ensure!(found == text, "{FILE} is not up to date: run `cargo xtask notices`");
    } else {
        fs::write(path, text)?;
    }
    Ok(())
}

/// A crate in the binary.
struct Package {
    name: String,
    version: String,
    license: String,
    authors: String,
    dir: PathBuf,
}

/// Crates of others whose code is in the binary for any target: neither those that only build it nor procedural macros.
fn packages() -> Result<BTreeMap<String, Package>> {
    let mut found = BTreeMap::new();
    for target in TARGETS {
        let workspace = metadata(&["--locked", "--filter-platform", target])?;
        let list = |value: &'static str, of: &Value| of[value].as_array().cloned().unwrap_or_default();
        let key = |value: &Value| value["id"].as_str().unwrap_or_default().to_owned();
        let packages: BTreeMap<_, _> = list("packages", &workspace).into_iter().map(|one| (key(&one), one)).collect();
        let nodes: BTreeMap<_, _> =
            list("nodes", &workspace["resolve"]).into_iter().map(|one| (key(&one), one)).collect();
        let start = packages.iter().find(|(_, package)| package["name"] == "elapid-cli").context("no elapid-cli")?.0;
        let (mut seen, mut next) = (BTreeSet::new(), vec![start.clone()]);
        while let Some(id) = next.pop() {
            let package = packages.get(&id).with_context(|| format!("cargo metadata has no {id}"))?;
            let is_macro = list("targets", package).iter().any(|target| target["kind"][0] == "proc-macro");
            if is_macro || !seen.insert(id.clone()) {
                continue;
            }
            if package["source"].is_string() {
                let read = read(package)?;
                found.insert(format!("{} {}", read.name, read.version), read);
            }
            let links = |dep: &Value| list("dep_kinds", dep).iter().any(|kind| kind["kind"].is_null());
            let deps = list("deps", &nodes[&id]).into_iter().filter(links);
            next.extend(deps.filter_map(|dep| Some(dep["pkg"].as_str()?.to_owned())));
        }
    }
    Ok(found)
}

fn read(package: &Value) -> Result<Package> {
    let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let authors: Vec<&str> = package["authors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    Ok(Package {
        name: text("name"),
        version: text("version"),
        license: text("license"),
        authors: authors.join(", "),
        dir: Path::new(&text("manifest_path")).parent().context("a manifest is in a folder")?.to_owned(),
    })
}

/// The file. Texts that differ in white space alone are one.
fn text(packages: &BTreeMap<String, Package>) -> Result<String> {
    let allowed = licences::allowed()?;
    let mut text = INTRODUCTION.to_owned();
    text.push_str("| software | licence |\n|---|---|\n");
    let mut texts: BTreeMap<String, (String, Vec<&str>)> = BTreeMap::new();
    for (name, package) in packages {
        let chosen = licences::choose(&package.license, &allowed)?;
        let chosen = chosen.with_context(|| format!("{name}: deny.toml does not allow {}", package.license))?;
        let chosen: Vec<&str> = chosen.iter().map(String::as_str).collect();
        writeln!(text, "| {name} | {} |", chosen.join(", "))?;
        for found in texts_of(package, &chosen)? {
            let key = found.split_whitespace().collect::<Vec<_>>().join(" ");
            texts.entry(key).or_insert((found, Vec::new())).1.push(name);
        }
    }
    for (name, file, works, licences) in WORKS {
        let package = packages.values().find(|package| package.name == name);
        let package = package.with_context(|| format!("no crate {name}: WORKS in xtask/src/notices.rs names it"))?;
        writeln!(text, "| {works} | {licences} |")?;
        let found = read_text(&package.dir.join(file))?;
        texts.insert(found.clone(), (found, vec![works]));
    }
    let mut texts: Vec<_> = texts.into_values().collect();
    texts.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then(a.1.cmp(&b.1)));
    text.push_str("\nThe texts, each with what it is for:\n");
    for (found, of) in texts {
        writeln!(text, "\n## {}\n\n```text\n{}\n```", of.join(", "), found.trim_matches('\n'))?;
    }
    Ok(text)
}

/// Texts that come with a crate: notices, and those of the chosen licences. The Apache licence is the same for all.
fn texts_of(package: &Package, chosen: &[&str]) -> Result<Vec<String>> {
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(&package.dir).with_context(|| format!("no folder {}", package.dir.display()))? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            files.push((name, path));
        }
    }
    files.sort();
    let mut texts = Vec::new();
    for (_, path) in files.iter().filter(|(name, _)| name.starts_with("NOTICE")) {
        texts.push(read_text(path)?);
    }
    for &licence in chosen {
        if licence == "Apache-2.0" {
            texts.push(read_text(&root().join("LICENSE-APACHE"))?);
            continue;
        }
        let word = licence.split('-').next().unwrap_or_default().to_uppercase();
        let is_text = |name: &str| ["LICENSE", "LICENCE", "COPYING"].iter().any(|start| name.starts_with(start));
        let named = files.iter().find(|(name, _)| is_text(name) && name.contains(&format!("-{word}")));
        let only = files.iter().find(|(name, _)| is_text(name) && !name.contains('-'));
        let text = named.or(only).map(|(_, path)| read_text(path)).transpose()?;
        // Some packages have a link that was packed as a text: its target's name.
        texts.push(match text.filter(|text| text.split_whitespace().count() > 50) {
            Some(text) => text,
            None => without_text(package, licence)?,
        });
    }
    Ok(texts)
}

/// The text of a licence that a package names and does not contain.
fn without_text(package: &Package, licence: &str) -> Result<String> {
    let Package { name, authors, dir, .. } = package;
    ensure!(
        licence == "MIT" && !authors.is_empty(),
        "{name} has no text of its licence {licence} in {}",
        dir.display()
    );
    let ours = read_text(&root().join("LICENSE-MIT"))?;
    let (_, permission) =
        ours.split_once("Permission is hereby granted").context("LICENSE-MIT is not the MIT licence")?;
    Ok(format!("MIT License\n\nCopyright (c) {authors}\n\nPermission is hereby granted{permission}"))
}

/// A text with the line ends of this repository.
fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("no file {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}
