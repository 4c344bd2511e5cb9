//! Text as it is read, for what is learned from text before there are tokens.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Progress;
use super::source::{self, Document, Source};
use crate::{Error, Result};

/// Bytes of a piece, without the rest of its last line.
const PIECE: u64 = 1 << 20;

/// Gives all text of some sources to `take`, in pieces of about a megabyte that end at the end of a line where there is one;
/// `progress` hears of bytes read. Bytes that are not UTF-8 become replacement characters. Returns what was left out of
/// directories, as notices.
///
/// # Errors
/// If a source is missing, unreadable, or has no text; those of `take`.
pub fn each_text(
    sources: &[Source],
    jsonl_field: &str,
    progress: &mut dyn FnMut(Progress),
    take: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Vec<String>> {
    let found = source::find(sources)?;
    let read = Arc::new(AtomicU64::new(0));
    let total_bytes = found.parts.iter().map(|part| part.len).sum();
    let mut done = 0;
    for part in &found.parts {
        let unreadable = |e| Error::io("read", &part.path)(e);
        part.documents(jsonl_field, source::DOCUMENT, &read, &mut |document| {
            match document {
                Document::Line(_, text) => take(text)?,
                Document::Text(text) => {
                    let mut text = BufReader::new(text);
                    let mut piece = Vec::new();
                    loop {
                        let count = text.by_ref().take(PIECE).read_to_end(&mut piece).map_err(unreadable)?;
                        text.by_ref().take(PIECE).read_until(b'\n', &mut piece).map_err(unreadable)?;
                        if count == 0 {
                            break;
                        }
                        take(String::from_utf8_lossy(&piece).into_owned())?;
                        piece.clear();
                        progress(Progress { tokens: 0, bytes: read.load(Ordering::Relaxed), total_bytes });
                    }
                }
            }
            progress(Progress { tokens: 0, bytes: read.load(Ordering::Relaxed), total_bytes });
            Ok::<(), Error>(())
        })?;
        done += part.len;
        read.store(done, Ordering::Relaxed);
    }
    Ok(found.summary().into_iter().collect())
}
