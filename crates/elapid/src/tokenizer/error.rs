//! Errors of tokenizers.

use std::path::PathBuf;

use crate::files::FileError;

/// The file's name in a model directory.
pub(super) const FILE: &str = "tokenizer.json";

/// Errors of tokenizers.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// There is no such file.
    #[error("{}: no tokenizer there; wanted a {FILE} or a directory that has one", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not a tokenizer, or one that elapid cannot use.
    #[error("{}: {what}", path.display())]
    Definition {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Text for a tokenizer of characters is not UTF-8.
    #[error(
        "the text is not UTF-8 at byte {offset}, and this tokenizer reads characters; convert the text, or use the byte \
         tokenizer, which takes any bytes"
    )]
    InvalidUtf8 {
        /// The first byte that is not part of a character, counted from the beginning of the text.
        offset: usize,
    },
    /// The tokenizer's decoder refused the tokens.
    #[error("the tokenizer cannot decode the tokens: {what}")]
    Decode {
        /// Its error.
        what: String,
    },
    /// Text that cannot be tokenised in parts, and is too long to tokenise as a whole.
    #[error(
        "this tokenizer gives a part of the text other tokens than the whole, and over {} MiB of it cannot be read at once; \
         divide it into several files, or into the lines of a .jsonl",
        limit >> 20
    )]
    TooLong {
        /// Maximum bytes that can be read at once.
        limit: usize,
    },
    /// No tokenizer was made from a text.
    #[error("no tokenizer was made: {what}")]
    Train {
        /// Why.
        what: String,
    },
    /// The tokenizer refused the text.
    #[error("the tokenizer refused the text: {what}")]
    Encode {
        /// Its error.
        what: String,
    },
}

/// The result of an operation on a tokenizer.
pub type Result<T, E = TokenizerError> = std::result::Result<T, E>;
