//! Synthetic tasks: sequences whose answers follow from what was read before.
//!
//! A task makes sequences from a random generator, position by position, so that one of a million positions takes no
//! more memory than one of a hundred. Nothing is stored: sequence `i` of a [`Split`] is a function of the seed and `i`
//! ([`Sequences`]). The next task is one file with a [`Kind`], and its line in [`KINDS`].

mod copying;
mod induction_heads;
mod score;

use std::fmt::Debug;
use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use copying::Copying;
pub use induction_heads::InductionHeads;
pub use score::{Reader, Score};

use crate::config::{ConfigError, TaskConfig};
use crate::data::{Batch, IGNORE};

/// The generator that sequences are drawn with.
pub type Random = ChaCha8Rng;

/// A sequence in the making: at each position the token, and the target, [`IGNORE`] where nothing is asked.
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

impl From<Unfit> for crate::Error {
    fn from(unfit: Unfit) -> Self {
        Self::Argument { argument: unfit.setting, wanted: unfit.wanted, got: unfit.got }
    }
}

impl Unfit {
    fn check(holds: bool, setting: &'static str, wanted: impl Into<String>, got: usize) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { setting, wanted: wanted.into(), got: got.to_string() }) }
    }
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
    make: fn(&TaskConfig) -> Result<Arc<dyn Task>, Unfit>,
}

/// Figures to compare with.
#[derive(Debug)]
pub struct Paper {
    /// Where they are from, and what to know of them.
    pub source: &'static str,
    /// Models, each with right answers in percent by length.
    pub models: &'static [(&'static str, &'static [(usize, f64)])],
}

/// Every task.
pub static KINDS: [&Kind; 3] = [&copying::PLAIN, &copying::SELECTIVE, &induction_heads::KIND];

impl Kind {
    /// The task of that name.
    ///
    /// # Errors
    /// If there is none; the error names those there are.
    pub fn find(name: &str) -> Result<&'static Kind, ConfigError> {
        let known = || KINDS.map(|kind| kind.name).join(", ");
        KINDS.into_iter().find(|kind| kind.name == name).ok_or_else(|| ConfigError {
            file: "config".into(),
            line: None,
            field: "task.name".into(),
            what: format!("wanted a task, got `{name}`"),
            fix: format!("give one of {}", known()),
        })
    }
}

/// The task of a config; none if it trains on text.
///
/// # Errors
/// If there is no such task, or not with these sizes.
pub fn open(config: &TaskConfig) -> Result<Option<Arc<dyn Task>>, ConfigError> {
    if config.is_text() {
        return Ok(None);
    }
    let made = (Kind::find(&config.name)?.make)(config);
    made.map(Some).map_err(|unfit| ConfigError {
        file: "config".into(),
        line: None,
        field: unfit.setting.into(),
        what: format!("wanted {}, got {}", unfit.wanted, unfit.got),
        fix: format!("set it to {}, in the file or by --set {}=VALUE", unfit.wanted, unfit.setting),
    })
}

/// Streams of sequences that have none in common, but by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// To train on.
    Train,
    /// Held out, for the evaluations of a training run.
    HeldOut,
    /// Held out, for an evaluation afterwards.
    Test,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held out",
            Self::Test => "test",
        }
    }
}

/// The sequences of one length, of one split and seed, by number.
#[derive(Debug, Clone)]
pub struct Sequences {
    task: Arc<dyn Task>,
    length: usize,
    positions: usize,
    seed: u64,
    split: Split,
    /// Whether a batch asks for every next token too.
    next_tokens: bool,
}

impl Sequences {
    /// Sequences of a nominal length.
    ///
    /// # Errors
    /// If the task has none of that length.
    pub fn new(task: Arc<dyn Task>, length: usize, seed: u64, split: Split) -> Result<Self, Unfit> {
        let positions = task.positions(length)?;
        Ok(Self { task, length, positions, seed, split, next_tokens: false })
    }

    /// The same, but a [`batch`](Self::batch) asks for the next token where the task asks nothing.
    #[must_use]
    pub fn with_next_tokens(self, next_tokens: bool) -> Self {
        Self { next_tokens, ..self }
    }

    /// What is to be learned.
    pub fn task(&self) -> &dyn Task {
        self.task.as_ref()
    }

    /// Positions of each.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Sequence `number`: always the same.
    pub fn sequence(&self, number: u64) -> Sequence {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(&(self.length as u64).to_le_bytes());
        hasher.update(self.split.name().as_bytes());
        self.task.sequence(self.length, Random::from_seed(*hasher.finalize().as_bytes()))
    }

    /// Batch `index` of `b` rows: row `r` is sequence `index * b + r`.
    pub fn batch(&self, index: u64, b: usize) -> Batch {
        let l = self.positions;
        let mut batch = Batch { tokens: vec![0; b * l], targets: vec![IGNORE; b * l], resets: None, b, l, epoch: 0 };
        for row in 0..b {
            let number = index.wrapping_mul(b as u64).wrapping_add(row as u64);
            let (tokens, targets) = (&mut batch.tokens[row * l..][..l], &mut batch.targets[row * l..][..l]);
            fill(&mut self.sequence(number), tokens, targets);
            if self.next_tokens {
                let unasked = targets.iter_mut().zip(&tokens[1..]).filter(|(target, _)| **target == IGNORE);
                unasked.for_each(|(target, &next)| *target = next as i32);
            }
        }
        batch
    }
}

/// The next positions of a sequence.
fn fill(sequence: &mut Sequence, tokens: &mut [u32], targets: &mut [i32]) {
    for ((token, target), next) in tokens.iter_mut().zip(targets).zip(sequence) {
        (*token, *target) = next;
    }
}

#[cfg(test)]
mod tests;
