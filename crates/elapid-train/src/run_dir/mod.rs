//! A run's directory: checking that it is free, locking it against other runs, and cleaning up after killed runs.
//!
//! It holds the results and the model; `resume/` has the checkpoints ([`steps`]). A new run refuses a directory with
//! anything that it would replace, or moves that aside if asked to ([`contents`]). The lock ([`lock`]) is held until the run
//! ends.

mod contents;
pub(crate) mod disk;
mod lock;
mod names;
mod start;
pub(crate) mod steps;

use std::path::{Path, PathBuf};
use std::time::Duration;

use elapid::files::{atomic_write, is_temporary, remove_temporaries};

use crate::config::TrainConfig;
use crate::{Error, Result};
use lock::Lock;
use names::{BEGUN, CONFIG, RESUME};
pub use start::Start;

/// A directory that only this process writes to.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: Lock,
    /// Notices for the user.
    pub(crate) notices: Vec<String>,
}

impl RunDir {
    /// Locks the directory of a config for a run; nothing else in it is changed yet. `is_whole` tests whether an unfinished
    /// checkpoint is complete.
    ///
    /// # Errors
    /// If another run is using it; for a new run, if it holds files that the run would replace.
    pub(crate) fn claim(config: &TrainConfig, start: Start, is_whole: &dyn Fn(&Path) -> bool) -> Result<Self> {
        let path = config.output.dir.clone();
        let mut notices = Vec::new();
        Lock::check_free(&path)?;
        match start {
            Start::New => contents::check(&path, config, is_whole)?,
            Start::Resume if steps::all(&path).is_empty() => {
                let reason = "no run with a checkpoint is there; start one without --resume".into();
                return Err(Error::Resume { path, reason });
            }
            Start::Resume | Start::Overwrite => {}
        }
        disk::create_dir(&path)?;
        let lock = Lock::take(&path, &mut notices)?;
        if start == Start::New {
            // Another run may have started and ended since.
            contents::check(&path, config, is_whole)?;
        }
        Ok(Self { path, _lock: lock, notices })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Prepares it for a new run: moves files in the way aside, if allowed, and marks that there is no checkpoint yet.
    pub(crate) fn begin(&mut self, start: Start) -> Result<()> {
        if start == Start::Overwrite
            && let Some(place) = contents::move_aside(&self.path)?
        {
            self.notices.push(format!("the contents of {} are now in {}", self.path.display(), place.display()));
        }
        let resume = self.path.join(RESUME);
        disk::create_dir(&resume)?;
        atomic_write(&resume.join(BEGUN), |_| Ok(()))?;
        disk::sync_dir(&self.path)?;
        self.clean()
    }

    /// The run has a checkpoint.
    pub(crate) fn has_begun(run: &Path) -> Result<()> {
        let mark = run.join(RESUME).join(BEGUN);
        if mark.exists() { disk::remove_file(&mark) } else { Ok(()) }
    }

    /// Removes what killed runs left: temporary files, incomplete checkpoints, and replaced ones. Unfinished checkpoints
    /// that are complete were handled before.
    pub(crate) fn clean(&self) -> Result<()> {
        for dir in [self.path.clone(), self.path.join(RESUME)] {
            remove_temporaries(&dir, Duration::ZERO);
        }
        steps::remove_rest(&self.path)?;
        let partial = steps::all(&self.path).into_iter().filter(|step| step.partial);
        partial.into_iter().try_for_each(|step| steps::remove(&step.path))
    }

    /// Writes the settings, unless they are there. A file that was edited is kept under another name.
    pub(crate) fn save_config(&self, config: &TrainConfig) -> Result<()> {
        let file = self.path.join(CONFIG);
        let old = std::fs::read_to_string(&file).ok();
        if let Some(text) = old.filter(|text| !text.is_empty()) {
            match TrainConfig::parse(&text, CONFIG) {
                Ok(same) if same == *config => return Ok(()),
                Ok(other) if other.to_toml().is_ok_and(|written| written == text) => {}
                _ => {
                    let names = (1..).map(|n: u64| self.path.join(format!("config.toml.old-{n}")));
                    let free = names.into_iter().find(|name| !name.exists());
                    free.map_or(Ok(()), |free| disk::rename(&file, &free))?;
                }
            }
        }
        config.save(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
