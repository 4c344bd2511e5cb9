//! Checkpoints to resume a run as if it had never stopped: `resume/step-00001000/` in the run's directory.
//!
//! Such a folder holds the model as a checkpoint, its tokenizer, the carried state of streams (`stream.state`), the seconds
//! trained (`time.json`), and `training.safetensors` ([`file`]), which is written last and has the checksums of the others.
//! The folder is written under another name, read back, and renamed; only then are older ones removed. A kill at any moment
//! leaves a complete one, which [`choose`] finds.

mod file;
mod saved;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use elapid::checkpoint::{Checkpoint, SaveOptions};
use elapid::config as model;
use elapid::models::Model;
use elapid::{LanguageModel, State};

use crate::config::{Mode, ModelConfig, TrainConfig};
use crate::optim::AdamW;
pub(crate) use crate::run_dir::steps::latest;
use crate::run_dir::steps::{self, StepDir};
use crate::run_dir::{RunDir, disk};
use crate::{Error, Result, shell_word};
use file::Problem;
pub(crate) use saved::{Identity, Position, Saved};

/// Writes a checkpoint and reads it back; then removes older ones.
pub(crate) fn save(run: &Path, saved: &Saved<'_>) -> Result<()> {
    let step = saved.position.step;
    let partial = steps::partial(run, step);
    if partial.exists() {
        // A complete one has been renamed by now.
        steps::remove(&partial)?;
    }
    disk::create_dir(&partial)?;
    saved.model.save(&partial, &SaveOptions { card: None, ..SaveOptions::default() })?;
    saved.tokenizer.map_or(Ok(()), |tokenizer| tokenizer.save(&partial))?;
    file::write(&partial, saved)?;
    disk::sync_dir(&partial)?;
    file::read(&partial, &mut |_, _| ()).map_err(|problem| {
        let error = io::Error::other(format!("{}; the disk may be failing", problem.into_error()));
        Error::io("read back", &partial)(error)
    })?;
    steps::finish(&partial)?;
    prune(run, step)
}

/// Removes all checkpoints except that of `step`, which is complete.
pub(crate) fn prune(run: &Path, step: u64) -> Result<()> {
    RunDir::has_begun(run)?;
    let keep = steps::path(run, step);
    let others = steps::all(run).into_iter().filter(|dir| dir.path != keep);
    others.into_iter().try_for_each(|dir| steps::remove(&dir.path))
}

/// Whether a folder has a complete checkpoint.
pub(crate) fn is_whole(dir: &Path) -> bool {
    file::read(dir, &mut |_, _| ()).is_ok()
}

/// A checkpoint to resume from.
pub(crate) struct Chosen {
    /// Its folder.
    path: PathBuf,
    pub(crate) position: Position,
    moments: HashMap<String, [Vec<f32>; 2]>,
    has_state: bool,
    /// Whether its best loss was measured in another way than this run measures.
    pub(crate) new_measure: bool,
    /// Notices for the user.
    pub(crate) notices: Vec<String>,
}

/// The furthest complete checkpoint. A damaged one is kept under another name if there is an older one.
///
/// # Errors
/// If there is none, or it is not from this run: other data, other sizes, or another step than in its folder's name.
pub(crate) fn choose<M: Model>(run: &Path, config: &TrainConfig, identity: &Identity) -> Result<(M, Chosen)> {
    let mut damaged: Vec<(StepDir, Error)> = Vec::new();
    for dir in steps::all(run) {
        match open(&dir, config, identity) {
            Ok((model, mut chosen)) => {
                for (dir, error) in damaged.into_iter().filter(|(dir, _)| !dir.partial) {
                    let kept = steps::keep_damaged(&dir.path)?;
                    let (name, kept) = (name(&dir.path), name(&kept));
                    let notice = format!("{error}; resuming from step {} ({name} is now {kept})", chosen.position.step);
                    chosen.notices.push(notice);
                }
                if dir.partial {
                    chosen.path = steps::finish(&dir.path)?;
                    let name = name(&chosen.path);
                    chosen
                        .notices
                        .push(format!("{name} was not renamed to its final name, but is complete: resuming from it"));
                }
                return Ok((model, chosen));
            }
            Err(Problem::Damaged(error)) => damaged.push((dir, error)),
            Err(Problem::Other(error)) => return Err(error),
        }
    }
    let first = damaged.iter().position(|(dir, _)| !dir.partial).unwrap_or(0);
    if damaged.is_empty() {
        let reason = "no checkpoint is there; start the run without --resume".into();
        return Err(Error::Resume { path: run.to_owned(), reason });
    }
    let others = damaged.len() - 1;
    Err(match (damaged.swap_remove(first).1, others) {
        (Error::Resume { path, reason }, 0) => {
            Error::Resume { path, reason: format!("{reason}; no other checkpoint is there") }
        }
        (Error::Resume { path, reason }, n) => {
            Error::Resume { path, reason: format!("{reason}; the same holds for {n} more") }
        }
        (error, _) => error,
    })
}

fn open<M: Model>(dir: &StepDir, config: &TrainConfig, identity: &Identity) -> Result<(M, Chosen), Problem> {
    let other = |reason: String| Problem::Other(Error::Resume { path: dir.path.clone(), reason });
    if let Ok(checkpoint) = Checkpoint::open(&dir.path) {
        // Checked first: other differences of another run's checkpoint follow from this one.
        check_sizes(&checkpoint.config, config).map_err(other)?;
    }
    let mut moments = HashMap::new();
    let read = file::read(&dir.path, &mut |name, both| {
        moments.insert(name.to_owned(), both);
    })?;
    if read.position.step != dir.step {
        return Err(other(format!(
            "it is the checkpoint of step {}, and its name says {}; give the folder the name that it had",
            read.position.step, dir.step
        )));
    }
    if read.identity.data != identity.data {
        return Err(other(format!(
            "the training text, the held-out text or the tokenizer is not the one that this run was begun with; bring \
             that back, or begin a new run from these weights: elapid train --from {} --output DIR",
            shell_word(&dir.path)
        )));
    }
    if config.data.mode == Mode::Streams && !read.has_state {
        let reason = "it has no stream.state, which data.mode = \"streams\" needs; go on from another checkpoint";
        return Err(other(reason.into()));
    }
    let model = Checkpoint::open(&dir.path).map_err(elapid::Error::from).and_then(|checkpoint| M::load(&checkpoint));
    let model = model.map_err(|error| Problem::damaged(&dir.path, error))?;
    let mut chosen = Chosen {
        path: dir.path.clone(),
        position: read.position,
        moments,
        has_state: read.has_state,
        new_measure: read.position.best.is_some() && read.identity.measure != identity.measure,
        notices: Vec::new(),
    };
    if read.identity.measure != identity.measure {
        let position = &mut chosen.position;
        (position.best, position.stale, position.accurate) = (None, 0, 0);
    }
    if chosen.new_measure {
        chosen.notices.push(format!(
            "held-out losses are now measured with {}, and were with {}: the first of them is the best until a lower one \
             comes",
            identity.measure, read.identity.measure
        ));
    }
    Ok((model, chosen))
}

impl Chosen {
    /// Restores the optimiser and the state of streams, of `rows` rows.
    ///
    /// # Errors
    /// If the state has another batch size.
    pub(crate) fn restore(
        mut self,
        model: &LanguageModel,
        optimiser: &mut AdamW,
        rows: usize,
    ) -> Result<Option<State>> {
        for (i, (_, param)) in model.params().iter().enumerate() {
            let moments = self.moments.remove(&param.name).unwrap_or_default();
            optimiser.set_means(i, moments)?;
        }
        optimiser.step = self.position.step;
        if !self.has_state {
            return Ok(None);
        }
        let path = self.path.join(file::STATE);
        let (state, _) = model.load_state(&path)?;
        if state.rows() != rows {
            let reason = format!("it has {} rows, but train.batch is {rows}; set train.batch back", state.rows());
            return Err(Error::Resume { path, reason });
        }
        Ok(Some(state))
    }
}

/// Checks that a checkpoint's model matches a config; the error names the setting that differs.
fn check_sizes(there: &model::ModelConfig, config: &TrainConfig) -> Result<(), String> {
    match config.model.differences(&ModelConfig::of(there)).first() {
        None => Ok(()),
        Some((key, here, there)) => Err(format!(
            "its model has {key} = {there}, and this run's {key} = {here}; it is the checkpoint of another run"
        )),
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests;
