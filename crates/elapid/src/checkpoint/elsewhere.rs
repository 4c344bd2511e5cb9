//! A directory without `model.safetensors` and without an index: complete shards nevertheless, or files of another kind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::error::{CheckpointError, Result};
use super::reader::{INDEX, SINGLE};
use crate::json;

/// The single file of weights that PyTorch writes, and its index.
const PICKLE: &str = "pytorch_model.bin";
const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";

/// Which shard of how many a name is of: 2 and 3 of `model-00002-of-00003.safetensors`, with `model` before it and
/// whatever follows after the count.
fn shard(name: &str) -> Option<(&str, u32, u32)> {
    let stem = name.strip_suffix(".safetensors")?;
    let (before, after) = stem.rsplit_once("-of-")?;
    let (series, number) = before.rsplit_once('-')?;
    let total = after.split('-').next()?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
    Some((series, digits(number)?, digits(total)?))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The names of shards without an index, if there are any: all of one series, each number once.
pub(super) fn shards_without_index(dir: &Path) -> Result<Option<Vec<String>>> {
    let names = names(dir);
    let mut series: BTreeMap<(&str, u32), Vec<(u32, &String)>> = BTreeMap::new();
    for name in &names {
        if let Some((of, number, total)) = shard(name) {
            series.entry((of, total)).or_default().push((number, name));
        }
    }
    let Some(((_, total), shards)) = series.pop_first() else { return Ok(None) };
    let wrong = |wanted: String, got: String| {
        let fix = "fetch the missing files, or the index, which says which files belong together";
        Err(CheckpointError::format(&dir.display().to_string(), wanted, got, fix))
    };
    if !series.is_empty() {
        return wrong(format!("{INDEX}, or the shards of one model"), format!("shards of {}", series.len() + 1));
    }
    let numbers: BTreeSet<u32> = shards.iter().map(|(number, _)| *number).collect();
    let missing: Vec<String> = (1..=total).filter(|i| !numbers.contains(i)).take(6).map(|i| i.to_string()).collect();
    if !missing.is_empty() || shards.len() != total as usize {
        let got = match missing.as_slice() {
            [] => format!("{} files, some with one number", shards.len()),
            missing => format!("{} of them: not number {}", numbers.len(), missing.join(", ")),
        };
        return wrong(format!("{INDEX}, or all {total} shards"), got);
    }
    Ok(Some(shards.into_iter().map(|(_, name)| name.clone()).collect()))
}

/// The error for a directory without weights that elapid can read: names what is there, and how to convert it.
pub(super) fn no_weights(dir: &Path) -> CheckpointError {
    let names = names(dir);
    let shown = |name: &str| dir.join(name).display().to_string();
    let wanted = format!("{SINGLE} or {INDEX}");
    if let Some((name, pickles)) = pickles(dir, &names) {
        let fix = format!(
            "pickled files can run programs and are not read; convert with Python, in that directory: {}",
            conversion(&pickles)
        );
        return CheckpointError::format(&shown(&name), wanted, "only a pickled checkpoint", fix);
    }
    let safetensors: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    if let [one] = safetensors.as_slice() {
        let fix = format!("if it has the whole model, rename it to {SINGLE}");
        return CheckpointError::format(&dir.display().to_string(), wanted, format_args!("{one}"), fix);
    }
    const SHOWN: usize = 8;
    let mut got = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        got += &format!(" and {} more", names.len() - SHOWN);
    }
    let fix = "give the directory of a checkpoint";
    CheckpointError::format(&dir.display().to_string(), wanted, format_args!("only {got}"), fix)
}

/// Pickled weights, as a Python expression that lists their files.
enum Pickles {
    /// One file.
    One(String),
    /// The files that the index lists.
    Indexed,
    /// All shards, by their names.
    Shards,
}

/// The file to name in the error, and the files to convert.
fn pickles(dir: &Path, names: &[String]) -> Option<(String, Pickles)> {
    let has = |name: &str| names.iter().any(|other| other == name);
    if has(PICKLE) {
        return Some((PICKLE.into(), Pickles::One(PICKLE.into())));
    }
    if has(PICKLE_INDEX) {
        let index = fs::read(dir.join(PICKLE_INDEX)).ok().and_then(|bytes| json::parse(&bytes).ok());
        if index.as_ref().and_then(|index| index.get("weight_map")).is_some_and(Value::is_object) {
            return Some((PICKLE_INDEX.into(), Pickles::Indexed));
        }
    }
    if let Some(shard) = names.iter().find(|name| name.starts_with("pytorch_model-") && name.ends_with(".bin")) {
        return Some((shard.clone(), Pickles::Shards));
    }
    // Files that trainers keep beside the weights.
    const OTHERS: [&str; 5] = ["training_args", "optimizer", "scheduler", "rng_state", "scaler"];
    let weights = |name: &&String| {
        let path = Path::new(name.as_str());
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        ["bin", "pt", "pth", "ckpt"].contains(&extension) && !OTHERS.iter().any(|other| name.starts_with(other))
    };
    let one = names.iter().find(weights)?;
    Some((one.clone(), Pickles::One(one.clone())))
}

/// A command that converts pickled weights to one safetensors file each, which elapid then finds.
fn conversion(pickles: &Pickles) -> String {
    // Trainers put the weights under a key of a larger dictionary.
    let tensors = "t = torch.load(f, map_location=\"cpu\", weights_only=True); \
                   t = t.get(\"state_dict\", t.get(\"model_state_dict\", t.get(\"model\", t))); \
                   t = {k: v.clone().contiguous() for k, v in t.items() if torch.is_tensor(v)}";
    let import = "import torch; from safetensors.torch import save_file";
    // A loop cannot follow other statements on one line, but a list comprehension can.
    let each = |files: &str| {
        format!(
            "python3 -c '{import}; [save_file({{k: v.clone().contiguous() for k, v in torch.load(f, \
             map_location=\"cpu\", weights_only=True).items()}}, f.rsplit(\".\", 1)[0] + \".safetensors\") for f in \
             {files}]'"
        )
    };
    match pickles {
        Pickles::One(name) => {
            // An apostrophe would end the shell's quotes.
            let name = Value::from(name.as_str()).to_string().replace('\'', "\\u0027");
            format!("python3 -c '{import}; f = {name}; {tensors}; save_file(t, \"{SINGLE}\")'")
        }
        Pickles::Indexed => {
            each(&format!("set(__import__(\"json\").load(open(\"{PICKLE_INDEX}\"))[\"weight_map\"].values())"))
        }
        Pickles::Shards => each("__import__(\"glob\").glob(\"pytorch_model-*.bin\")"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names() {
        assert_eq!(shard("model-00002-of-00003.safetensors"), Some(("model", 2, 3)));
        assert_eq!(shard("pytorch_model-00001-of-00001.safetensors"), Some(("pytorch_model", 1, 1)));
        assert_eq!(shard("model-00002-of-00003-0123abcd.safetensors"), Some(("model", 2, 3)));
        for name in ["model.safetensors", "model-2-of-3.safetensors", "model-00002-of-00003.bin", "-of-.safetensors"] {
            assert_eq!(shard(name), None, "{name}");
        }
    }

    /// The commands name existing files.
    #[test]
    fn conversions_name_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();
        let error = || no_weights(dir.path()).to_string();
        at("training_args.bin", "");
        at("config.json", "");
        assert!(error().contains("only config.json, training_args.bin"), "{}", error());
        at("it's; exit 1.pth", "");
        assert!(error().contains(r#"f = "it\u0027s; exit 1.pth";"#), "{}", error());
        let command = error().split("directory: ").last().unwrap().to_owned();
        assert_eq!(command.matches('\'').count(), 2, "{command}");
        fs::remove_file(dir.path().join("it's; exit 1.pth")).unwrap();
        at("last.ckpt", "");
        assert!(error().contains("f = \"last.ckpt\"") && error().contains("state_dict"), "{}", error());
        at("pytorch_model-00001-of-00002.bin", "");
        assert!(error().contains("glob(\"pytorch_model-*.bin\")") && error().contains(" for f in "), "{}", error());
        // training_args.bin is not among them: weights_only refuses it.
        at(PICKLE_INDEX, "{");
        assert!(error().contains("glob(\"pytorch_model-*.bin\")"), "{}", error());
        at(PICKLE_INDEX, r#"{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}"#);
        assert!(error().contains(&format!("open(\"{PICKLE_INDEX}\")")), "{}", error());
        assert!(!error().contains("load(\"pytorch_model.bin\""));
        at(PICKLE, "");
        assert!(
            error().contains("f = \"pytorch_model.bin\"") && error().contains("\"model.safetensors\""),
            "{}",
            error()
        );
    }
}
