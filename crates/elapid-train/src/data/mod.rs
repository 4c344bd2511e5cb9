//! Text as a stream of token ids, and the batches that training reads from it.
//!
//! [`Corpus::prepare`] tokenises files once into a cache, of which batches read their windows. [`Windows`] cuts a stream into shuffled
//! windows, [`Streams`] reads it in order with the state carried over. Both are pure functions of a step number, so that
//! a run resumes with nothing but that number. [`Sequential`] covers a stream once, for evaluation.

mod ahead;
mod cache;
mod fingerprint;
mod source;
mod store;
mod streams;
mod tokenise;
mod windows;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use elapid::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

pub(crate) use ahead::ahead;
pub use source::{Source, TINY_SHAKESPEARE, read_text};
pub use streams::Streams;
pub use windows::{Sequential, Windows};

use crate::{Error, Result};
use source::{Found, Overlap, Part, names};
use store::Store;
use tokenise::Plan;

/// The target of a position that predicts nothing.
pub const IGNORE: i32 = -1;

/// Tokens to predict, and what to predict them from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[b l]`: the inputs.
    pub tokens: Vec<u32>,
    /// `[b l]`: the token after each input, [`IGNORE`] where there is none to predict.
    pub targets: Vec<i32>,
    /// `[b l]`: non-zero where the state starts anew before that position. `None`: nowhere.
    pub resets: Option<Vec<u8>>,
    /// Rows.
    pub b: usize,
    /// Positions in a row.
    pub l: usize,
    /// How often the corpus had been read through before the first row.
    pub epoch: u64,
}

impl Batch {
    /// Number of positions that predict a token.
    pub fn predictions(&self) -> usize {
        self.targets.iter().filter(|&&target| target >= 0).count()
    }
}

/// What stands around documents in the token stream: a setting that overrules the tokenizer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Separator {
    /// What the tokenizer's files say ([`Tokenizer::document_prefix`], [`Tokenizer::document_suffix`]).
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
    /// A tokenizer that puts this around documents and, since a model reads a prompt as it read its documents, before
    /// prompts. A run saves it with the model.
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

/// Which part of the text training never sees.
#[derive(Debug, Clone, PartialEq)]
pub enum HeldOut {
    /// The last part of the token stream, by fraction; of tiny Shakespeare, the last part of its bytes. 0 is none. The
    /// bytes of text on both sides of the cut are known exactly.
    Fraction(f64),
    /// Text of its own.
    Sources(Vec<Source>),
}

/// How far tokenising has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the files done.
    pub bytes: u64,
    /// All their bytes, as they are stored.
    pub total_bytes: u64,
    /// Tokens so far.
    pub tokens: u64,
}

/// How a corpus is prepared.
pub struct Options<'a> {
    /// Where token caches go; `None` keeps the tokens in memory. The directory is made if need be.
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

/// A text as tokens: the part to train on and the part held out.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// To train on.
    pub train: TokenStream,
    /// Held out.
    pub val: Option<TokenStream>,
    /// What the user should know: which files were read, and how, which were not, and why; caches that had to be made
    /// again or cannot be written.
    pub notices: Vec<String>,
}

impl Corpus {
    /// Tokenises text, or opens the cache of an earlier time.
    ///
    /// A text has the tokens that [`Tokenizer::encode`] gives for the whole of it. A cache belongs to a tokenizer and to
    /// files with their sizes and times of change. One that does not fit, or whose checksum is wrong, is made again, with
    /// a notice; where none can be written, tokens stay in memory, with a notice. Text that is embedded or comes through a
    /// pipe is never cached. Files that are held out by name are not trained on, unless there are no others.
    ///
    /// # Errors
    /// If a source is missing, unreadable, or has no text, or the tokenizer refuses it (the error has the file and the
    /// byte).
    pub fn prepare(
        train: &[Source],
        held_out: &HeldOut,
        tokenizer: &Tokenizer,
        mut options: Options<'_>,
    ) -> Result<Self> {
        let mut notices = Vec::new();
        let field = std::mem::take(&mut options.jsonl_field);
        let plan = Plan { tokenizer, field: &field };
        let mut open = |parts: &[Part], notices: &mut Vec<String>| {
            cache::open_or_make(parts, plan, &mut options, notices).map(TokenStream::whole)
        };
        let (train, val) = match held_out {
            HeldOut::Fraction(fraction) if !(0.0..1.0).contains(fraction) => {
                return Err(Error::Argument {
                    argument: "val_fraction",
                    wanted: "at least 0 and below 1".into(),
                    got: fraction.to_string(),
                });
            }
            HeldOut::Fraction(fraction) if train == [Source::TinyShakespeare] && *fraction > 0.0 => {
                let (first, last) = TINY_SHAKESPEARE.split_at(kept(TINY_SHAKESPEARE.len() as u64, *fraction) as usize);
                let part = |bytes| Part::embedded("tinyshakespeare", bytes);
                (open(&[part(first)], &mut notices)?, Some(open(&[part(last)], &mut notices)?))
            }
            HeldOut::Fraction(fraction) => {
                let found = source::find(train)?;
                notices.extend(found.summary());
                let whole = open(&found.parts, &mut notices)?;
                let (first, last) = whole.split(kept(whole.len(), *fraction));
                (first, (*fraction > 0.0).then_some(last))
            }
            HeldOut::Sources(val) => {
                let (train, val) = apart(source::find(train)?, source::find(val)?, &mut notices);
                (open(&train.parts, &mut notices)?, Some(open(&val.parts, &mut notices)?))
            }
        };
        Ok(Self { train, val, notices })
    }
}

/// Text to train on without that held out, and notices of both.
fn apart(mut train: Found, val: Found, notices: &mut Vec<String>) -> (Found, Found) {
    let overlap = train.without(&val);
    notices.extend(train.summary());
    notices.extend(val.summary().map(|line| format!("held out: {line}")));
    match overlap {
        Overlap::None => {}
        Overlap::Some(paths) => {
            notices.push(format!("held out and therefore not trained on: {}", names(&paths)));
        }
        Overlap::All(paths) => notices.push(format!(
            "trained on and held out, as there is no other text: {}; the held-out loss is that of text the model has seen",
            names(&paths)
        )),
    }
    (train, val)
}

/// What is left of `count` without the last `fraction`.
fn kept(count: u64, fraction: f64) -> u64 {
    (count as f64 * (1.0 - fraction)) as u64
}

/// A contiguous part of a tokenised text. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenStream {
    store: Arc<Store>,
    range: Range<u64>,
}

impl TokenStream {
    fn whole(store: Store) -> Self {
        let range = 0..store.len();
        Self { store: Arc::new(store), range }
    }

    /// A stream of tokens in memory; `documents` are the positions where a document begins, ascending.
    pub fn from_tokens(tokens: Vec<u32>, documents: Vec<u64>) -> Self {
        Self::whole(Store::of_ids(&tokens, documents))
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The first `at` tokens, and the others.
    pub fn split(&self, at: u64) -> (Self, Self) {
        let middle = self.range.start + at.min(self.len());
        let part = |range| Self { store: self.store.clone(), range };
        (part(self.range.start..middle), part(middle..self.range.end))
    }

    /// Copies `out.len()` tokens from position `from` on.
    ///
    /// # Errors
    /// If they are in a cache file that cannot be read any more, or became shorter.
    ///
    /// # Panics
    /// If the stream is shorter than that.
    pub fn copy(&self, from: u64, out: &mut [u32]) -> Result<()> {
        assert!(from + out.len() as u64 <= self.len(), "tokens {from}.. beyond the end {}", self.len());
        self.store.copy(self.range.start + from, out)
    }

    /// Where documents begin in a part of the stream, as positions of the stream.
    pub fn documents(&self, part: Range<u64>) -> impl Iterator<Item = u64> {
        let start = self.range.start;
        let absolute = start + part.start..(start + part.end).min(self.range.end);
        self.store.documents(absolute).iter().map(move |at| at - start)
    }

    /// Bytes of the text that was read for these tokens, decompressed and as UTF-8: what bits per byte are measured by.
    /// Tokens that stand around documents have none. `None` for tokens that are of no text.
    ///
    /// A token has the bytes from the end of the one before to its own; a character of several tokens belongs to the
    /// first of them. So the parts of a stream have the bytes of the whole, wherever it is cut.
    ///
    /// # Errors
    /// If the cache file cannot be read.
    pub fn text_bytes(&self) -> Result<Option<u64>> {
        self.store.text_bytes(self.range.clone())
    }

    /// Fills a row: `tokens` from position `from`, targets one further on, resets where documents begin if `pack`.
    fn row(&self, from: u64, tokens: &mut [u32], targets: &mut [i32], pack: Option<&mut [u8]>) -> Result<()> {
        let l = tokens.len();
        self.copy(from, tokens)?;
        let mut last = [0];
        self.copy(from + l as u64, &mut last)?;
        let next = tokens[1..].iter().chain(&last);
        // Vocabularies are far below 2^31 (`Store` checks what it reads).
        targets.iter_mut().zip(next).for_each(|(target, &id)| *target = id as i32);
        if let Some(resets) = pack {
            for at in self.documents(from..from + l as u64 + 1) {
                let t = (at - from) as usize;
                if t < l {
                    resets[t] = 1;
                }
                if t > 0 {
                    // The first token of a document is not predicted from another one.
                    targets[t - 1] = IGNORE;
                }
            }
        }
        Ok(())
    }
}

/// The directory for token caches: `ELAPID_CACHE`, else `elapid` in the user's cache directory, else `.elapid-cache`.
pub fn cache_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("ELAPID_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("elapid")))
        .or_else(|| var("LOCALAPPDATA").map(|dir| dir.join("elapid").join("cache")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache").join("elapid")))
        .unwrap_or_else(|| Path::new(".elapid-cache").to_owned())
}

#[cfg(test)]
mod tests;
