//! From text to token ids and back: raw bytes, or a Hugging Face `tokenizer.json`.
//!
//! Ids of a [`Tokenizer`] are below [`Tokenizer::vocab_size`]; a model may pad its vocabulary beyond that. Decoding is
//! the concatenation of [`Tokenizer::token_bytes`], so that text can be streamed token by token
//! ([`crate::text::Utf8Stream`] puts characters together again).

mod byte;
mod hf;

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use hf::Hf;

use crate::files::{FileError, atomic_write};

/// The file's name in a model directory.
const FILE: &str = "tokenizer.json";
/// The file beside it that names the special tokens.
const CONFIG: &str = "tokenizer_config.json";

/// What may go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// There is no such file.
    #[error("{}: no tokenizer there; wanted a {FILE} or a directory that has one", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
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
    /// An id that the tokenizer does not have.
    #[error("token id {id} is not in the vocabulary of {vocab_size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// The tokenizer refused the text.
    #[error("the tokenizer refused the text: {what}")]
    Encode {
        /// What it said.
        what: String,
    },
}

/// The result of an operation on a tokenizer.
pub type Result<T, E = TokenizerError> = std::result::Result<T, E>;

/// Turns text into token ids and back.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// One id a byte, then 256 = `<bos>`, 257 = `<eos>`, 258 = `<pad>`. Text never becomes a special id.
    Byte,
    /// A tokenizer in Hugging Face's format.
    Hf(Box<Hf>),
}

impl Tokenizer {
    /// The tokenizer of bytes: 256 of them and three special ids.
    pub fn byte() -> Self {
        Self::Byte
    }

    /// Reads the tokenizer of a model directory, or a `tokenizer.json` itself.
    ///
    /// Special ids come from the files beside it (`tokenizer_config.json`, `special_tokens_map.json`, `config.json`),
    /// else from the usual names among the added tokens.
    ///
    /// # Errors
    /// If the file is missing or unreadable, is not a tokenizer, or has a decoder that does not work token by token.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
        let text = fs::read_to_string(&file).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => TokenizerError::Missing { path: path.to_owned() },
            _ => TokenizerError::Io { path: file.clone(), source },
        })?;
        let wrong = |what: String| TokenizerError::Definition { path: file.clone(), what };
        let json: Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        if byte::is_definition(&json) {
            return Ok(Self::Byte);
        }
        let beside = file.parent().unwrap_or(Path::new("."));
        let hf = Hf::new(json, |name| fs::read(beside.join(name)).ok().and_then(|b| serde_json::from_slice(&b).ok()));
        Ok(Self::Hf(Box::new(hf.map_err(wrong)?)))
    }

    /// The ids of a text, without special tokens around it.
    ///
    /// # Errors
    /// If a Hugging Face tokenizer is given bytes that are not UTF-8; the error has the byte's position.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        let bytes = text.as_ref();
        match self {
            Self::Byte => Ok(bytes.iter().map(|&byte| u32::from(byte)).collect()),
            Self::Hf(hf) => {
                let text =
                    std::str::from_utf8(bytes).map_err(|e| TokenizerError::InvalidUtf8 { offset: e.valid_up_to() })?;
                hf.encode(text).map_err(|what| TokenizerError::Encode { what })
            }
        }
    }

    /// The text of some ids: their [`token_bytes`](Self::token_bytes) one after another.
    ///
    /// The bytes of a part of a text need not be UTF-8. Tokenizers that mark word beginnings (SentencePiece) give a
    /// space before the first word.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id)?);
        }
        Ok(bytes)
    }

    /// The bytes that an id stands for. Special tokens of [`Tokenizer::Byte`] stand for none, those of a Hugging Face
    /// tokenizer for their name, and an id that the file leaves out for none.
    ///
    /// # Errors
    /// If the id is not below [`vocab_size`](Self::vocab_size).
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        let bytes = match self {
            Self::Byte => byte::token_bytes(id),
            Self::Hf(hf) => hf.token_bytes(id),
        };
        bytes.ok_or_else(|| TokenizerError::UnknownId { id, vocab_size: self.vocab_size() })
    }

    /// The largest id plus one.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Byte => byte::VOCAB_SIZE,
            Self::Hf(hf) => hf.vocab_size(),
        }
    }

    /// The id that begins a text, if the tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        match self {
            Self::Byte => Some(byte::BOS),
            Self::Hf(hf) => hf.special.bos,
        }
    }

    /// The id that ends a text, if the tokenizer has one.
    pub fn eos(&self) -> Option<u32> {
        match self {
            Self::Byte => Some(byte::EOS),
            Self::Hf(hf) => hf.special.eos,
        }
    }

    /// The id that fills up rows, if the tokenizer has one.
    pub fn pad(&self) -> Option<u32> {
        match self {
            Self::Byte => Some(byte::PAD),
            Self::Hf(hf) => hf.special.pad,
        }
    }

    /// Whether the id is a special token: one to leave out of text for people.
    pub fn is_special(&self, id: u32) -> bool {
        match self {
            Self::Byte => (byte::BOS..=byte::PAD).contains(&id),
            Self::Hf(hf) => hf.is_special(id),
        }
    }

    /// `tokenizer.json` as text.
    pub fn definition(&self) -> Cow<'_, str> {
        match self {
            Self::Byte => Cow::Owned(byte::definition().to_string()),
            Self::Hf(hf) => Cow::Borrowed(hf.definition()),
        }
    }

    /// BLAKE3 of the definition, white space apart. Token ids of two tokenizers with one fingerprint mean the same.
    pub fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(self.definition().as_bytes()).as_bytes()
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a directory, as `transformers` reads them.
    ///
    /// # Errors
    /// If a file cannot be written; the error names it.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let write = |name: &str, text: &str| atomic_write(&dir.as_ref().join(name), |w| w.write_all(text.as_bytes()));
        write(FILE, &self.definition())?;
        let mut config = serde_json::Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        for (key, id) in [("bos_token", self.bos()), ("eos_token", self.eos()), ("pad_token", self.pad())] {
            if let Some(name) = id.and_then(|id| self.token_name(id)) {
                config.insert(key.into(), name.into());
            }
        }
        write(CONFIG, &format!("{:#}\n", Value::Object(config)))?;
        Ok(())
    }

    fn token_name(&self, id: u32) -> Option<String> {
        match self {
            Self::Byte => byte::special_name(id).map(str::to_owned),
            Self::Hf(hf) => hf.token_name(id),
        }
    }
}

#[cfg(test)]
mod tests;
