//! The token cache: a file that is either valid or rebuilt.
//!
//! Little-endian. A header of 144 bytes: magic `elapidtk`, `u32` version, `u16` bytes an id (2 or 4), `u16` how bytes of
//! text are counted ([`super::store::Counted`]), `u64` tokens, `u64` documents, `u64` rests, 8 bytes 0, 32 bytes tokenizer
//! fingerprint, 32 bytes source fingerprint, 32 bytes BLAKE3 of everything after the header and then of its first 112
//! bytes. Then the tokens ([`Layout`]), then a `u64` for the first token of each document, then two `u64` for each rest
//! ([`Table`]).

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use elapid::files::{FileError, RegularFile, atomic_write};

use super::source::{Part, Text};
use super::store::{Layout, Store};
use super::tokenise::{Plan, Stop, Table, tokenise};
use super::{Options, Progress};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"elapidtk";
/// Version of the layout and of tokenisation; raised when either changes.
const VERSION: u32 = 3;
const HEADER: usize = 144;
/// The header without its checksum.
const FIELDS: usize = 112;

/// Opens the cache of some documents, or tokenises them.
pub(super) fn open_or_make(
    parts: &[Part],
    plan: Plan<'_>,
    options: &mut Options<'_>,
    notices: &mut Vec<String>,
) -> Result<Store> {
    let mut ignore = |_| ();
    let cache = options.cache.clone().filter(|_| parts.iter().any(|part| matches!(part.text, Text::File { .. })));
    let progress = options.progress.as_deref_mut().unwrap_or(&mut ignore);
    let Some(dir) = cache else { return in_memory(parts, plan, progress) };
    let wanted = Wanted::new(parts, plan);
    let path = dir.join(wanted.file_name(parts));
    match read(&path, &wanted) {
        Ok(store) => return Ok(store),
        Err(Unusable::Absent) => {}
        Err(Unusable::Because(reason)) => {
            notices.push(format!("token cache {}: {reason}; tokenising again", path.display()));
        }
    }
    let failed = |path: PathBuf| move |source| FileError::Io { doing: "write", path, source };
    let made = match fs::create_dir_all(&dir).map_err(failed(dir.clone())) {
        Ok(()) => write(&path, &wanted, parts, plan, progress)?,
        Err(error) => Err(error),
    };
    let reason = match made.map(|()| read(&path, &wanted)) {
        Ok(Ok(store)) => return Ok(store),
        Ok(Err(Unusable::Absent)) => format!("{} vanished after it was written", path.display()),
        Ok(Err(Unusable::Because(reason))) => format!("{}: {reason}, though it was just written", path.display()),
        Err(error) => error.to_string(),
    };
    notices.push(format!(
        "no token cache: {reason}; the tokens stay in memory. Set data.cache or ELAPID_CACHE to a directory that can be \
         written, or data.cache to \"none\""
    ));
    in_memory(parts, plan, progress)
}

fn in_memory(parts: &[Part], plan: Plan<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Store> {
    let layout = Layout::of(plan.tokenizer);
    let (mut tokens, mut rest) = (Vec::new(), Vec::new());
    let table = tokenise(parts, plan, progress, &mut |encoded| {
        layout.write((tokens.len() / layout.size()) as u64, encoded, &mut tokens, &mut rest);
        Ok(())
    });
    match table {
        Ok(table) => Ok(Store::memory(tokens, layout, with_rest(table, rest))),
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Sink(source)) => Err(Error::Io { doing: "write", path: "memory".into(), source }),
    }
}

fn with_rest(mut table: Table, rest: Vec<(u64, u64)>) -> Table {
    table.rest.extend(rest);
    table.rest.sort_unstable();
    table
}

/// What a usable cache must match.
struct Wanted {
    layout: Layout,
    tokenizer: [u8; 32],
    /// The documents' paths, sizes, modification times and separators.
    source: [u8; 32],
    /// The same without sizes and times.
    place: [u8; 32],
}

impl Wanted {
    fn new(parts: &[Part], plan: Plan<'_>) -> Self {
        let mut source = blake3::Hasher::new();
        let mut place = blake3::Hasher::new();
        let fingerprint = plan.tokenizer.fingerprint();
        for hasher in [&mut source, &mut place] {
            hasher.update(&fingerprint);
            if parts.iter().any(|part| part.form.lines) {
                hasher.update(plan.field.as_bytes());
            }
            hasher.update(&[0]);
        }
        for part in parts {
            let path = fs::canonicalize(&part.path).unwrap_or_else(|_| part.path.clone());
            for hasher in [&mut source, &mut place] {
                hasher.update(path.as_os_str().as_encoded_bytes());
                hasher.update(&[0]);
            }
            source.update(&part.len.to_le_bytes());
            match &part.text {
                Text::File { modified } => source.update(&modified.to_le_bytes()),
                Text::Embedded(bytes) => source.update(blake3::hash(bytes).as_bytes()),
                Text::Memory(bytes) => source.update(blake3::hash(bytes).as_bytes()),
            };
        }
        Self {
            layout: Layout::of(plan.tokenizer),
            tokenizer: fingerprint,
            source: *source.finalize().as_bytes(),
            place: *place.finalize().as_bytes(),
        }
    }

    /// The same name for the same documents at any time, so that a stale cache is replaced.
    fn file_name(&self, parts: &[Part]) -> String {
        let stem = parts[0].path.file_stem().and_then(OsStr::to_str).unwrap_or("text");
        let stem: String = stem.chars().filter(|c| c.is_alphanumeric() || "-_.".contains(*c)).take(40).collect();
        let hash: String = self.place[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{stem}-{hash}.tokens")
    }

    fn fields(&self, tokens: u64, documents: u64, rests: u64) -> [u8; FIELDS] {
        let mut fields = [0; FIELDS];
        fields[..8].copy_from_slice(MAGIC);
        fields[8..12].copy_from_slice(&VERSION.to_le_bytes());
        fields[12..14].copy_from_slice(&(self.layout.width as u16).to_le_bytes());
        fields[14..16].copy_from_slice(&(self.layout.counted as u16).to_le_bytes());
        fields[16..24].copy_from_slice(&tokens.to_le_bytes());
        fields[24..32].copy_from_slice(&documents.to_le_bytes());
        fields[32..40].copy_from_slice(&rests.to_le_bytes());
        fields[48..80].copy_from_slice(&self.tokenizer);
        fields[80..].copy_from_slice(&self.source);
        fields
    }
}

/// Why there is no usable cache.
enum Unusable {
    Absent,
    Because(String),
}

impl From<FileError> for Unusable {
    fn from(error: FileError) -> Self {
        Self::Because(error.to_string())
    }
}

impl From<&str> for Unusable {
    fn from(reason: &str) -> Self {
        Self::Because(reason.to_owned())
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
    let (count, documents, rests) = (number(16), number(24), number(32));
    let expected = wanted.fields(count, documents, rests);
    if fields[..8] != expected[..8] {
        return Err("it is not a token cache".into());
    }
    if fields[8..16] != expected[8..16] {
        return Err("another version of elapid made it".into());
    }
    if fields[48..80] != expected[48..80] {
        return Err("it was made with another tokenizer".into());
    }
    if fields[80..] != expected[80..] {
        return Err("the text has changed".into());
    }
    let layout = wanted.layout;
    let token_bytes = count.checked_mul(layout.size() as u64);
    let table_bytes = documents.checked_mul(8).zip(rests.checked_mul(16));
    let size = token_bytes.zip(table_bytes).and_then(|(a, (b, c))| a.checked_add(b)?.checked_add(c));
    if size != Some(payload) {
        return Err("its size is not what its header says".into());
    }
    let split = HEADER as u64 + token_bytes.unwrap_or(0);
    let mut hasher = blake3::Hasher::new();
    file.windows(HEADER as u64..file.len(), |part| {
        hasher.update(part);
    })?;
    if hasher.update(fields).finalize().as_bytes() != checksum {
        return Err("its checksum is wrong".into());
    }
    let table = file.range(split..file.len())?;
    let table: Vec<u64> = table.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
    let (documents, rest) = table.split_at(documents as usize);
    let rest: Vec<(u64, u64)> = rest.as_chunks().0.iter().map(|&[at, bytes]| (at, bytes)).collect();
    let beyond = |last: Option<u64>| last.is_some_and(|last| last > count);
    if !documents.is_sorted() || beyond(documents.last().copied()) {
        return Err("its documents are out of order".into());
    }
    if !rest.is_sorted() || beyond(rest.last().map(|&(at, _)| at)) || rest.iter().any(|&(_, bytes)| bytes > 1 << 60) {
        return Err("its counts of bytes are out of order".into());
    }
    let table = Table { documents: documents.to_vec(), rest };
    Ok(Store::file(file, HEADER as u64, token_bytes.unwrap_or(0), layout, table))
}

/// Tokenises into the cache; the inner error is about the cache file.
fn write(
    path: &Path,
    wanted: &Wanted,
    parts: &[Part],
    plan: Plan<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Result<(), FileError>> {
    let mut failure = None;
    let written = atomic_write(path, |w| {
        w.write_all(&[0; HEADER])?;
        let mut hasher = blake3::Hasher::new();
        let mut count = 0;
        let (mut bytes, mut rest) = (Vec::new(), Vec::new());
        let table = tokenise(parts, plan, progress, &mut |encoded| {
            bytes.clear();
            wanted.layout.write(count, encoded, &mut bytes, &mut rest);
            count += encoded.ids.len() as u64;
            hasher.update(&bytes);
            w.write_all(&bytes)
        });
        let table = match table {
            Ok(table) => with_rest(table, rest),
            Err(Stop::Sink(error)) => return Err(error),
            Err(Stop::Error(error)) => {
                failure = Some(error);
                return Err(io::Error::other("the text could not be tokenised"));
            }
        };
        let numbers = table.documents.iter().copied().chain(table.rest.iter().flat_map(|&(at, bytes)| [at, bytes]));
        let numbers: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        w.write_all(&numbers)?;
        let fields = wanted.fields(count, table.documents.len() as u64, table.rest.len() as u64);
        let checksum = hasher.update(&numbers).update(&fields).finalize();
        w.seek(SeekFrom::Start(0))?;
        w.write_all(&fields)?;
        w.write_all(checksum.as_bytes())?;
        w.seek(SeekFrom::End(0)).map(|_| ())
    });
    match failure {
        Some(failure) => Err(failure),
        None => Ok(written),
    }
}
