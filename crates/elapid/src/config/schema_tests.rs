//! docs/schema.md holds: it names every key of golden/configs, and every setting that it names exists or is to come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::tests::read_toml;
use super::*;
use crate::layers::{KINDS, LayerConfig};
use crate::settings::Settings as _;

const PAGE: &str = include_str!("../../../../docs/schema.md");

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What stands under a heading of the page, up to the next of the same depth.
fn section(heading: &str) -> &'static str {
    let at = PAGE.find(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let text = &PAGE[at + 1..];
    text.find("\n## ").map_or(text, |end| &text[..end])
}

/// The words in backquotes.
fn words(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The words in the first column of the tables, and what stands beside them.
fn rows(text: &str) -> Vec<(BTreeSet<String>, &str)> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    cells.map(|(keys, place)| (words(keys), place)).collect()
}

fn keys(text: &str) -> BTreeSet<String> {
    rows(text).into_iter().flat_map(|(keys, _)| keys).collect()
}

/// The configurations by name, their keys with dots.
fn configurations() -> BTreeMap<String, BTreeSet<String>> {
    fn flatten(map: &Map<String, Value>, prefix: &str, all: &mut BTreeSet<String>) {
        for (key, value) in map {
            match value {
                Value::Object(inner) => flatten(inner, &format!("{prefix}{key}."), all),
                _ => _ = all.insert(format!("{prefix}{key}")),
            }
        }
    }
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root("golden/configs")).unwrap() {
        let path = entry.unwrap().path();
        let map: Map<String, Value> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut all = BTreeSet::new();
        flatten(&map, "", &mut all);
        found.insert(path.file_stem().unwrap().to_str().unwrap().to_owned(), all);
    }
    found
}

/// Kinds with the settings that the page says are to come.
fn to_come() -> BTreeMap<String, BTreeSet<String>> {
    let rows = rows(section("Settings to come")).into_iter().filter(|(kinds, _)| !kinds.is_empty());
    rows.map(|(kinds, settings)| (kinds.into_iter().next().unwrap(), words(settings))).collect()
}

fn is_placement(name: &str) -> bool {
    Placement::FIELDS.iter().any(|field| field.name == name)
}

fn has_setting(kind: &str, name: &str) -> bool {
    LayerConfig::of(kind).is_some_and(|layer| layer.fields().iter().any(|field| field.name == name))
}

#[test]
fn every_key_of_the_configurations_has_its_place() {
    let configurations = configurations();
    assert_eq!(configurations.len(), 27);
    let ignored = words(section("Keys that do not change the model"));
    let common = keys(section("Keys that mean the same everywhere"));
    let (mut headed, mut named) = (BTreeSet::new(), BTreeSet::new());
    for part in section("The folders").split("\n### ").skip(1) {
        let (heading, text) = part.split_once('\n').unwrap();
        let (folders, own) = (words(heading), keys(text));
        let theirs: BTreeSet<String> = folders.iter().flat_map(|folder| configurations[folder].clone()).collect();
        let missing: Vec<_> =
            theirs.iter().filter(|key| ![&ignored, &common, &own].iter().any(|keys| keys.contains(*key))).collect();
        assert!(missing.is_empty(), "{heading}: no place for {missing:?}");
        let strange: Vec<_> = own.difference(&theirs).collect();
        assert!(strange.is_empty(), "{heading}: no such key: {strange:?}");
        named.extend(theirs);
        headed.extend(folders);
    }
    assert_eq!(headed, configurations.keys().cloned().collect());
    let strange: Vec<_> = ignored.union(&common).filter(|key| !named.contains(*key)).collect();
    assert!(strange.is_empty(), "no configuration has {strange:?}");
}

#[test]
fn every_setting_named_exists_or_is_to_come() {
    let to_come = to_come();
    assert!(to_come.len() > 20);
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut seen = 0;
    for word in words(PAGE) {
        let Some((kind, name)) = word.split_once('.').filter(|(kind, name)| is_word(kind) && is_word(name)) else {
            continue;
        };
        if kind == "rope_parameters" || word == "config.json" {
            continue;
        }
        let exists = match kind {
            "model" => ModelSettings::FIELDS.iter().any(|field| field.name == name),
            _ if is_placement(name) => KINDS.contains(&kind) || to_come.contains_key(kind),
            _ => has_setting(kind, name) || to_come.get(kind).is_some_and(|settings| settings.contains(name)),
        };
        assert!(exists, "docs/schema.md names `{word}`, which does not exist and is not to come");
        seen += 1;
    }
    assert!(seen > 100);
}

#[test]
fn what_is_to_come_does_not_exist() {
    for (kind, settings) in to_come() {
        for name in settings {
            assert!(!has_setting(&kind, &name), "`{kind}.{name}` exists: strike it from docs/schema.md");
            assert!(!is_placement(&name) && name != "kind", "`{kind}.{name}` is a word of the placement");
        }
    }
}

/// The schema can say these models: only layers are missing, and their settings are those of the page.
#[test]
fn configs_to_come_lack_layers_alone() {
    let to_come = to_come();
    for name in ["falcon_h1", "minimax", "rwkv7", "zamba2"] {
        let text = fs::read_to_string(root(&format!("configs/to-come/{name}.toml"))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        let mut missing = BTreeSet::new();
        for (layer, settings) in table["model"]["layer"].as_table().unwrap() {
            let kind = settings.get("kind").map_or(layer.as_str(), |kind| kind.as_str().unwrap());
            for key in settings.as_table().unwrap().keys().filter(|key| *key != "kind" && !is_placement(key)) {
                let known = has_setting(kind, key) || to_come.get(kind).is_some_and(|all| all.contains(key));
                assert!(known, "{name}: `{kind}.{key}` is neither a setting nor to come");
            }
            if !KINDS.contains(&kind) {
                missing.insert(kind.to_owned());
            }
        }
        match read_toml(&text) {
            Ok(_) => assert!(missing.is_empty(), "{name}"),
            // A setting of a kind that exists.
            Err(problem) if missing.is_empty() => {
                let named = to_come.values().flatten().any(|setting| problem.field.ends_with(setting));
                assert!(named, "{name}: {problem:?}");
            }
            Err(problem) => {
                let said = problem.what.split_once("; there are ").unwrap();
                assert!(problem.what.contains("no kind"), "{name}: {problem:?}");
                assert_eq!(words(said.0), missing, "{name}");
                assert_eq!(said.1, KINDS.join(", "), "{name}");
            }
        }
    }
}
