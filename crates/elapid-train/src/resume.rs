//! What it takes to go on with a run as if it had never stopped: `resume/step-00001000/` in the run's directory.
//!
//! A directory holds the model as a checkpoint and `training.safetensors`: the optimiser's means, the carried state of
//! streams, and the numbers of [`Position`]. It is written under another name and renamed when it is whole, so that a
//! directory of this form is always a complete one.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use elapid::checkpoint::SaveOptions;
use elapid::files::{TensorFile, atomic_write};
use elapid::{LanguageModel, State};
use safetensors::tensor::{Dtype, TensorView};

use crate::optim::AdamW;
use crate::{Error, Result};

const FILE: &str = "training.safetensors";
const STATE: &str = "stream.state";
const VERSION: &str = "1";

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Position {
    /// Optimiser steps done.
    pub(crate) step: u64,
    /// Tokens trained on.
    pub(crate) tokens: u64,
    /// Seconds of training, over all sessions.
    pub(crate) seconds: f64,
    /// Lowest validation loss so far.
    pub(crate) best: Option<f64>,
    /// Validations since then.
    pub(crate) stale: u64,
    /// Validations up to the last one, in a row, that reached `train.stop_at_accuracy`.
    pub(crate) accurate: u64,
}

/// Where `step` is kept.
pub(crate) fn directory(run: &Path, step: u64) -> PathBuf {
    run.join("resume").join(format!("step-{step:08}"))
}

/// The furthest step that can be gone on from.
pub(crate) fn latest(run: &Path) -> Option<(u64, PathBuf)> {
    let entries = fs::read_dir(run.join("resume")).ok()?;
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok();
    entries.filter_map(|entry| entry.ok().map(|e| e.path())).filter_map(|path| Some((step(&path)?, path))).max()
}

/// Writes everything, then removes what older steps left.
pub(crate) fn save(
    run: &Path,
    position: &Position,
    model: &LanguageModel,
    optimiser: &AdamW,
    carried: Option<&State>,
) -> Result<()> {
    let whole = directory(run, position.step);
    let partial = whole.with_extension("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial).map_err(Error::io("make", &partial))?;
    model.save(&partial, &SaveOptions { card: None, ..SaveOptions::default() })?;
    if let Some(state) = carried {
        state.save(&partial.join(STATE), model.fingerprint()?, &[])?;
    }
    let names: Vec<String> = model.params().iter().map(|(_, param)| param.name.clone()).collect();
    let bytes: Vec<(String, Vec<u8>)> = names
        .iter()
        .zip(optimiser.means()?)
        .flat_map(|(name, [m, v])| [(format!("m.{name}"), little_endian(&m)), (format!("v.{name}"), little_endian(&v))])
        .collect();
    let path = partial.join(FILE);
    let serialised = bytes
        .iter()
        .map(|(name, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, Some(metadata(position))))
        .map_err(|error| Error::io("write", &path)(std::io::Error::other(error)))?;
    atomic_write(&path, |file| file.write_all(&serialised))?;
    remove(&whole)?;
    fs::rename(&partial, &whole).map_err(Error::io("rename", &partial))?;
    prune(run, &whole)
}

/// What [`save`] wrote.
pub(crate) fn load(dir: &Path, model: &LanguageModel, optimiser: &mut AdamW) -> Result<(Position, Option<State>)> {
    let path = dir.join(FILE);
    let wrong = |reason: String| Error::Resume { path: path.clone(), reason };
    let file = TensorFile::open(&path)?;
    let position = position(file.notes()).map_err(|field| wrong(format!("field `{field}` is missing or no number")))?;
    for (i, (_, param)) in model.params().iter().enumerate() {
        let mut means = [const { Vec::new() }; 2];
        for (prefix, mean) in ["m", "v"].into_iter().zip(&mut means) {
            let name = format!("{prefix}.{}", param.name);
            let (dtype, got) = file.shape(&name).ok_or_else(|| wrong(format!("tensor `{name}` is missing")))?;
            if dtype != Dtype::F32 || got != [param.value.len()] {
                let wanted = param.value.len();
                return Err(wrong(format!("tensor `{name}`: wanted F32 [{wanted}], got {dtype:?} {got:?}")));
            }
            *mean = file.f32(&name)?;
        }
        optimiser.set_means(i, means)?;
    }
    optimiser.step = position.step;
    let state = dir.join(STATE);
    let carried = state.is_file().then(|| model.load_state(&state)).transpose()?.map(|(state, _)| state);
    Ok((position, carried))
}

fn metadata(position: &Position) -> HashMap<String, String> {
    let mut fields = vec![
        ("version", VERSION.to_owned()),
        ("step", position.step.to_string()),
        ("tokens", position.tokens.to_string()),
        ("seconds", position.seconds.to_string()),
        ("stale", position.stale.to_string()),
        ("accurate", position.accurate.to_string()),
    ];
    fields.extend(position.best.map(|best| ("best", best.to_string())));
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn position(metadata: &HashMap<String, String>) -> std::result::Result<Position, &'static str> {
    fn field<T: std::str::FromStr>(
        metadata: &HashMap<String, String>,
        name: &'static str,
    ) -> std::result::Result<T, &'static str> {
        metadata.get(name).and_then(|value| value.parse().ok()).ok_or(name)
    }
    if metadata.get("version").is_none_or(|version| version != VERSION) {
        return Err("version");
    }
    Ok(Position {
        step: field(metadata, "step")?,
        tokens: field(metadata, "tokens")?,
        seconds: field(metadata, "seconds")?,
        stale: field(metadata, "stale")?,
        // Runs that were begun before there were tasks have none.
        accurate: field(metadata, "accurate").unwrap_or(0),
        best: metadata.contains_key("best").then(|| field(metadata, "best")).transpose()?,
    })
}

/// Only the newest step stays.
fn prune(run: &Path, keep: &Path) -> Result<()> {
    let entries = fs::read_dir(run.join("resume")).map_err(Error::io("list", run))?;
    for path in entries.filter_map(|entry| entry.ok().map(|e| e.path())).filter(|path| path != keep) {
        remove(&path)?;
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn little_endian(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}
