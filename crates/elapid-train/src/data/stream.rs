//! Tokens in order, and where documents begin.

use std::ops::Range;
use std::sync::Arc;

use super::batch::IGNORE;
use super::store::Store;
use crate::Result;

/// A contiguous part of a tokenised text. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenStream {
    pub(super) store: Arc<Store>,
    pub(super) range: Range<u64>,
}

impl TokenStream {
    pub(super) fn whole(store: Store) -> Self {
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
    /// If the cache file can no longer be read, or became shorter.
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

    /// Bytes of the text behind these tokens, decompressed and as UTF-8, as bits per byte count them. Tokens around
    /// documents have none. `None` for tokens without a text.
    ///
    /// A token has the bytes from the end of the previous token to its own end; a character of several tokens belongs to the
    /// first of them. So the parts of a stream add up to the whole, wherever it is cut.
    ///
    /// # Errors
    /// If the cache file cannot be read.
    pub fn text_bytes(&self) -> Result<Option<u64>> {
        self.store.text_bytes(self.range.clone())
    }

    /// Fills a row: `tokens` from position `from`, targets shifted by one, resets where documents begin if `pack`.
    pub(super) fn row(
        &self,
        from: u64,
        tokens: &mut [u32],
        targets: &mut [i32],
        pack: Option<&mut [u8]>,
    ) -> Result<()> {
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
                    // The first token of a document is not predicted from another document.
                    targets[t - 1] = IGNORE;
                }
            }
        }
        Ok(())
    }
}
