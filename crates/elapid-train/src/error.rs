//! Errors of training; each names what is wrong and the fix.

use std::io;
use std::path::{Path, PathBuf};

use elapid::files::FileError;
use elapid::tokenizer::TokenizerError;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library: model, checkpoint, kernels.
    #[error(transparent)]
    Elapid(Box<elapid::Error>),
    /// A file that is written completely or not at all.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tokenizer's file.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A configuration file or a `--set`.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A file or directory that the system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The attempted operation: `read`, `write`, `list`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A source of text without text.
    #[error("no text in {}: {reason}", sources.join(", "))]
    NoText {
        /// Where text was looked for.
        sources: Vec<String>,
        /// The reason and the fix.
        reason: String,
    },
    /// A file, or something else, that is not text.
    #[error("{} is not text: {what}", path.display())]
    NotText {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A line of a `.jsonl` that is not a document.
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
        /// The tokenizer's error; positions are those of the file.
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
        /// How many it has.
        tokens: u64,
        /// What needs more.
        wanted: String,
        /// How many that needs.
        needed: u64,
        /// What to do.
        fix: String,
    },
    /// A line of `metrics.jsonl` that is not a record.
    #[error("{}:{line}: not a record of metrics: {what}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's error.
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
    /// A value in training that is not finite.
    #[error(
        "step {step}: {what}; training stopped. {kept}. Lower train.lr, lengthen train.warmup, or lower train.clip"
    )]
    Diverged {
        /// The step that failed; none of its changes were kept.
        step: u64,
        /// The value, and where it first appeared.
        what: String,
        /// The checkpoint to resume from, if any.
        kept: String,
    },
    /// A directory that a run cannot use.
    #[error("{}: cannot train there: {reason}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason and the fix.
        reason: String,
    },
    /// A checkpoint that a run cannot resume from.
    #[error("{}: cannot resume from here: {reason}", path.display())]
    Resume {
        /// The file or directory.
        path: PathBuf,
        /// The reason and the fix.
        reason: String,
    },
    /// Environment variables that should name this process's rank.
    #[error("{what}; {fix}")]
    World {
        /// Their values.
        what: String,
        /// What to do.
        fix: String,
    },
    /// Ranks that could not connect.
    #[error("rank {rank} at {place}: {reason}")]
    Meeting {
        /// This rank.
        rank: usize,
        /// The address of rank 0.
        place: String,
        /// Why not.
        reason: String,
    },
    /// A rank that was lost.
    #[error(transparent)]
    Lost(#[from] crate::parallel::LostRank),
    /// Ranks with different settings or data.
    #[error("ranks do not match: {what}")]
    Ranks {
        /// How they differ.
        what: String,
    },
    /// An argument of a library call.
    #[error("{argument}: wanted {wanted}, got {got}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// What is allowed.
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
    /// For `map_err`: a system error about a path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
