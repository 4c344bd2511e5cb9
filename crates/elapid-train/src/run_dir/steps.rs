//! The folders of a run's checkpoints: `resume/step-00001000`, and their temporary names.
//!
//! | name | what it is |
//! |---|---|
//! | `step-00001000` | a checkpoint, whole when it got this name |
//! | `step-00001000.partial` | one that is being written; a killed run may leave it, whole or not |
//! | `step-00001000.old` | one that a newer one has replaced, and that is being removed |
//! | `step-00001000.damaged` | one that could not be read; it stays |

use std::fs;
use std::path::{Path, PathBuf};

use super::disk;
use super::names::RESUME;
use crate::Result;

const PARTIAL: &str = "partial";
const OLD: &str = "old";
const DAMAGED: &str = "damaged";
/// The files of a checkpoint except shards.
const FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "training.safetensors",
    "stream.state",
    "time.json",
];

/// A folder that has or may have a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepDir {
    /// The step in its name.
    pub(crate) step: u64,
    pub(crate) path: PathBuf,
    /// It was not finished.
    pub(crate) partial: bool,
}

/// The path of a step's checkpoint.
pub(crate) fn path(run: &Path, step: u64) -> PathBuf {
    run.join(RESUME).join(format!("step-{step:08}"))
}

/// Its path while it is being written.
pub(crate) fn partial(run: &Path, step: u64) -> PathBuf {
    path(run, step).with_extension(PARTIAL)
}

/// All checkpoints, the furthest first; for one step, the finished one first.
pub(crate) fn all(run: &Path) -> Vec<StepDir> {
    let resume = run.join(RESUME);
    let found = |name: String| {
        let (stem, partial) = match name.split_once('.') {
            None => (name.as_str(), false),
            Some((stem, PARTIAL)) => (stem, true),
            Some(_) => return None,
        };
        let step: u64 = stem.strip_prefix("step-")?.parse().ok()?;
        let path = resume.join(&name);
        // A number written in any other way is not ours.
        (stem == format!("step-{step:08}") && path.is_dir()).then_some(StepDir { step, path, partial })
    };
    let mut all: Vec<StepDir> = disk::names(&resume).into_iter().filter_map(found).collect();
    all.sort_by_key(|dir| (std::cmp::Reverse(dir.step), dir.partial));
    all
}

/// The furthest finished checkpoint.
pub(crate) fn latest(run: &Path) -> Option<(u64, PathBuf)> {
    all(run).into_iter().find(|dir| !dir.partial).map(|dir| (dir.step, dir.path))
}

/// Renames a complete but unfinished checkpoint to its final name.
pub(crate) fn finish(partial: &Path) -> Result<PathBuf> {
    let whole = partial.with_extension("");
    if fs::symlink_metadata(&whole).is_ok() {
        remove(&whole)?;
    }
    disk::rename(partial, &whole)?;
    sync(&whole)?;
    Ok(whole)
}

/// Removes a checkpoint. It is renamed first, so that a part is never taken for a complete one; files that elapid did not
/// write stay.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let old = renamed(dir, OLD)?;
    remove_files(&old)
}

/// Keeps a checkpoint that cannot be read under another name, and returns that.
pub(crate) fn keep_damaged(dir: &Path) -> Result<PathBuf> {
    let kept = renamed(dir, DAMAGED)?;
    sync(dir)?;
    Ok(kept)
}

/// Finishes removals that killed runs had started.
pub(crate) fn remove_rest(run: &Path) -> Result<()> {
    let resume = run.join(RESUME);
    let is_old =
        |name: &String| name.starts_with("step-") && name.split_once('.').is_some_and(|(_, end)| end.starts_with(OLD));
    disk::names(&resume).iter().filter(|name| is_old(name)).try_for_each(|name| remove_files(&resume.join(name)))
}

fn renamed(dir: &Path, end: &str) -> Result<PathBuf> {
    let ends = std::iter::once(end.to_owned()).chain((2..).map(|n: u64| format!("{end}-{n}")));
    let mut names = ends.map(|end| dir.with_extension(end));
    let free = names.find(|name| fs::symlink_metadata(name).is_err()).unwrap_or_else(|| dir.with_extension(end));
    disk::rename(dir, &free)?;
    Ok(free)
}

fn remove_files(dir: &Path) -> Result<()> {
    for name in disk::names(dir) {
        let shard = name.starts_with("model-") && name.ends_with(".safetensors");
        if FILES.contains(&name.as_str()) || shard || super::is_temporary(&name) {
            disk::remove_file(&dir.join(name))?;
        }
    }
    disk::remove_empty_dir(dir)
}

fn sync(dir: &Path) -> Result<()> {
    dir.parent().map_or(Ok(()), disk::sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(run: &Path, names: &[&str]) {
        for name in names {
            let dir = run.join(RESUME).join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("time.json"), "{}").unwrap();
        }
    }

    #[test]
    fn the_furthest_comes_first() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!((all(run.path()), latest(run.path())), (vec![], None));
        let others =
            ["step-5", "step-+0000007", "step-00000004.old", "step-00000009.damaged", "step-00000003.x", "mine"];
        make(run.path(), &others);
        make(run.path(), &["step-00000010.partial", "step-00000010", "step-00000012.partial", "step-123456789"]);
        fs::write(run.path().join(RESUME).join("step-99999999"), "a file").unwrap();
        let found: Vec<(u64, bool)> = all(run.path()).into_iter().map(|dir| (dir.step, dir.partial)).collect();
        assert_eq!(found, [(123_456_789, false), (12, true), (10, false), (10, true)]);
        assert_eq!(latest(run.path()).unwrap().0, 123_456_789);
    }

    #[test]
    fn what_others_wrote_stays() {
        let run = tempfile::tempdir().unwrap();
        make(run.path(), &["step-00000001", "step-00000002"]);
        fs::write(path(run.path(), 1).join("notes.txt"), "mine").unwrap();
        remove(&path(run.path(), 1)).unwrap();
        remove(&path(run.path(), 2)).unwrap();
        assert_eq!(disk::names(&run.path().join(RESUME)), ["step-00000001.old"]);
        remove_rest(run.path()).unwrap();
        assert_eq!(disk::names(&run.path().join(RESUME).join("step-00000001.old")), ["notes.txt"]);
        // The name is taken, so another one is found.
        make(run.path(), &["step-00000001"]);
        remove(&path(run.path(), 1)).unwrap();
        assert_eq!(disk::names(&run.path().join(RESUME)), ["step-00000001.old"]);
    }

    #[test]
    fn an_unfinished_one_gets_its_name() {
        let run = tempfile::tempdir().unwrap();
        make(run.path(), &["step-00000001.partial"]);
        assert_eq!(finish(&partial(run.path(), 1)).unwrap(), path(run.path(), 1));
        assert_eq!(latest(run.path()), Some((1, path(run.path(), 1))));
        let kept = keep_damaged(&path(run.path(), 1)).unwrap();
        assert!(kept.ends_with("step-00000001.damaged") && kept.is_dir());
    }
}
