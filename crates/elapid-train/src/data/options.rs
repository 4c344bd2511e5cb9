//! How text is prepared.

use std::path::PathBuf;

use elapid::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The tokens around documents in the stream: a setting that overrides the tokenizer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Separator {
    /// As in the tokenizer's files ([`Tokenizer::document_prefix`], [`Tokenizer::document_suffix`]).
    #[default]
    Tokenizer,
    /// Nothing.
    None,
    /// The tokenizer's `<bos>` before each document, nothing after it.
    Bos,
    /// The tokenizer's `<eos>` after each document, nothing before it.
    Eos,
}

impl Separator {
    /// A tokenizer that puts these tokens around documents, and also before prompts, since a model reads a prompt as it read
    /// its documents. A run saves it with the model.
    ///
    /// # Errors
    /// If the tokenizer has no such token.
    pub fn apply(self, tokenizer: Tokenizer) -> Result<Tokenizer> {
        let wanted = |token, id: Option<u32>| id.ok_or(Error::Separator { token }).map(|id| vec![id]);
        let (prefix, suffix) = match self {
            Self::Tokenizer => return Ok(tokenizer),
            Self::None => (Vec::new(), Vec::new()),
            Self::Bos => (wanted("bos", tokenizer.bos())?, Vec::new()),
            Self::Eos => (Vec::new(), wanted("eos", tokenizer.eos())?),
        };
        Ok(tokenizer.with_document_prefix(prefix)?.with_document_suffix(suffix)?)
    }
}

/// Progress of tokenising.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the files done.
    pub bytes: u64,
    /// All bytes of the files, as stored.
    pub total_bytes: u64,
    /// Tokens so far.
    pub tokens: u64,
}

/// How a corpus is prepared.
pub struct Options<'a> {
    /// Directory of token caches, created if necessary; `None` keeps the tokens in memory.
    pub cache: Option<PathBuf>,
    /// The field of a `.jsonl` that has the text of a document.
    pub jsonl_field: String,
    /// Called every few megabytes while tokenising.
    pub progress: Option<&'a mut dyn FnMut(Progress)>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { cache: None, jsonl_field: JSONL_FIELD.into(), progress: None }
    }
}

/// The usual field of a `.jsonl` that has the text of a document.
pub const JSONL_FIELD: &str = "text";
