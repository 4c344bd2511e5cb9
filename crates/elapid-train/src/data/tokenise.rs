//! Text to token ids, piece by piece, on all cores, in bounded memory.

use std::fs::File;
use std::io::{self, Read};

use elapid::tokenizer::{Tokenizer, TokenizerError};
use rayon::prelude::*;

use super::Progress;
use super::source::{Part, Text};
use crate::{Error, Result};

/// The longest text that is tokenised at once, in bytes.
pub(super) const PIECE: usize = 256 << 10;
/// Text in memory at once, in bytes.
const GROUP: usize = 8 << 20;

/// Why tokenising ended early.
pub(super) enum Stop {
    /// The tokens could not be written.
    Sink(io::Error),
    /// Anything else.
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A part of a document.
struct Piece {
    /// Which document.
    part: usize,
    /// Its first byte in the document.
    offset: u64,
    text: Vec<u8>,
    first: bool,
    last: bool,
}

/// Tokenises documents one after another into `sink`, and gives the positions where they begin.
pub(super) fn tokenise(
    parts: &[Part],
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
    sink: &mut dyn FnMut(&[u32]) -> io::Result<()>,
) -> Result<Vec<u64>, Stop> {
    let mut state = Progress { bytes: 0, total_bytes: parts.iter().map(|part| part.len).sum(), tokens: 0 };
    let mut documents = Vec::new();
    let mut group: Vec<Piece> = Vec::new();
    let mut flush = |group: &mut Vec<Piece>| -> Result<(), Stop> {
        let encoded: Vec<Result<Vec<u32>>> = group.par_iter().map(|piece| encode(piece, parts, tokenizer)).collect();
        for (piece, ids) in group.drain(..).zip(encoded) {
            let mut ids = ids?;
            if piece.first {
                documents.push(state.tokens);
                ids.splice(0..0, tokenizer.document_prefix().iter().copied());
            }
            if piece.last {
                ids.extend_from_slice(tokenizer.document_suffix());
            }
            state.tokens += ids.len() as u64;
            sink(&ids).map_err(Stop::Sink)?;
            state.bytes += piece.text.len() as u64;
        }
        progress(state);
        Ok(())
    };
    let mut bytes = 0;
    for (i, part) in parts.iter().enumerate() {
        pieces(part, tokenizer, &mut |offset, text, last| {
            bytes += text.len();
            // An empty document still costs something.
            group.push(Piece { part: i, offset, text, first: offset == 0, last });
            if bytes >= GROUP || group.len() >= 1 << 14 {
                bytes = 0;
                flush(&mut group)?;
            }
            Ok(())
        })?;
    }
    flush(&mut group)?;
    Ok(documents)
}

fn encode(piece: &Piece, parts: &[Part], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    tokenizer.encode(&piece.text).map_err(|source| {
        let source = match source {
            TokenizerError::InvalidUtf8 { offset } => {
                TokenizerError::InvalidUtf8 { offset: offset + piece.offset as usize }
            }
            other => other,
        };
        Error::Text { path: parts[piece.part].path.clone(), source }
    })
}

/// Cuts a document into pieces: calls `take(offset, text, is_last)`. An empty document has none.
fn pieces(
    part: &Part,
    tokenizer: &Tokenizer,
    take: &mut dyn FnMut(u64, Vec<u8>, bool) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let read = |e| Stop::Error(Error::io("read", &part.path)(e));
    let mut reader: Box<dyn Read> = match part.text {
        Text::Embedded(bytes) => Box::new(bytes),
        Text::File { .. } => Box::new(File::open(&part.path).map_err(read)?),
    };
    let mut text = Vec::new();
    let mut offset = 0;
    loop {
        // One byte more than a piece tells whether there is another.
        let room = (PIECE + 1 - text.len()) as u64;
        reader.by_ref().take(room).read_to_end(&mut text).map_err(read)?;
        if text.len() <= PIECE {
            return if text.is_empty() { Ok(()) } else { take(offset, text, true) };
        }
        let at = if tokenizer.is_byte() { PIECE } else { cut(&text[..=PIECE]) };
        let rest = text.split_off(at);
        take(offset, std::mem::replace(&mut text, rest), false)?;
        offset += at as u64;
    }
}

/// Where to cut a text so that its two parts give the tokens of the whole: before the last space or line end that stands
/// between a word and another, for there every common pre-tokenizer cuts too. In text without such a place, at the last
/// character.
fn cut(text: &[u8]) -> usize {
    let between = |space: u8| {
        let after_word = |&at: &usize| text[at] == space && text[at - 1].is_ascii_alphanumeric();
        (text.len() / 2..text.len() - 1).rev().find(|at| after_word(at) && text[at + 1].is_ascii_alphanumeric())
    };
    let character = || {
        let begins = |&at: &usize| text[at] & 0xc0 != 0x80;
        (text.len().saturating_sub(4).max(1)..text.len()).rev().find(begins).unwrap_or(text.len() - 1)
    };
    between(b' ').or_else(|| between(b'\n')).unwrap_or_else(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_before_a_space_between_words() {
        assert_eq!(cut(b"and one two three. F"), 11);
        assert_eq!(cut(b"and\none\ntwo\nthree.\n\nF"), 11);
        assert_eq!(cut("日本語日".as_bytes()), 9);
        assert_eq!(cut(b"\x80\x80\x80\x80\x80\x80"), 5, "not UTF-8: anywhere, but ahead");
        assert_eq!(cut(b"ab"), 1);
    }
}
