//! Text as a stream of token ids, and the batches that training reads from it.
//!
//! [`Corpus::prepare`] tokenises files once into a cache, from which batches read their windows. [`Windows`] cuts a stream
//! into shuffled windows, [`Streams`] reads it in order with the state carried over. Both are pure functions of the step
//! number, so a run needs only that number to resume. [`Sequential`] covers a stream once, for evaluation.

mod ahead;
mod batch;
mod cache;
mod fingerprint;
mod options;
mod source;
mod store;
mod stream;
mod streams;
mod texts;
mod tokenise;
mod windows;

use std::path::{Path, PathBuf};

use elapid::tokenizer::Tokenizer;

pub(crate) use ahead::ahead;
pub use source::{Source, TINY_SHAKESPEARE, read_text};
pub use streams::Streams;
pub use texts::each_text;
pub use windows::{Sequential, Windows};

use crate::{Error, Result};
use source::{Found, Overlap, Part, names};
use tokenise::Plan;

pub use batch::{Batch, IGNORE};

pub use options::{JSONL_FIELD, Options, Progress, Separator};

pub use stream::TokenStream;

/// Which part of the text is held out.
#[derive(Debug, Clone, PartialEq)]
pub enum HeldOut {
    /// The last fraction of the token stream; for tiny Shakespeare, the last fraction of its bytes. 0 is none. The bytes of
    /// text on both sides of the cut are known exactly.
    Fraction(f64),
    /// A separate text.
    Sources(Vec<Source>),
}

/// A text as tokens: the part to train on and the part held out.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// To train on.
    pub train: TokenStream,
    /// Held out.
    pub val: Option<TokenStream>,
    /// Notices for the user: which files were read and how, which were not and why, and caches that were rebuilt or cannot
    /// be written.
    pub notices: Vec<String>,
}

impl Corpus {
    /// Tokenises text, or opens an existing cache.
    ///
    /// A text has the tokens that [`Tokenizer::encode`] returns for the whole of it. A cache belongs to a tokenizer and to
    /// files with their sizes and modification times. A cache that does not match, or has a wrong checksum, is rebuilt with
    /// a notice. If no cache can be written, tokens stay in memory, with a notice. Embedded text and text from a pipe is
    /// never cached. Files that are held out by name are not trained on, unless there are no others.
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

/// Training text without the held-out text, and notices about both.
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

/// The rest of `count` without the last `fraction`.
fn kept(count: u64, fraction: f64) -> u64 {
    (count as f64 * (1.0 - fraction)) as u64
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
