//! The contents of a directory that a run wants to use.

use std::fs;
use std::path::{Path, PathBuf};

use super::names::{BEGUN, CONFIG, RESUME};
use super::{disk, steps};
use crate::config::TrainConfig;
use crate::{Error, Result};

/// Files that a run writes besides the model.
const RESULTS: [&str; 6] = [CONFIG, "metrics.jsonl", "loss.png", "loss.svg", "accuracy.png", "accuracy.svg"];
/// Files of a model besides its weights.
const MODEL: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
/// Names in a message.
const SHOWN: usize = 8;

/// Checks that a new run may write to a directory without replacing anything that is not its own.
///
/// # Errors
/// If the directory holds a run with a checkpoint, a model, or results of another run; the error names them.
pub(super) fn check(dir: &Path, config: &TrainConfig, is_whole: &dyn Fn(&Path) -> bool) -> Result<()> {
    let refused = |reason: String| Err(Error::Directory { path: dir.to_owned(), reason });
    match fs::metadata(dir) {
        Ok(data) if !data.is_dir() => return refused("it is no directory; choose another by --output".into()),
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    let whole = |step: &steps::StepDir| !step.partial || is_whole(&step.path);
    if let Some(step) = steps::all(dir).into_iter().find(whole) {
        return refused(format!(
            "it holds a run at step {}; go on with it by --resume, choose another directory by --output, or move that \
             run into {} by --overwrite",
            step.step,
            free_place(dir).display()
        ));
    }
    let written = fs::read_to_string(dir.join(CONFIG)).ok();
    let same_text = written.as_deref() == Some(config.to_toml()?.as_str());
    // Such a run stopped before its first checkpoint; this run rewrites what it left.
    if dir.join(RESUME).join(BEGUN).is_file() {
        let other = written.map(|text| TrainConfig::parse(&text, CONFIG)).transpose().ok();
        let differences = match other {
            Some(None) => return Ok(()),
            Some(Some(old)) => anywhere(config).differences(&anywhere(&old))?,
            None => vec!["it cannot be read".into()],
        };
        if differences.is_empty() {
            return Ok(());
        }
        return refused(format!(
            "it holds a run that has no checkpoint and other settings (here {}); choose another directory by --output, \
             or move that run into {} by --overwrite",
            list(&differences),
            free_place(dir).display()
        ));
    }
    let others: Vec<String> = in_the_way(dir).into_iter().filter(|name| !(same_text && name == CONFIG)).collect();
    if others.is_empty() {
        return Ok(());
    }
    refused(format!(
        "it holds {}, which this run did not write and would replace; choose another directory by --output, or move them \
         into {} by --overwrite",
        list(&others),
        free_place(dir).display()
    ))
}

/// Moves everything in the way of a new run into a new folder, and returns that.
pub(super) fn move_aside(dir: &Path) -> Result<Option<PathBuf>> {
    let names = in_the_way(dir);
    if names.is_empty() {
        return Ok(None);
    }
    let place = free_place(dir);
    disk::create_dir(&place)?;
    for name in names {
        disk::rename(&dir.join(&name), &place.join(&name))?;
    }
    disk::sync_dir(&place)?;
    disk::sync_dir(dir)?;
    Ok(Some(place))
}

/// An unused name for the folder.
fn free_place(dir: &Path) -> PathBuf {
    let places = (1..).map(|n: u64| dir.join(format!("old-{n}")));
    places.into_iter().find(|place| fs::symlink_metadata(place).is_err()).unwrap_or_else(|| dir.join("old"))
}

/// Files that a run would replace, and files of a model.
fn in_the_way(dir: &Path) -> Vec<String> {
    let is_in_the_way = |name: &String| {
        RESULTS.contains(&name.as_str())
            || MODEL.contains(&name.as_str())
            || is_weights(name)
            || (name == RESUME && !is_empty(&dir.join(name)))
    };
    disk::names(dir).into_iter().filter(is_in_the_way).collect()
}

/// Whether a name is one of weights, complete or in shards, or of their index.
fn is_weights(name: &str) -> bool {
    [".safetensors", ".safetensors.index.json", ".bin.index.json"].iter().any(|end| name.ends_with(end))
        || (name.starts_with("pytorch_model") && name.ends_with(".bin"))
}

/// Whether a folder has only files that a run killed at its start may have left.
fn is_empty(dir: &Path) -> bool {
    dir.is_dir() && disk::names(dir).iter().all(|name| super::is_temporary(name))
}

/// The settings without paths, which may be written in several ways.
fn anywhere(config: &TrainConfig) -> TrainConfig {
    let mut config = config.clone();
    config.output = Default::default();
    config.data.cache = "none".into();
    config
}

fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
