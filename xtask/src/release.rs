//! The binary as it is given to others: where it runs, and what it says about the machine that built it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{cargo, metadata, root};

/// The oldest glibc that a release runs with: that of RHEL 8 and Debian 10.
const GLIBC: [u32; 2] = [2, 28];

/// Builds the binary for `target` and checks it. A target that ends in a version of glibc (`x86_64-unknown-linux-gnu.2.28`) is
/// built by `cargo zigbuild`, whose linker has the symbols of every glibc.
pub(crate) fn build(target: Option<&str>) -> Result<()> {
    let host = host()?;
    let target = target.unwrap_or(&host);
    let (triple, command) = match target.split_once('.') {
        Some((triple, _)) => (triple, "zigbuild"),
        None => (target, "build"),
    };
    let places = Places::find()?;
    let flags = places.flags();
    let arguments = [command, "--release", "--locked", "--package", "elapid-cli", "--target", target];
    cargo(&arguments, &[("CARGO_ENCODED_RUSTFLAGS", &flags)])?;
    let name = if triple.contains("windows") { "elapid.exe" } else { "elapid" };
    check(&places.target.join(triple).join("release").join(name))
}

/// Checks that a binary names no path of this machine and, if it is of Linux, that it needs no newer glibc than [`GLIBC`].
pub(crate) fn check(binary: &Path) -> Result<()> {
    let bytes = fs::read(binary).with_context(|| format!("no binary {}", binary.display()))?;
    println!("{}: {} bytes", binary.display(), bytes.len());
    let mut faults: Vec<String> = Places::find()?.found_in(&bytes).map(|line| format!("  {line}")).collect();
    let mut said = Vec::new();
    if !faults.is_empty() {
        said.push(format!("{} paths of this machine: build by `cargo xtask release`", faults.len()));
    } else {
        println!("no path of this machine");
    }
    if bytes.starts_with(b"\x7fELF") {
        let symbols = too_new(&objdump(binary)?)?;
        match &symbols[..] {
            [] => println!("no symbol newer than {}", version(&GLIBC)),
            _ => said.push(format!("{} symbols newer than {}: {FIX}", symbols.len(), version(&GLIBC))),
        }
        faults.extend(symbols.into_iter().map(|symbol| format!("  {symbol}")));
    }
    ensure!(said.is_empty(), "{} has {}\n{}", binary.display(), said.join("; "), faults.join("\n"));
    Ok(())
}

const FIX: &str = "build on a system with that glibc, or by `cargo xtask release --target x86_64-unknown-linux-gnu.2.28` \
                   (needs cargo-zigbuild), or for x86_64-unknown-linux-musl";

/// Folders of this machine whose names could come into a binary.
struct Places {
    home: PathBuf,
    cargo: PathBuf,
    root: PathBuf,
    target: PathBuf,
}

impl Places {
    fn find() -> Result<Self> {
        let home = env::home_dir().filter(|home| home.components().count() > 1).context("HOME is not set")?;
        let target = metadata(&["--no-deps"])?["target_directory"].as_str().map(PathBuf::from);
        Ok(Self {
            cargo: env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from),
            root: fs::canonicalize(root())?,
            target: target.context("cargo metadata has no target_directory")?,
            home,
        })
    }

    /// Flags of rustc that replace them, after those of `RUSTFLAGS`, as CARGO_ENCODED_RUSTFLAGS.
    fn flags(&self) -> String {
        let mut flags: Vec<String> =
            env::var("RUSTFLAGS").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        // The last that fits is taken.
        let sources = self.cargo.join("registry/src");
        let indexes = fs::read_dir(&sources).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let named = [(&self.home, "home"), (&self.cargo, "cargo"), (&self.target, "target"), (&self.root, ".")];
        let named =
            named.map(|(path, name)| (path.clone(), name)).into_iter().chain(indexes.map(|path| (path, "registry")));
        flags.extend(named.map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display())));
        flags.join("\x1f")
    }

    /// Texts of a binary with the name of one of these folders.
    fn found_in<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = String> + 'a {
        let names = [&self.home, &self.cargo, &self.root, &self.target].map(|path| format!("{}/", path.display()));
        let texts = bytes.split(|byte| !(b' '..=b'~').contains(byte)).filter(|text| text.len() > 4);
        texts.filter_map(move |text| {
            let text = String::from_utf8_lossy(text);
            let at = names.iter().filter_map(|name| text.find(name.as_str())).min()?;
            Some(text[at..].chars().take(100).collect())
        })
    }
}

/// The triple that this machine builds for.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("`rustc` is missing")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned);
    host.context("`rustc -vV` names no host")
}

/// What `objdump` says about the libraries' versions and the symbols that a binary wants.
fn objdump(binary: &Path) -> Result<String> {
    let program = env::var_os("OBJDUMP").unwrap_or_else(|| OsString::from("objdump"));
    let output = Command::new(program).args(["-p", "-T"]).arg(binary).output();
    let output = output.context("`objdump` is missing: install binutils, or name another in OBJDUMP")?;
    if !output.status.success() {
        bail!("`objdump`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Symbols of versions of glibc newer than [`GLIBC`], of those that the loader insists on: a version whose symbols are all weak
/// (flag 2) may be missing.
fn too_new(objdump: &str) -> Result<Vec<String>> {
    let newer = |name: &str| -> Option<bool> {
        let parts: Result<Vec<u32>, _> = name.strip_prefix("GLIBC_")?.split('.').map(str::parse).collect();
        Some(parts.map_or(true, |parts| parts[..] > GLIBC[..]))
    };
    let mut versions = Vec::new();
    let mut symbols = Vec::new();
    for line in objdump.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // 0x069691b4 0x00 21 GLIBC_2.34
            [hash, flags, _, name] if hash.starts_with("0x") && newer(name) == Some(true) => {
                let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16)?;
                if flags & 2 == 0 {
                    versions.push(name);
                }
            }
            // 0000000000000000      DF *UND*  0000000000000000 (GLIBC_2.34) pthread_create
            [.., version, symbol] if words.contains(&"*UND*") => {
                symbols.push((version.trim_matches(['(', ')']), symbol));
            }
            _ => {}
        }
    }
    let named = |version: &&str| symbols.iter().any(|(of, _)| of == version);
    let missing = versions.iter().filter(|version| !named(version)).map(|version| (*version).to_owned());
    let wanted = symbols.iter().filter(|(version, _)| versions.contains(version));
    Ok(wanted.map(|(version, symbol)| format!("{symbol} ({version})")).chain(missing).collect())
}

fn version(parts: &[u32]) -> String {
    let parts: Vec<String> = parts.iter().map(u32::to_string).collect();
    format!("GLIBC_{}", parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJDUMP: &str = "
Version References:
  required from libm.so.6:
    0x06969189 0x00 11 GLIBC_2.29
    0x06969188 0x00 06 GLIBC_2.28
  required from libc.so.6:
    0x06969190 0x02 09 GLIBC_2.30
    0x069691b4 0x00 12 GLIBC_2.100

DYNAMIC SYMBOL TABLE:
0000000000000000      DF *UND*	0000000000000000 (GLIBC_2.29) exp
0000000000000000  w   DF *UND*	0000000000000000 (GLIBC_2.30) gettid
0000000000000000      DF *UND*	0000000000000000 (GLIBC_2.28) fcntl64
0000000000000000      DF *UND*	0000000000000000 (GCC_3.0)    _Unwind_Resume
0000000000000000  w   D  *UND*	0000000000000000  Base        __gmon_start__
";

    #[test]
    fn versions_that_the_loader_insists_on_are_named() {
        assert_eq!(too_new(OBJDUMP).unwrap(), ["exp (GLIBC_2.29)", "GLIBC_2.100"]);
        assert_eq!(too_new(&OBJDUMP.replace("0x06969190 0x02", "0x06969190 0x00")).unwrap().len(), 3);
        assert!(too_new("a.out:     file format elf64-x86-64\n").unwrap().is_empty());
    }

    #[test]
    fn paths_of_this_machine_are_found() {
        let places = Places::find().unwrap();
        let file = places.cargo.join("registry/src/a/b.rs");
        let binary = format!("\0\u{1}some text{}src/lib.rs\0/rustc/abc/lib.rs\0", file.display());
        let found: Vec<String> = places.found_in(binary.as_bytes()).collect();
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(&places.cargo.display().to_string()), "{found:?}");
        assert_eq!(places.found_in(b"\0/rustc/abc/lib.rs\0registry/a/src/lib.rs\0").count(), 0);
        let own = places.root.join("crates");
        assert!(places.flags().contains(&format!("--remap-path-prefix={}=.", own.parent().unwrap().display())));
    }
}
