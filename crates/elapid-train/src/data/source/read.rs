//! The documents of a file: decompressed, decoded and split.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde_json::{Map, Value};

use super::form::{Coding, Packing};
use super::part::{Part, Text};
use crate::{Error, Result};

/// Maximum size in bytes of a document in a compressed file, a pipe, or a line. A plain file has no limit.
pub(in crate::data) const DOCUMENT: u64 = 1 << 30;

/// One document.
pub(in crate::data) enum Document<'a> {
    /// A reader, to be read to its end.
    Text(&'a mut dyn Read),
    /// The text of a line, counted from 1.
    Line(u64, String),
}

impl Part {
    /// Calls `take` for every document. `count` grows by the bytes read from the file. No document has more than `limit`
    /// bytes, except a plain file.
    ///
    /// # Errors
    /// Those of `take`; if the file cannot be read, or a line is not an object with text in `field`.
    pub(in crate::data) fn documents<E: From<Error>>(
        &self,
        field: &str,
        limit: u64,
        count: &Arc<AtomicU64>,
        take: &mut dyn FnMut(Document<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let io = |e| E::from(Error::io("read", &self.path)(e));
        let bytes = self.unpacked(Some(count.clone())).map_err(io)?;
        let mut text = decoded(bytes, self.form.coding).map_err(io)?;
        if !self.form.lines {
            let bounded = self.form.packing != Packing::None;
            return take(Document::Text(&mut Bounded {
                inner: text,
                left: if bounded { limit } else { u64::MAX },
                limit,
            }));
        }
        let mut lines = BufReader::with_capacity(1 << 20, &mut *text);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if lines.by_ref().take(limit + 1).read_until(b'\n', &mut line).map_err(io)? == 0 {
                break;
            }
            if line.len() as u64 > limit {
                return Err(io(too_long(limit)));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let wrong = |what| Error::Line { path: self.path.clone(), line: number, what };
            take(Document::Line(number, text_of(&line, field).map_err(wrong)?))?;
        }
        Ok(())
    }

    /// All of it as one text of at most `limit` bytes.
    pub(super) fn whole(&self, limit: u64) -> Result<Vec<u8>> {
        let io = |e| Error::io("read", &self.path)(e);
        let mut text = Vec::new();
        let inner = self.unpacked(None).and_then(|bytes| decoded(bytes, self.form.coding)).map_err(io)?;
        Bounded { inner, left: limit, limit }.read_to_end(&mut text).map_err(io)?;
        Ok(text)
    }

    /// Its bytes, decompressed.
    pub(super) fn unpacked(&self, count: Option<Arc<AtomicU64>>) -> io::Result<Box<dyn BufRead + Send>> {
        let inner: Box<dyn Read + Send> = match &self.text {
            Text::Embedded(bytes) => Box::new(*bytes),
            Text::Memory(bytes) => Box::new(Cursor::new(bytes.clone())),
            // Bytes appended to the file from now on are not read.
            Text::File { .. } => Box::new(File::open(&self.path)?.take(self.len)),
        };
        let bytes = BufReader::with_capacity(64 << 10, Counted { inner, count });
        Ok(match self.form.packing {
            Packing::None => Box::new(bytes),
            Packing::Gzip => Box::new(BufReader::with_capacity(64 << 10, MultiGzDecoder::new(bytes))),
            Packing::Zstd => Box::new(BufReader::with_capacity(64 << 10, Zstd::new(bytes))),
        })
    }
}

/// Everything that comes through a pipe.
pub(super) fn pipe(path: &Path) -> Result<Arc<[u8]>> {
    let io = |e| Error::io("read", path)(e);
    let mut bytes = Vec::new();
    let inner = Box::new(File::open(path).map_err(io)?);
    Bounded { inner, left: DOCUMENT, limit: DOCUMENT }.read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes.into())
}

/// The text in a line of JSON.
fn text_of(line: &[u8], field: &str) -> Result<String, String> {
    let mut object: Map<String, Value> = serde_json::from_slice(line)
        .map_err(|e| format!("wanted a JSON object such as {{\"{field}\": \"…\"}}: {e}"))?;
    match object.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("wanted text in the field `{field}`, got {}", kind_of(&other))),
        None => {
            let has: Vec<String> = object.keys().take(8).map(|key| format!("`{key}`")).collect();
            let has = if has.is_empty() { "nothing".into() } else { has.join(", ") };
            Err(format!("no field `{field}`; it has {has} (data.jsonl_field names the one with the text)"))
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn too_long(limit: u64) -> io::Error {
    let limit = if limit >= 1 << 20 { format!("{} MiB", limit >> 20) } else { format!("{limit} bytes") };
    let fix = "decompress it to a plain file, which may have any length, or divide it into several documents";
    io::Error::new(io::ErrorKind::InvalidData, format!("one document of it has over {limit} of text; {fix}"))
}

/// Counts the bytes read.
struct Counted<R> {
    inner: R,
    count: Option<Arc<AtomicU64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.count.iter().for_each(|count| _ = count.fetch_add(n as u64, Ordering::Relaxed));
        Ok(n)
    }
}

/// Fails when more than the limit is read.
struct Bounded {
    inner: Box<dyn Read + Send>,
    left: u64,
    limit: u64,
}

impl Read for Bounded {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| too_long(self.limit))?;
        Ok(n)
    }
}

/// zstd frames one after another.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    begun: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), begun: false }
    }

    /// Starts the next frame; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < length.into() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(invalid(error)),
            }
        }
        Ok(false)
    }

    fn check(&self) -> io::Result<()> {
        let (written, found) = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
        if written.is_some() && written != found {
            return Err(invalid("its checksum is wrong"));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if self.begun {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let blocks = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.source, blocks).map_err(invalid)?;
                }
                let n = self.decoder.read(out)?;
                if n > 0 {
                    return Ok(n);
                }
                self.check()?;
            }
            self.begun = self.next_frame()?;
            if !self.begun {
                return Ok(0);
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A reader of bytes in this encoding as UTF-8 without a byte order mark.
fn decoded(mut bytes: Box<dyn BufRead + Send>, coding: Coding) -> io::Result<Box<dyn Read + Send>> {
    let mark = match coding {
        Coding::Plain => 0,
        Coding::Marked => 3,
        Coding::Utf16Le | Coding::Utf16Be => 2,
    };
    bytes.read_exact(&mut [0; 3][..mark])?;
    Ok(match coding {
        Coding::Plain | Coding::Marked => bytes,
        Coding::Utf16Le => Box::new(Utf16 { inner: bytes, at: 2, unit: u16::from_le_bytes, text: Cursor::default() }),
        Coding::Utf16Be => Box::new(Utf16 { inner: bytes, at: 2, unit: u16::from_be_bytes, text: Cursor::default() }),
    })
}

/// UTF-16 read as UTF-8.
struct Utf16 {
    inner: Box<dyn BufRead + Send>,
    /// Bytes read.
    at: u64,
    unit: fn([u8; 2]) -> u16,
    /// Decoded text that was not yet returned.
    text: Cursor<String>,
}

impl Utf16 {
    fn unit(&mut self) -> io::Result<Option<u16>> {
        if self.inner.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut pair = [0; 2];
        self.inner.read_exact(&mut pair).map_err(|_| invalid("UTF-16 that ends in half a character"))?;
        self.at += 2;
        Ok(Some((self.unit)(pair)))
    }

    fn character(&mut self) -> io::Result<Option<char>> {
        let at = self.at;
        let Some(first) = self.unit()? else { return Ok(None) };
        let second = if (0xd800..0xdc00).contains(&first) { self.unit()? } else { None };
        match char::decode_utf16([first].into_iter().chain(second)).next() {
            Some(Ok(c)) => Ok(Some(c)),
            _ => Err(invalid(format!("not UTF-16 at byte {at}: half of a surrogate pair"))),
        }
    }
}

impl Read for Utf16 {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.text.position() == self.text.get_ref().len() as u64 {
            let mut text = String::new();
            while text.len() < 32 << 10 {
                let Some(c) = self.character()? else { break };
                text.push(c);
            }
            self.text = Cursor::new(text);
        }
        self.text.read(out)
    }
}
