//! Token ids in memory or in a cache file, and how many bytes of text each stands for.

use std::ops::Range;

use elapid::files::RegularFile;
use elapid::tokenizer::{Encoded, Tokenizer};

use super::tokenise::Table;
use crate::Result;

/// Bytes of a file that are read at a time.
const WINDOW: u64 = 1 << 20;

/// The tokens of a text, and where its documents begin.
#[derive(Debug)]
pub(super) struct Store {
    tokens: Tokens,
    layout: Layout,
    table: Table,
}

#[derive(Debug)]
enum Tokens {
    Memory(Vec<u8>),
    /// In a file from byte `start` on; read on demand.
    File {
        file: RegularFile,
        start: u64,
        bytes: u64,
    },
}

/// How a token is written: its id, little-endian, and, if `counted`, the number of bytes of text that it stands for, at most
/// 255; the excess is in [`Table::rest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) width: Width,
    pub(super) counted: Counted,
}

/// How the number of bytes of text of a token is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Not at all.
    Not = 0,
    /// An id below 256 is one byte, any other none.
    Ids = 1,
    /// Stored with the token.
    Written = 2,
}

/// Bytes of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Two = 2,
    Four = 4,
}

impl Width {
    /// The smallest layout that holds every id of a vocabulary.
    pub(super) fn of(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::Two } else { Self::Four }
    }
}

impl Layout {
    /// For the tokens of a text.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let counted = if tokenizer.is_byte() { Counted::Ids } else { Counted::Written };
        Self { width: Width::of(tokenizer.vocab_size()), counted }
    }

    /// Bytes of a token in memory.
    pub(super) fn size(self) -> usize {
        self.width as usize + usize::from(self.counted == Counted::Written)
    }

    /// Appends tokens, the first at this position; excess byte counts go to `rest`.
    pub(super) fn write(self, position: u64, encoded: &Encoded, out: &mut Vec<u8>, rest: &mut Vec<(u64, u64)>) {
        out.reserve(encoded.ids.len() * self.size());
        for ((&id, &bytes), position) in encoded.ids.iter().zip(&encoded.bytes).zip(position..) {
            match self.width {
                // The vocabulary is at most 2^16: nothing is lost.
                Width::Two => out.extend_from_slice(&(id as u16).to_le_bytes()),
                Width::Four => out.extend_from_slice(&id.to_le_bytes()),
            }
            if self.counted == Counted::Written {
                let fits = bytes.min(255);
                out.push(fits as u8);
                if bytes > fits {
                    rest.push((position, bytes - fits));
                }
            }
        }
    }

    fn id(self, token: &[u8]) -> u32 {
        match (self.width, token) {
            (Width::Two, &[a, b, ..]) => u32::from(u16::from_le_bytes([a, b])),
            (Width::Four, &[a, b, c, d, ..]) => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        }
    }
}

impl Store {
    pub(super) fn memory(tokens: Vec<u8>, layout: Layout, table: Table) -> Self {
        Self { tokens: Tokens::Memory(tokens), layout, table }
    }

    /// Tokens without a text.
    pub(super) fn of_ids(ids: &[u32], documents: Vec<u64>) -> Self {
        let layout = Layout { width: Width::Four, counted: Counted::Not };
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Self::memory(bytes, layout, Table { documents, rest: Vec::new() })
    }

    /// Tokens of `bytes` bytes in a file, from byte `start` on.
    pub(super) fn file(file: RegularFile, start: u64, bytes: u64, layout: Layout, table: Table) -> Self {
        Self { tokens: Tokens::File { file, start, bytes }, layout, table }
    }

    pub(super) fn len(&self) -> u64 {
        let bytes = match &self.tokens {
            Tokens::Memory(bytes) => bytes.len() as u64,
            Tokens::File { bytes, .. } => *bytes,
        };
        bytes / self.layout.size() as u64
    }

    /// Calls `each` with the tokens of a range, in order.
    fn each(&self, range: Range<u64>, mut each: impl FnMut(&[u8])) -> Result<()> {
        let size = self.layout.size() as u64;
        let (from, to) = (range.start * size, range.end * size);
        let mut all = |bytes: &[u8]| bytes.chunks_exact(size as usize).for_each(&mut each);
        match &self.tokens {
            Tokens::Memory(bytes) => all(&bytes[from as usize..to as usize]),
            Tokens::File { file, start, .. } => {
                let part = WINDOW / size * size;
                let mut buffer = Vec::new();
                for at in (from..to).step_by(part as usize) {
                    buffer.resize(part.min(to - at) as usize, 0);
                    file.read_at(start + at, &mut buffer)?;
                    all(&buffer);
                }
            }
        }
        Ok(())
    }

    pub(super) fn copy(&self, from: u64, out: &mut [u32]) -> Result<()> {
        let (layout, range) = (self.layout, from..from + out.len() as u64);
        let mut out = out.iter_mut();
        self.each(range, |token| {
            if let Some(id) = out.next() {
                *id = layout.id(token);
            }
        })
    }

    /// The documents that begin in a range.
    pub(super) fn documents(&self, range: Range<u64>) -> &[u64] {
        let documents = &self.table.documents;
        let first = documents.partition_point(|&at| at < range.start);
        let last = documents.partition_point(|&at| at < range.end);
        &documents[first..last.max(first)]
    }

    /// Bytes of text that a range stands for, if that is known.
    pub(super) fn text_bytes(&self, range: Range<u64>) -> Result<Option<u64>> {
        let layout = self.layout;
        let mut bytes = 0;
        match layout.counted {
            Counted::Not => return Ok(None),
            Counted::Ids => self.each(range.clone(), |token| bytes += u64::from(layout.id(token) < 256))?,
            Counted::Written => self.each(range.clone(), |token| bytes += u64::from(token[layout.width as usize]))?,
        }
        // Bytes after the last token belong to the end.
        let end = if range.end == self.len() && !range.is_empty() { u64::MAX } else { range.end };
        let rest = self.table.rest.iter().filter(|(at, _)| (range.start..end).contains(at));
        Ok(Some(rest.fold(bytes, |sum, (_, bytes)| sum.saturating_add(*bytes))))
    }
}
