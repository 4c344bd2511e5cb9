//! Licences of dependencies: expressions of SPDX, and the check of what `deny.toml` allows.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cargo::{TARGETS, cargo, metadata, root};

/// Checks the licences and the sources of all dependencies, and lets cargo-deny check them and its bans if it is installed;
/// returns what was not checked.
pub(crate) fn run() -> Result<Option<&'static str>> {
    let allowed = allowed()?;
    let mut faults = BTreeSet::new();
    for target in TARGETS {
        let workspace = metadata(&["--locked", "--filter-platform", target])?;
        for package in workspace["packages"].as_array().context("cargo metadata has no packages")? {
            faults.extend(fault(package, &allowed));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.into_iter().collect::<Vec<_>>().join("\n"));
    let deny =
        Command::new("cargo").args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !deny.success() {
        return Ok(Some("bans of deny.toml (no cargo-deny)"));
    }
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"], &[])?;
    Ok(None)
}

/// Licences that `deny.toml` allows; those that we prefer, where there is a choice, come first.
pub(crate) fn allowed() -> Result<Vec<String>> {
    let file = root().join("deny.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("no file {}", file.display()))?;
    let table: toml::Table = text.parse()?;
    let list = table.get("licenses").and_then(|licenses| licenses.get("allow")?.as_array());
    let list = list.context("deny.toml has no `licenses.allow`")?;
    Ok(list.iter().filter_map(|licence| Some(licence.as_str()?.to_owned())).collect())
}

fn fault(package: &Value, allowed: &[String]) -> Option<String> {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    let name = format!("{} {}", text("name"), text("version"));
    // Without a source it is of this workspace.
    if !["", "registry+https://github.com/rust-lang/crates.io-index"].contains(&text("source")) {
        return Some(format!("{name} is of {}, not of the registry", text("source")));
    }
    match choose(text("license"), allowed) {
        Ok(Some(_)) => None,
        Ok(None) => Some(format!("{name} has the licence `{}`, which deny.toml does not allow", text("license"))),
        Err(error) => Some(format!("{name}: {error}")),
    }
}

/// Licences that fulfil an expression, the earliest of `allowed` where it offers several; nothing if those do not.
pub(crate) fn choose(expression: &str, allowed: &[String]) -> Result<Option<BTreeSet<String>>> {
    // `MIT/Apache-2.0` is how old packages write OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader { words: &words, allowed };
    let chosen = reader.any();
    match chosen {
        Some(chosen) if reader.words.is_empty() => {
            Ok(chosen.map(|ranks| ranks.into_iter().map(|rank| allowed[rank].clone()).collect()))
        }
        _ => bail!("`{expression}` is no expression of licences"),
    }
}

/// Indices into the allowed licences. Nothing: not allowed.
type Chosen = Option<BTreeSet<usize>>;

/// Reads an expression; each function takes what it understands from the front of `words`, and nothing is a syntax error.
struct Reader<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl Reader<'_> {
    fn next_is(&mut self, word: &str) -> bool {
        let is = self.words.first() == Some(&word);
        if is {
            self.words = &self.words[1..];
        }
        is
    }

    fn any(&mut self) -> Option<Chosen> {
        let mut all = vec![self.every()?];
        while self.next_is("OR") {
            all.push(self.every()?);
        }
        // The alternative whose least preferred licence is the most preferred.
        Some(all.into_iter().flatten().min_by_key(|ranks| ranks.last().copied()))
    }

    fn every(&mut self) -> Option<Chosen> {
        let mut all = self.one()?;
        while self.next_is("AND") {
            let more = self.one()?;
            all = all.zip(more).map(|(all, more)| &all | &more);
        }
        Some(all)
    }

    fn one(&mut self) -> Option<Chosen> {
        if self.next_is("(") {
            let inner = self.any()?;
            return self.next_is(")").then_some(inner);
        }
        let (&word, rest) = self.words.split_first()?;
        if ["OR", "AND", "WITH", ")"].contains(&word) {
            return None;
        }
        self.words = rest;
        let mut name = word.to_owned();
        if self.next_is("WITH") {
            let (&exception, rest) = self.words.split_first()?;
            self.words = rest;
            name = format!("{name} WITH {exception}");
        }
        let rank = self.allowed.iter().position(|allowed| *allowed == name);
        Some(rank.map(|rank| BTreeSet::from([rank])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_licence_is_chosen() {
        let allowed = ["Apache-2.0", "MIT", "Unicode-3.0"].map(str::to_owned);
        let chosen = |expression: &str| {
            let chosen = choose(expression, &allowed).unwrap();
            chosen.map(|set| set.into_iter().collect::<Vec<_>>().join(" + ")).unwrap_or("none".to_owned())
        };
        assert_eq!(chosen("MIT OR Apache-2.0"), "Apache-2.0");
        assert_eq!(chosen("Unlicense/MIT"), "MIT");
        assert_eq!(chosen("(MIT OR Apache-2.0) AND Unicode-3.0"), "Apache-2.0 + Unicode-3.0");
        assert_eq!(chosen("Apache-2.0 WITH LLVM-exception OR MIT"), "MIT");
        assert_eq!(chosen("MIT OR (Apache-2.0 AND GPL-3.0-only)"), "MIT");
        assert_eq!(chosen("MIT AND GPL-3.0-only"), "none");
        assert_eq!(chosen("GPL-3.0-only"), "none");
        for wrong in ["", "MIT OR", "MIT MIT", "(MIT", "MIT)", "OR MIT"] {
            assert!(choose(wrong, &allowed).is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_licences_and_sources_are_faults() {
        let allowed = ["MIT".to_owned()];
        let package = |license: &str, source: Value| serde_json::json!({"name": "a", "version": "1.0.0", "license": license, "source": source});
        assert_eq!(fault(&package("MIT", Value::Null), &allowed), None);
        let error = fault(&package("GPL-3.0-only", Value::Null), &allowed).unwrap();
        assert_eq!(error, "a 1.0.0 has the licence `GPL-3.0-only`, which deny.toml does not allow");
        assert!(fault(&package("", Value::Null), &allowed).is_some());
        let error = fault(&package("MIT", "git+https://example.org/a".into()), &allowed).unwrap();
        assert!(error.contains("is of git+https"), "{error}");
    }
}
