//! The trait of tasks.

use std::fmt::Debug;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use crate::config::TaskConfig;

/// The generator that sequences are drawn with.
pub type Random = ChaCha8Rng;

/// An iterator over a sequence: at each position the token and the target, [`IGNORE`](crate::data::IGNORE) where there is
/// none.
pub type Sequence = Box<dyn Iterator<Item = (u32, i32)> + Send>;

/// A task: how sequences and their answers are made.
pub trait Task: Debug + Send + Sync {
    /// Number of token ids.
    fn vocab_size(&self) -> usize;

    /// Number of positions of a sequence of a nominal length, the length of this task in the literature.
    ///
    /// # Errors
    /// If there is no sequence of that length: what is allowed, and what was given.
    fn positions(&self, length: usize) -> Result<usize, Unfit>;

    /// A sequence of [`positions`](Self::positions) positions. It draws from `random` alone.
    ///
    /// # Panics
    /// If there is no sequence of that length.
    fn sequence(&self, length: usize, random: Random) -> Sequence;

    /// Training sequence `number`, if training differs from evaluation, such as by a curriculum. It has as many positions.
    ///
    /// # Panics
    /// If there is no sequence of that length.
    fn training_sequence(&self, length: usize, _number: u64, random: Random) -> Sequence {
        self.sequence(length, random)
    }

    /// Whether a token is data that must be remembered, as opposed to noise.
    fn is_data(&self, token: u32) -> bool;
}

/// A value that a task does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The setting, by its name in a config.
    pub setting: &'static str,
    /// What is allowed.
    pub wanted: String,
    /// What was given.
    pub got: String,
}

impl Unfit {
    pub(super) fn check(holds: bool, setting: &'static str, wanted: impl Into<String>, got: usize) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { setting, wanted: wanted.into(), got: got.to_string() }) }
    }
}

/// Figures to compare with.
#[derive(Debug)]
pub struct Paper {
    /// Their source, and remarks.
    pub source: &'static str,
    /// Models, each with right answers in percent by length.
    pub models: &'static [(&'static str, &'static [(usize, f64)])],
}

/// A task by name.
#[derive(Debug)]
pub struct Kind {
    /// Its name in `--task` and `task.name`.
    pub name: &'static str,
    /// The settings of the paper, as a config file.
    pub settings: &'static str,
    /// The paper's results.
    pub paper: Paper,
    /// The task with the sizes of a config.
    pub(super) make: fn(&TaskConfig) -> Result<Arc<dyn Task>, Unfit>,
}
