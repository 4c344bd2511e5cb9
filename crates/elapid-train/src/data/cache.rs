//! The token cache: a file that is either right or made again.
//!
//! Little-endian. A header of 128 bytes: magic `elapidtk`, `u32` version, `u32` bytes an id (2 or 4), `u64` ids, `u64`
//! documents, 32 bytes tokenizer fingerprint, 32 bytes source fingerprint, 32 bytes BLAKE3 of everything after the header
//! and then of its first 96 bytes. Then the ids, then a `u64` for the first token of each document.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use elapid::files::{FileError, RegularFile, atomic_write};
use elapid::tokenizer::Tokenizer;

use super::source::{Part, Text};
use super::store::{Store, Width};
use super::tokenise::{PIECE, Stop, tokenise};
use super::{Options, Progress};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"elapidtk";
/// Of the layout and of the way text is cut: raised when either changes.
const VERSION: u32 = 2;
const HEADER: usize = 128;
/// The header without its checksum.
const FIELDS: usize = 96;

/// Opens the cache of some documents, or tokenises them.
pub(super) fn open_or_make(
    parts: &[Part],
    tokenizer: &Tokenizer,
    options: &mut Options<'_>,
    notices: &mut Vec<String>,
) -> Result<Store> {
    let mut ignore = |_| ();
    let cache = options.cache.as_deref().filter(|_| parts.iter().any(|part| matches!(part.text, Text::File { .. })));
    let Some(dir) = cache else {
        let mut ids = Vec::new();
        let progress = options.progress.as_deref_mut().unwrap_or(&mut ignore);
        let documents = tokenise(parts, tokenizer, progress, &mut |part| {
            ids.extend_from_slice(part);
            Ok(())
        });
        return match documents {
            Ok(documents) => Ok(Store::memory(ids, documents)),
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Sink(source)) => Err(Error::Io { doing: "write", path: "memory".into(), source }),
        };
    };
    let wanted = Wanted::new(parts, tokenizer);
    let path = dir.join(wanted.file_name(parts));
    match read(&path, &wanted) {
        Ok(store) => return Ok(store),
        Err(Unusable::Absent) => {}
        Err(Unusable::Because(reason)) => {
            notices.push(format!("token cache {}: {reason}; tokenising again", path.display()));
        }
    }
    fs::create_dir_all(dir).map_err(Error::io("write", dir))?;
    let progress = options.progress.as_deref_mut().unwrap_or(&mut ignore);
    write(&path, &wanted, parts, tokenizer, progress)?;
    read(&path, &wanted).map_err(|unusable| Error::Io {
        doing: "read",
        path: path.clone(),
        source: io::Error::other(match unusable {
            Unusable::Absent => "it vanished after it was written".to_owned(),
            Unusable::Because(reason) => format!("{reason}, though it was just written"),
        }),
    })
}

/// What a cache must be to be used.
struct Wanted {
    width: Width,
    tokenizer: [u8; 32],
    /// The documents' paths, sizes and times of change, and how they are put together.
    source: [u8; 32],
    /// The same without sizes and times.
    place: [u8; 32],
}

impl Wanted {
    fn new(parts: &[Part], tokenizer: &Tokenizer) -> Self {
        let mut source = blake3::Hasher::new();
        let mut place = blake3::Hasher::new();
        let fingerprint = tokenizer.fingerprint();
        for hasher in [&mut source, &mut place] {
            hasher.update(&fingerprint);
            hasher.update(&(PIECE as u64).to_le_bytes());
        }
        for part in parts {
            let path = fs::canonicalize(&part.path).unwrap_or_else(|_| part.path.clone());
            for hasher in [&mut source, &mut place] {
                hasher.update(path.as_os_str().as_encoded_bytes());
                hasher.update(&[0]);
            }
            source.update(&part.len.to_le_bytes());
            match part.text {
                Text::File { modified } => source.update(&modified.to_le_bytes()),
                Text::Embedded(bytes) => source.update(blake3::hash(bytes).as_bytes()),
            };
        }
        Self {
            width: Width::of(tokenizer.vocab_size()),
            tokenizer: fingerprint,
            source: *source.finalize().as_bytes(),
            place: *place.finalize().as_bytes(),
        }
    }

    /// One name for the same documents at any time, so that a stale cache is replaced.
    fn file_name(&self, parts: &[Part]) -> String {
        let stem = parts[0].path.file_stem().and_then(OsStr::to_str).unwrap_or("text");
        let stem: String = stem.chars().filter(|c| c.is_alphanumeric() || "-_.".contains(*c)).take(40).collect();
        let hash: String = self.place[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{stem}-{hash}.tokens")
    }

    fn fields(&self, count: u64, documents: u64) -> [u8; FIELDS] {
        let mut fields = [0; FIELDS];
        fields[..8].copy_from_slice(MAGIC);
        fields[8..12].copy_from_slice(&VERSION.to_le_bytes());
        fields[12..16].copy_from_slice(&(self.width as u32).to_le_bytes());
        fields[16..24].copy_from_slice(&count.to_le_bytes());
        fields[24..32].copy_from_slice(&documents.to_le_bytes());
        fields[32..64].copy_from_slice(&self.tokenizer);
        fields[64..].copy_from_slice(&self.source);
        fields
    }
}

/// Why there is no usable cache.
enum Unusable {
    Absent,
    Because(String),
}

impl From<&str> for Unusable {
    fn from(reason: &str) -> Self {
        Self::Because(reason.to_owned())
    }
}

impl From<FileError> for Unusable {
    fn from(error: FileError) -> Self {
        Self::Because(error.to_string())
    }
}

fn read(path: &Path, wanted: &Wanted) -> Result<Store, Unusable> {
    if !path.exists() {
        return Err(Unusable::Absent);
    }
    let file = RegularFile::open(path)?;
    let payload = file.len().checked_sub(HEADER as u64).ok_or("it is cut short")?;
    let header = file.range(0..HEADER as u64)?;
    let (fields, checksum) = header.split_at(FIELDS);
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fields[at + i]));
    let (count, documents) = (number(16), number(24));
    let expected = wanted.fields(count, documents);
    if fields[..8] != expected[..8] {
        return Err("it is no token cache".into());
    }
    if fields[8..16] != expected[8..16] {
        return Err("another version of elapid made it".into());
    }
    if fields[32..64] != expected[32..64] {
        return Err("it is of another tokenizer".into());
    }
    if fields[64..] != expected[64..] {
        return Err("the text has changed".into());
    }
    let id_bytes = count.checked_mul(wanted.width as u64);
    let size = id_bytes.and_then(|ids| documents.checked_mul(8)?.checked_add(ids));
    if size != Some(payload) {
        return Err("its size is not what its header says".into());
    }
    let mut hasher = blake3::Hasher::new();
    let (start, split) = (HEADER as u64, HEADER as u64 + id_bytes.unwrap_or(0));
    file.windows(start..file.len(), |part| {
        hasher.update(part);
    })?;
    if hasher.update(fields).finalize().as_bytes() != checksum {
        return Err("its checksum is wrong".into());
    }
    let table = file.range(split..file.len())?;
    let documents: Vec<u64> = table.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
    if !documents.is_sorted() || documents.last().is_some_and(|&last| last > count) {
        return Err("its documents are out of order".into());
    }
    Ok(Store::file(file, start, count, wanted.width, documents))
}

fn write(
    path: &Path,
    wanted: &Wanted,
    parts: &[Part],
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let mut failure = None;
    let written = atomic_write(path, |w| {
        w.write_all(&[0; HEADER])?;
        let mut hasher = blake3::Hasher::new();
        let mut count = 0;
        let mut bytes = Vec::new();
        let documents = tokenise(parts, tokenizer, progress, &mut |ids| {
            bytes.clear();
            match wanted.width {
                // The vocabulary is at most 2^16: nothing is lost.
                Width::Two => bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
                Width::Four => bytes.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
            }
            count += ids.len() as u64;
            hasher.update(&bytes);
            w.write_all(&bytes)
        });
        let documents = match documents {
            Ok(documents) => documents,
            Err(Stop::Sink(error)) => return Err(error),
            Err(Stop::Error(error)) => {
                failure = Some(error);
                return Err(io::Error::other("the text could not be tokenised"));
            }
        };
        let table: Vec<u8> = documents.iter().flat_map(|at| at.to_le_bytes()).collect();
        w.write_all(&table)?;
        let fields = wanted.fields(count, documents.len() as u64);
        let checksum = hasher.update(&table).update(&fields).finalize();
        w.seek(SeekFrom::Start(0))?;
        w.write_all(&fields)?;
        w.write_all(checksum.as_bytes())?;
        w.seek(SeekFrom::End(0)).map(|_| ())
    });
    match failure {
        Some(failure) => Err(failure),
        None => Ok(written?),
    }
}
