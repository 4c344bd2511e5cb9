//! Tokenising a text of any length in pieces, with the tokens of the whole.
//!
//! `tokenizers` needs about a hundred times the size of a text, so a long text is read in overlapping windows. The tokens of
//! two windows are joined inside the overlap, if that is safe:
//!
//! 1. A window begins where the tokens of the one before may be cut: between two words (the parts that the
//!    pre-tokenizer makes, which a model tokenises independently of each other), or, for BPE without a pre-tokenizer that
//!    splits, between two tokens. Whatever goes through a text from left to right is there as it was at its beginning.
//! 2. Far from both ends, where neither the beginning of the second window nor the end of the first one matters, both
//!    windows have the same tokens at the same places. The joint is one of the places between them.
//!
//! Between words this gives the tokens of the whole, provided that they depend on no text further away than the overlap. For
//! BPE between tokens: a sequence of tokens is the one that BPE gives if each pair of neighbours is what BPE gives for that
//! pair, and each pair of the joined sequence stands in one of the windows.
//!
//! Where this fails (a word longer than the overlap, a Unigram model without a pre-tokenizer, whose sums of logarithms
//! are rounded differently in a part), both windows become one, at most [`Sizes::limit`] long.

use rayon::prelude::*;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model, OffsetType, PreTokenizer};

use super::{Kind, Result, Tokenizer, TokenizerError};

/// Token ids, and how many bytes of the text each stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// From the end of the previous token to the end of this one: bytes between two tokens belong to the second, and bytes
    /// after the last token to that one. A character of several tokens belongs to the first of them.
    pub bytes: Vec<u64>,
}

impl Encoded {
    fn append(&mut self, mut other: Self) {
        self.ids.append(&mut other.ids);
        self.bytes.append(&mut other.bytes);
    }
}

/// How a text is divided, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Distance between the beginnings of windows.
    piece: usize,
    /// Overlap of a window with the next.
    overlap: usize,
    /// Distance from the ends of a window at which its tokens are trusted.
    margin: usize,
    /// The longest window, where text cannot be cut.
    limit: usize,
    /// Text that is tokenised together, on all cores.
    group: usize,
}

const SIZES: Sizes = Sizes { piece: 256 << 10, overlap: 8 << 10, margin: 1 << 10, limit: 64 << 20, group: 8 << 20 };

/// Texts up to this length are tokenised whole.
pub(super) const WHOLE: usize = SIZES.piece;

impl Sizes {
    /// No added token is longer than the overlap, so one that is cut is noticed.
    fn for_tokenizer(self, inner: &tokenizers::Tokenizer) -> Self {
        let longest = inner.get_added_tokens_decoder().values().map(|token| token.content.len()).max().unwrap_or(0);
        let margin = self.margin.max(2 * longest);
        let overlap = self.overlap.max(4 * margin);
        Self { margin, overlap, piece: self.piece.max(4 * overlap), ..self }
    }
}

/// A token, its word, and its place in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    id: u32,
    word: u32,
    start: usize,
    end: usize,
}

impl Token {
    /// The token and its place, regardless of the word.
    fn place(&self) -> (u32, usize, usize) {
        (self.id, self.start, self.end)
    }
}

/// Where text of one tokenizer can be cut.
#[derive(Clone, Copy)]
struct Cutter<'t> {
    inner: &'t tokenizers::Tokenizer,
    sizes: Sizes,
    /// Whether text may be cut between any two tokens, not between words only.
    anywhere: bool,
}

impl<'t> Cutter<'t> {
    fn new(inner: &'t tokenizers::Tokenizer, sizes: Sizes) -> Self {
        let bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        let anywhere = bpe && inner.get_pre_tokenizer().is_none_or(never_splits);
        Self { inner, sizes: sizes.for_tokenizer(inner), anywhere }
    }

    /// The tokens of a part of a document that begins at `from`.
    fn encode(&self, text: &str, from: usize) -> Result<Vec<Token>, String> {
        let message = |e: tokenizers::Error| e.to_string();
        let inner = self.inner;
        let mut parts = inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
        inner.get_pre_tokenizer().map_or(Ok(()), |split| split.pre_tokenize(&mut parts)).map_err(message)?;
        inner.get_model().tokenize_in_pretokenized(&mut parts, None).map_err(message)?;
        let encoding = parts.into_encoding(None, 0, OffsetType::Byte).map_err(message)?;
        let places = encoding.get_offsets().iter().zip(encoding.get_word_ids());
        let tokens = encoding.get_ids().iter().zip(places).map(|(&id, (&(start, end), word))| Token {
            id,
            word: word.unwrap_or(0),
            start: from + start.min(text.len()),
            end: from + end.min(text.len()),
        });
        Ok(tokens.collect())
    }

    /// Whether text may be cut before token `i`.
    fn may_cut(&self, tokens: &[Token], i: usize) -> bool {
        let (Some(before), Some(after)) = (i.checked_sub(1).and_then(|i| tokens.get(i)), tokens.get(i)) else {
            return false;
        };
        before.end <= after.start && (self.anywhere || before.word != after.word)
    }

    /// Whether text may be cut at this place.
    fn may_cut_at(&self, tokens: &[Token], place: usize) -> bool {
        let i = tokens.partition_point(|token| token.end <= place);
        self.may_cut(tokens, i) && tokens[i].start >= place
    }

    /// A place near `at` where the next window may begin, judging by the text around it.
    fn beginning(&self, text: &str, at: usize) -> usize {
        let reach = self.sizes.overlap / 2;
        let (from, to) = (floor(text, at.saturating_sub(reach)), floor(text, (at + reach).min(text.len())));
        let tokens = self.encode(&text[from..to], from).unwrap_or_default();
        let places = (1..tokens.len()).filter(|&i| self.may_cut(&tokens, i)).map(|i| tokens[i - 1].end);
        places
            .filter(|&place| place.abs_diff(at) <= reach / 2 && text.is_char_boundary(place))
            .min_by_key(|place| place.abs_diff(at))
            .unwrap_or_else(|| floor(text, at))
    }

    /// Where two windows are joined: the number of tokens before that, in each.
    fn joint(&self, first: &Window, second: &Window) -> Option<(usize, usize)> {
        let (a, b) = (first.known()?, second.known()?);
        if !self.may_cut_at(a, second.from) {
            return None;
        }
        let (from, to) = (second.from + self.sizes.margin, first.end().saturating_sub(self.sizes.margin));
        let trusted = |tokens: &[Token]| {
            let begin = tokens.iter().position(|token| token.start >= from)?;
            let len = tokens[begin..].iter().take_while(|token| token.end <= to).count();
            Some(begin..begin + len)
        };
        let (in_a, in_b) = (trusted(a)?, trusted(b)?);
        let offset = in_a.start;
        let (a, b) = (&a[in_a], &b[in_b.clone()]);
        let same_words = |i: usize| i == 0 || (a[i - 1].word == a[i].word) == (b[i - 1].word == b[i].word);
        if a.len() != b.len() || !(0..a.len()).all(|i| a[i].place() == b[i].place() && same_words(i)) {
            return None;
        }
        let i = (1..a.len()).filter(|&i| self.may_cut(a, i)).min_by_key(|i| i.abs_diff(a.len() / 2))?;
        Some((offset + i, in_b.start + i))
    }

    /// The second window again, starting where the tokens of the first one may be cut.
    fn begun_again(&self, first: &Window, second: &Window) -> Option<Window> {
        let tokens = first.known()?;
        let latest = first.end().checked_sub(self.sizes.overlap)?;
        let earliest = latest.saturating_sub(self.sizes.overlap).max(first.from + 1);
        let mut places = (1..tokens.len()).rev().filter(|&i| self.may_cut(tokens, i)).map(|i| tokens[i - 1].end);
        let from = places.find(|&place| place <= latest).filter(|&place| place >= earliest)?;
        let mut text = first.text.get(from - first.from..)?.to_owned();
        text.push_str(second.text.get(first.end() - second.from..)?);
        Some(Window { tokens: Some(self.encode(&text, from)), from, text })
    }
}

/// Whether a pre-tokenizer leaves every text as one word.
fn never_splits(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(metaspace) => !metaspace.get_split(),
        PreTokenizerWrapper::ByteLevel(byte_level) => !byte_level.use_regex,
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter().all(never_splits),
        _ => false,
    }
}

/// The last character boundary that is not after `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// A part of a document.
struct Window {
    from: usize,
    text: String,
    /// Not yet, or refused.
    tokens: Option<Result<Vec<Token>, String>>,
}

impl Window {
    fn end(&self) -> usize {
        self.from + self.text.len()
    }

    fn known(&self) -> Option<&[Token]> {
        self.tokens.as_ref()?.as_deref().ok()
    }
}

/// Turns one text into token ids, part by part, in bounded memory and on all cores.
///
/// The ids are those of [`Tokenizer::encode`] for the whole text, however it is divided.
pub struct Encoder<'t> {
    /// None for the byte tokenizer, which needs no window.
    cutter: Option<Cutter<'t>>,
    /// Text that is not in a window yet.
    text: String,
    /// The first bytes of a character.
    partial: Vec<u8>,
    /// The place of `text` in the document.
    from: usize,
    /// The last window, whose end is not trusted yet.
    pending: Option<Window>,
    /// Number of tokens of the last window that were returned.
    given: Vec<Token>,
    /// The end of the last returned token.
    end: usize,
    /// Length that the last window grows to before it is tokenised again.
    wanted: usize,
    out: Encoded,
}

impl<'t> Encoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        match &tokenizer.kind {
            Kind::Byte => Self::with(None),
            Kind::Hf(hf) => Self::with(Some(Cutter::new(hf.inner(), SIZES))),
        }
    }

    fn with(cutter: Option<Cutter<'t>>) -> Self {
        Self {
            cutter,
            text: String::new(),
            partial: Vec::new(),
            from: 0,
            pending: None,
            given: Vec::new(),
            end: 0,
            wanted: 0,
            out: Encoded::default(),
        }
    }

    /// Recommended bytes of text per call.
    pub const PART: usize = 1 << 20;

    /// Adds the next part of the text, and returns the tokens that are certain by now.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; positions are counted from the beginning of the text.
    pub fn push(&mut self, part: &[u8]) -> Result<Encoded> {
        let Some(cutter) = self.cutter else {
            self.end += part.len();
            return Ok(Encoded { ids: part.iter().map(|&byte| byte.into()).collect(), bytes: vec![1; part.len()] });
        };
        self.append(part)?;
        if self.text.len() >= cutter.sizes.group.max(2 * cutter.sizes.piece) {
            self.windows(&cutter, false)?;
        }
        Ok(std::mem::take(&mut self.out))
    }

    /// Returns the remaining tokens of the text.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self) -> Result<Encoded> {
        let Some(cutter) = self.cutter else { return Ok(Encoded::default()) };
        if !self.partial.is_empty() {
            return Err(TokenizerError::InvalidUtf8 { offset: self.from + self.text.len() });
        }
        self.windows(&cutter, true)?;
        let end = self.from + self.text.len();
        if let Some(last) = self.pending.take() {
            let last = self.tokenised(&cutter, last)?;
            let tokens = last.tokens.unwrap_or(Ok(Vec::new())).map_err(|what| TokenizerError::Encode { what })?;
            self.give(&tokens[self.given.len().min(tokens.len())..]);
        }
        if let Some(bytes) = self.out.bytes.last_mut() {
            *bytes += (end - self.end) as u64;
        }
        Ok(self.out)
    }

    /// Adds bytes, of which the last may be an incomplete character.
    fn append(&mut self, part: &[u8]) -> Result<()> {
        let joined;
        let mut bytes = part;
        if !self.partial.is_empty() {
            joined = [&std::mem::take(&mut self.partial), part].concat();
            bytes = &joined;
        }
        let (valid, rest) = match std::str::from_utf8(bytes) {
            Ok(text) => (text, &[][..]),
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                if error.error_len().is_some() {
                    let offset = self.from + self.text.len() + valid.len();
                    return Err(TokenizerError::InvalidUtf8 { offset });
                }
                (std::str::from_utf8(valid).unwrap_or_default(), rest)
            }
        };
        self.text.push_str(valid);
        self.partial = rest.to_vec();
        Ok(())
    }

    /// Tokenises and joins windows of the text so far; all of it if it is the `last`.
    fn windows(&mut self, cutter: &Cutter<'t>, last: bool) -> Result<()> {
        let Sizes { piece, overlap, .. } = cutter.sizes;
        let text = &self.text;
        // The overlap with the next window, and the text for finding the next one's beginning, are available.
        let cuts: Vec<usize> = (1..).map(|i| i * piece).take_while(|at| at + 2 * overlap < text.len()).collect();
        let mut begins: Vec<usize> = cuts.into_par_iter().map(|at| cutter.beginning(text, at)).collect();
        begins.insert(0, 0);
        let mut ranges: Vec<_> = begins.windows(2).map(|pair| pair[0]..floor(text, pair[1] + overlap)).collect();
        let rest = begins[begins.len() - 1];
        if last {
            ranges.push(rest..text.len());
        }
        let windows: Vec<Window> = ranges
            .into_par_iter()
            .map(|range| {
                let (text, from) = (text[range.clone()].to_owned(), self.from + range.start);
                Window { tokens: Some(cutter.encode(&text, from)), from, text }
            })
            .collect();
        for window in windows {
            self.join(cutter, window)?;
        }
        if !last {
            self.text.drain(..rest);
            self.from += rest;
        }
        Ok(())
    }

    fn join(&mut self, cutter: &Cutter<'t>, next: Window) -> Result<()> {
        let Some(last) = self.pending.take() else {
            self.pending = Some(next);
            return Ok(());
        };
        let mut next = next;
        let mut joint = cutter.joint(&last, &next);
        if joint.is_none()
            && last.known().is_some()
            && let Some(again) = cutter.begun_again(&last, &next)
        {
            joint = cutter.joint(&last, &again);
            next = if joint.is_some() { again } else { next };
        }
        match (joint, last.known()) {
            (Some((before, after)), Some(tokens)) if before >= self.given.len() => {
                self.give(&tokens[self.given.len()..before]);
                self.given = next.known().and_then(|tokens| tokens.get(..after)).unwrap_or_default().to_vec();
                self.wanted = 0;
                self.pending = Some(next);
            }
            _ => self.pending = Some(self.grown(cutter, last, &next)?),
        }
        Ok(())
    }

    /// Merges two windows. Lengths double, so no text is tokenised more than a few times.
    fn grown(&mut self, cutter: &Cutter<'t>, mut last: Window, next: &Window) -> Result<Window> {
        let new = last.end() - next.from;
        last.text.push_str(next.text.get(new..).unwrap_or_default());
        last.tokens = None;
        if last.text.len() > cutter.sizes.limit {
            return Err(TokenizerError::TooLong { limit: cutter.sizes.limit });
        }
        if self.wanted == 0 {
            self.wanted = 2 * last.text.len();
        }
        if last.text.len() < self.wanted {
            return Ok(last);
        }
        self.wanted = 0;
        self.tokenised(cutter, last)
    }

    /// The last window with its tokens.
    fn tokenised(&mut self, cutter: &Cutter<'t>, mut last: Window) -> Result<Window> {
        if last.tokens.is_some() {
            return Ok(last);
        }
        last.tokens = Some(cutter.encode(&last.text, last.from));
        if let Some(tokens) = last.known() {
            // Later text must not change returned tokens. It may change words, as those of quotations end far away.
            let is_kept = |(i, token): (usize, &Token)| tokens.get(i).is_some_and(|now| now.place() == token.place());
            if !self.given.iter().enumerate().all(is_kept) {
                return Err(TokenizerError::TooLong { limit: cutter.sizes.limit });
            }
        }
        Ok(last)
    }

    fn give(&mut self, tokens: &[Token]) {
        for token in tokens {
            let end = self.end.max(token.end);
            self.out.ids.push(token.id);
            self.out.bytes.push((end - self.end) as u64);
            self.end = end;
        }
    }
}

/// The tokens of a whole text.
pub(super) fn encode(tokenizer: &Tokenizer, text: &[u8]) -> Result<Encoded> {
    let mut encoder = tokenizer.encoder();
    let mut all = Encoded::default();
    for part in text.chunks(Encoder::PART) {
        all.append(encoder.push(part)?);
    }
    all.append(encoder.finish()?);
    Ok(all)
}

#[cfg(test)]
mod tests;
