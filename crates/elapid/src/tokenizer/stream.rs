//! Streaming the text of tokens.

use super::decoder::Chain;
use super::{Kind, Result, SpecialTokens, Tokenizer, TokenizerError, byte};
use crate::text::Utf8Stream;

/// The text of tokens that arrive one after another. The pieces joined are what [`Tokenizer::decode`] returns for all
/// tokens at once, and no piece ends within a character.
///
/// ```
/// use elapid::tokenizer::{SpecialTokens, Tokenizer};
///
/// let tokenizer = Tokenizer::byte();
/// let mut stream = tokenizer.stream(SpecialTokens::Skip);
/// let mut text = String::new();
/// for id in tokenizer.encode("naïve")? {
///     text += &stream.push(id)?; // "n", "a", "", "ï", "v", "e"
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "naïve");
/// # Ok::<_, elapid::tokenizer::TokenizerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    special: SpecialTokens,
    decoder: Decoder,
    /// The part of the earlier tokens' text that was not certain when they ended.
    known: String,
}

#[derive(Debug, Clone)]
enum Decoder {
    Bytes(Utf8Stream),
    Chain(Chain),
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, special: SpecialTokens) -> Self {
        let decoder = match &tokenizer.kind {
            Kind::Byte => Decoder::Bytes(Utf8Stream::new()),
            Kind::Hf(hf) => Decoder::Chain(hf.decoder()),
        };
        Self { tokenizer, special, decoder, known: String::new() }
    }

    /// Starts after these tokens: pushed tokens continue their text, including a leading space if the continuation has one.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn after(mut self, ids: &[u32]) -> Result<Self> {
        for &id in ids {
            self.push(id)?;
        }
        self.known = self.clone().finish()?;
        Ok(self)
    }

    /// Adds a token and returns the text that later tokens can no longer change. An id without a token, such as one that
    /// pads the vocabulary, has no text.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let show = self.special == SpecialTokens::Show;
        let mut text = String::new();
        match (&mut self.decoder, &self.tokenizer.kind) {
            (Decoder::Bytes(utf8), _) => match byte::special_name(id) {
                Some(name) if show => text = utf8.push(name.as_bytes()),
                _ => text = u8::try_from(id).map(|byte| utf8.push(&[byte])).unwrap_or_default(),
            },
            (Decoder::Chain(chain), Kind::Hf(hf)) => {
                if let Some(token) = hf.token(id, show) {
                    chain.push(token, &mut text).map_err(|what| TokenizerError::Decode { what })?;
                }
            }
            (Decoder::Chain(_), Kind::Byte) => {}
        }
        Ok(self.new_part(text))
    }

    /// Ends the text and returns what was held back. An incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self) -> Result<String> {
        let mut text = String::new();
        match std::mem::replace(&mut self.decoder, Decoder::Bytes(Utf8Stream::new())) {
            Decoder::Bytes(mut utf8) => text = utf8.finish(),
            Decoder::Chain(chain) => chain.finish(&mut text).map_err(|what| TokenizerError::Decode { what })?,
        }
        Ok(self.new_part(text))
    }

    /// A text without the part that earlier tokens already had.
    fn new_part(&mut self, mut text: String) -> String {
        if self.known.is_empty() {
            return text;
        }
        let pairs = self.known.chars().zip(text.chars());
        let same: usize = pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        if same == text.len() {
            self.known.drain(..same);
        } else {
            self.known.clear();
        }
        text.split_off(same)
    }
}
