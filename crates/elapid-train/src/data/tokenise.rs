//! Text to token ids, on all cores, in bounded memory.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use elapid::tokenizer::{Encoded, Encoder, Tokenizer};
use rayon::prelude::*;

use super::Progress;
use super::source::{DOCUMENT, Document, Part};
use crate::{Error, Result};

/// Documents up to this length are tokenised together, one per core; a longer one is tokenised alone, in parts.
pub(super) const SHORT: usize = 256 << 10;
/// Short documents in memory at once, in bytes.
const GROUP: usize = 8 << 20;

/// Why tokenising stopped early.
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

/// Settings of tokenising.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// The field of a `.jsonl` that has the text.
    pub(super) field: &'a str,
}

/// Where documents begin, and bytes without tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// The position of the first token of each document, ascending.
    pub(super) documents: Vec<u64>,
    /// Bytes of text without a token (such as bare white space), by the position of the next token.
    pub(super) rest: Vec<(u64, u64)>,
}

/// Receives tokens, with the number of bytes of text of each.
type Sink<'a> = &'a mut dyn FnMut(&Encoded) -> io::Result<()>;

/// Tokenises documents one after another into `sink`.
pub(super) fn tokenise(
    parts: &[Part],
    plan: Plan<'_>,
    progress: &mut dyn FnMut(Progress),
    sink: Sink<'_>,
) -> Result<Table, Stop> {
    let read = Arc::new(AtomicU64::new(0));
    let total_bytes = parts.iter().map(|part| part.len).sum();
    let mut writer = Writer::new(parts, plan, total_bytes, &read, progress, sink);
    let mut done = 0;
    for (i, part) in parts.iter().enumerate() {
        part.documents(plan.field, DOCUMENT, &read, &mut |document| match document {
            Document::Text(text) => writer.text(i, text),
            Document::Line(line, text) => writer.document(Place { part: i, line: Some(line) }, text.into_bytes()),
        })?;
        done += part.len;
        read.store(done, Ordering::Relaxed);
    }
    writer.flush()?;
    Ok(writer.table)
}

/// The location of a document.
#[derive(Clone, Copy)]
struct Place {
    part: usize,
    line: Option<u64>,
}

struct Writer<'a> {
    parts: &'a [Part],
    tokenizer: &'a Tokenizer,
    /// Short documents in the queue, and their bytes.
    group: Vec<(Place, Vec<u8>)>,
    waiting: usize,
    table: Table,
    tokens: u64,
    total_bytes: u64,
    read: &'a AtomicU64,
    progress: &'a mut dyn FnMut(Progress),
    sink: Sink<'a>,
}

impl<'a> Writer<'a> {
    fn new(
        parts: &'a [Part],
        plan: Plan<'a>,
        total_bytes: u64,
        read: &'a AtomicU64,
        progress: &'a mut dyn FnMut(Progress),
        sink: Sink<'a>,
    ) -> Self {
        Self {
            parts,
            tokenizer: plan.tokenizer,
            group: Vec::new(),
            waiting: 0,
            table: Table::default(),
            tokens: 0,
            total_bytes,
            read,
            progress,
            sink,
        }
    }

    /// Adds a document that is in memory.
    fn document(&mut self, place: Place, text: Vec<u8>) -> Result<(), Stop> {
        if text.is_empty() {
            return Ok(());
        }
        if text.len() > SHORT {
            return self.long(place, &text, &mut io::empty());
        }
        self.waiting += text.len();
        self.group.push((place, text));
        if self.waiting >= GROUP || self.group.len() >= 1 << 14 { self.flush() } else { Ok(()) }
    }

    /// Adds a document of any length.
    fn text(&mut self, part: usize, text: &mut dyn Read) -> Result<(), Stop> {
        let place = Place { part, line: None };
        let mut begin = Vec::new();
        text.take(SHORT as u64 + 1).read_to_end(&mut begin).map_err(|e| self.unreadable(place, e))?;
        if begin.len() <= SHORT { self.document(place, begin) } else { self.long(place, &begin, text) }
    }

    /// Adds a long document whose beginning was read.
    fn long(&mut self, place: Place, begin: &[u8], rest: &mut dyn Read) -> Result<(), Stop> {
        self.flush()?;
        self.begin()?;
        let mut encoder = self.tokenizer.encoder();
        let mut part = begin.to_vec();
        while !part.is_empty() {
            let encoded = encoder.push(&part).map_err(|e| self.refused(place, e))?;
            self.write(&encoded)?;
            self.report();
            part.clear();
            rest.take(Encoder::PART as u64).read_to_end(&mut part).map_err(|e| self.unreadable(place, e))?;
        }
        let encoded = encoder.finish().map_err(|e| self.refused(place, e))?;
        self.write(&encoded)?;
        self.end()
    }

    /// Tokenises and writes the queued documents.
    fn flush(&mut self) -> Result<(), Stop> {
        self.waiting = 0;
        let group = std::mem::take(&mut self.group);
        let encoded: Vec<_> = group.par_iter().map(|(_, text)| self.tokenizer.encode_counted(text)).collect();
        for ((place, text), encoded) in group.iter().zip(encoded) {
            let encoded = encoded.map_err(|e| self.refused(*place, e))?;
            self.begin()?;
            if encoded.ids.is_empty() {
                self.table.rest.push((self.tokens, text.len() as u64));
            }
            self.write(&encoded)?;
            self.end()?;
        }
        self.report();
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Stop> {
        self.table.documents.push(self.tokens);
        self.special(self.tokenizer.document_prefix())
    }

    fn end(&mut self) -> Result<(), Stop> {
        self.special(self.tokenizer.document_suffix())
    }

    fn special(&mut self, ids: &[u32]) -> Result<(), Stop> {
        let bytes = vec![0; ids.len()];
        self.write(&Encoded { ids: ids.to_vec(), bytes })
    }

    fn write(&mut self, encoded: &Encoded) -> Result<(), Stop> {
        self.tokens += encoded.ids.len() as u64;
        (self.sink)(encoded).map_err(Stop::Sink)
    }

    fn report(&mut self) {
        let bytes = self.read.load(Ordering::Relaxed).min(self.total_bytes);
        (self.progress)(Progress { bytes, total_bytes: self.total_bytes, tokens: self.tokens });
    }

    fn unreadable(&self, place: Place, error: io::Error) -> Stop {
        Stop::Error(Error::io("read", &self.parts[place.part].path)(error))
    }

    fn refused(&self, place: Place, source: elapid::tokenizer::TokenizerError) -> Stop {
        let path = self.parts[place.part].path.clone();
        Stop::Error(match place.line {
            Some(line) => Error::Line { path, line, what: source.to_string() },
            None => Error::Text { path, source },
        })
    }
}
