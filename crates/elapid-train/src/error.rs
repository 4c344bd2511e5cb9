//! What can go wrong around training, with the thing's name and the fix.

use std::io;
use std::path::{Path, PathBuf};

use elapid::files::FileError;
use elapid::tokenizer::TokenizerError;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong around training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library: model, checkpoint, kernels.
    #[error(transparent)]
    Elapid(Box<elapid::Error>),
    /// A file that is written whole or not at all.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tokenizer's file.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A configuration file or a `--set`.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A file or directory that the system refuses.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `list`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A source of text without text.
    #[error("no text in {}: {reason}", sources.join(", "))]
    NoText {
        /// Where it was looked for.
        sources: Vec<String>,
        /// Why, and what would do.
        reason: String,
    },
    /// A file, or something else, that is no text.
    #[error("{} is not text: {what}", path.display())]
    NotText {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A line of a `.jsonl` that is no document.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Text that the tokenizer cannot read.
    #[error("{}: {source}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What the tokenizer said; positions are those of the file.
        source: TokenizerError,
    },
    /// A separator of documents that the tokenizer does not have.
    #[error(
        "the tokenizer has no {token} token to put around documents; set data.separator to another, or to \"none\""
    )]
    Separator {
        /// `bos` or `eos`.
        token: &'static str,
    },
    /// Fewer tokens than a batch needs.
    #[error("{what} of {tokens} tokens is too short for {wanted}: it takes {needed}; {fix}")]
    TooShort {
        /// Which text.
        what: &'static str,
        /// What it has.
        tokens: u64,
        /// What is asked of it.
        wanted: String,
        /// The tokens that takes.
        needed: u64,
        /// What to do.
        fix: String,
    },
    /// A line of `metrics.jsonl` that is no record.
    #[error("{}:{line}: not a record of metrics: {what}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        what: String,
    },
    /// A picture that could not be drawn.
    #[error("cannot draw {what}: {reason}")]
    Plot {
        /// The chart, by its title.
        what: String,
        /// Why.
        reason: String,
    },
    /// Training that went wrong numerically.
    #[error(
        "step {step}: {what}; training stopped. {kept}. Lower train.lr, lengthen train.warmup, or lower train.clip"
    )]
    Diverged {
        /// The step that failed; nothing of it was kept.
        step: u64,
        /// The number, and where it first appeared.
        what: String,
        /// What is left to go on from.
        kept: String,
    },
    /// A directory that a run cannot have.
    #[error("{}: cannot train there: {reason}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why, and what would do.
        reason: String,
    },
    /// Files to go on from that cannot be.
    #[error("{}: cannot go on from here: {reason}", path.display())]
    Resume {
        /// The file or directory.
        path: PathBuf,
        /// Why, and what would do.
        reason: String,
    },
    /// Variables of the environment that should say which of several processes this is.
    #[error("{what}; {fix}")]
    World {
        /// What they say.
        what: String,
        /// What to do.
        fix: String,
    },
    /// Ranks that did not come together.
    #[error("rank {rank} at {place}: {reason}")]
    Meeting {
        /// This rank.
        rank: usize,
        /// Where they meet.
        place: String,
        /// Why not.
        reason: String,
    },
    /// A rank that is gone.
    #[error(transparent)]
    Lost(#[from] crate::parallel::LostRank),
    /// Ranks that do not do the same.
    #[error("ranks do not fit together: {what}")]
    Ranks {
        /// How they differ.
        what: String,
    },
    /// An argument of a library call.
    #[error("{argument}: wanted {wanted}, got {got}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// What would do.
        wanted: String,
        /// What was given.
        got: String,
    },
}

impl From<elapid::Error> for Error {
    fn from(error: elapid::Error) -> Self {
        Self::Elapid(Box::new(error))
    }
}

impl From<elapid_kernels::cuda::Error> for Error {
    fn from(error: elapid_kernels::cuda::Error) -> Self {
        elapid::Error::from(error).into()
    }
}

impl Error {
    /// For `map_err`: a system's error about a path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
