//! What a task is.

use std::fmt::Debug;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use crate::config::TaskConfig;

/// The generator that sequences are drawn with.
pub type Random = ChaCha8Rng;

/// A sequence in the making: at each position the token, and the target, [`IGNORE`](crate::data::IGNORE) where nothing is asked.
pub type Sequence = Box<dyn Iterator<Item = (u32, i32)> + Send>;

/// What is to be learned: how sequences and their answers are made.
pub trait Task: Debug + Send + Sync {
    /// Number of token ids.
    fn vocab_size(&self) -> usize;

    /// Positions of a sequence of a nominal length, which is what the literature calls the length of this task.
    ///
    /// # Errors
    /// If there is no sequence of that length: what would do, and what was got.
    fn positions(&self, length: usize) -> Result<usize, Unfit>;

    /// A sequence of [`positions`](Self::positions) positions. It draws from `random` alone.
    ///
    /// # Panics
    /// If there is no sequence of that length.
    fn sequence(&self, length: usize, random: Random) -> Sequence;

    /// Whether a token is data that must be remembered, where others are noise.
    fn is_data(&self, token: u32) -> bool;
}

/// A number that a task cannot do with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The setting, as a config has it.
    pub setting: &'static str,
    /// What would do.
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
    /// Where they are from, and what to know of them.
    pub source: &'static str,
    /// Models, each with right answers in percent by length.
    pub models: &'static [(&'static str, &'static [(usize, f64)])],
}

/// A task by name.
#[derive(Debug)]
pub struct Kind {
    /// What `--task` and `task.name` call it.
    pub name: &'static str,
    /// The settings of the paper, as a config file.
    pub settings: &'static str,
    /// What the paper reports.
    pub paper: Paper,
    /// The task with the sizes of a config.
    pub(super) make: fn(&TaskConfig) -> Result<Arc<dyn Task>, Unfit>,
}
