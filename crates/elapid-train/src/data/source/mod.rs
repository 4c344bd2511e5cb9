//! Sources of text: finding files, recognising them, and reading them.

mod folder;
mod form;
mod kind;
mod part;
mod read;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, FileType, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use elapid_kernels::os::files::{is_pipe, special};

use crate::{Error, Result};
use form::{Coding, Form, Packing};

pub(super) use part::{Part, Text};
pub(super) use read::{DOCUMENT, Document};

/// Tiny Shakespeare: 1.1 MB of plays, public domain.
pub static TINY_SHAKESPEARE: &[u8] = include_bytes!("../../../assets/tinyshakespeare.txt");

/// A source of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The text inside the binary.
    TinyShakespeare,
    /// A file with any name, a pipe, or a directory. Of a directory, `*.txt`, `*.md`, `*.jsonl`, and these with `.gz` or
    /// `.zst` appended are read, in the order of their paths, at any depth. A file is one document; in a `*.jsonl` each line
    /// is one.
    ///
    /// gzip and zstd are decompressed, UTF-16 with a byte order mark is decoded, and the byte order mark of UTF-8 is
    /// dropped. In a directory, hidden files and directories are skipped, and links are followed, but nothing is read twice.
    Path(PathBuf),
}

impl Source {
    /// `tinyshakespeare` is the text inside the binary, anything else a path.
    pub fn parse(name: &str) -> Self {
        if name == "tinyshakespeare" { Self::TinyShakespeare } else { Self::Path(name.into()) }
    }

    fn name(&self) -> String {
        match self {
            Self::TinyShakespeare => "tinyshakespeare".into(),
            Self::Path(path) => path.display().to_string(),
        }
    }
}

impl Part {
    pub(super) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { path: name.into(), len: bytes.len() as u64, text: Text::Embedded(bytes), form: Form::default() }
    }

    /// A file or a pipe; otherwise an error that names what it is.
    fn named(path: &Path, data: &Metadata) -> Result<Self> {
        let not_text = |what: String| Error::NotText { path: path.to_owned(), what };
        let part = if data.is_file() {
            Self::file(path, data)
        } else if is_pipe(data.file_type()) {
            let bytes = read::pipe(path)?;
            Self { path: path.into(), len: bytes.len() as u64, text: Text::Memory(bytes), form: Form::default() }
        } else {
            return Err(not_text(what_is(data.file_type()).to_owned()));
        };
        part.looked_at()?.map_err(not_text)
    }

    fn file(path: &Path, data: &Metadata) -> Self {
        let modified = data.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let text = Text::File { modified: modified.map_or(0, |at| at.as_nanos()) };
        Self { path: path.to_owned(), len: data.len(), text, form: Form::default() }
    }

    /// The identity of the file, to recognise links and other paths to it.
    fn place(&self) -> PathBuf {
        match self.text {
            Text::File { .. } => fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone()),
            _ => self.path.clone(),
        }
    }
}

/// Something that is neither a file nor a directory.
fn what_is(kind: FileType) -> &'static str {
    special(kind).unwrap_or("no regular file")
}

/// The text of some sources, in order, and what was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) parts: Vec<Part>,
    /// Whether a directory was searched.
    searched: bool,
    /// Entries of a directory that are not read, with the reason.
    left_out: Vec<(PathBuf, String)>,
    /// Files with other extensions, by extension.
    others: BTreeMap<String, usize>,
}

/// All parts of some sources, in order.
pub(super) fn find(sources: &[Source]) -> Result<Found> {
    let mut found = Found::default();
    for source in sources {
        match source {
            Source::TinyShakespeare => found.parts.push(Part::embedded("tinyshakespeare", TINY_SHAKESPEARE)),
            Source::Path(path) => {
                let data = fs::metadata(path).map_err(Error::io("read", path))?;
                if data.is_dir() {
                    found.search(path)?;
                } else {
                    found.parts.push(Part::named(path, &data)?);
                }
            }
        }
    }
    let reason = match found.parts.as_slice() {
        [] if found.left_out.is_empty() => {
            "there is no *.txt, *.md or *.jsonl in it (hidden files are skipped); name other files one by one"
                .to_owned()
        }
        [] => format!("all of it is left out: {}", found.what_is_left_out().join(", ")),
        parts if parts.iter().all(|part| part.len == 0) => "every file is empty".to_owned(),
        _ => return Ok(found),
    };
    Err(Error::NoText { sources: sources.iter().map(Source::name).collect(), reason })
}

/// Whole text of one file or pipe, as [`Source::Path`] reads it; a `.jsonl` is text like any other here.
///
/// # Errors
/// If it cannot be read, is a directory, a device or a socket, is not text, or is longer than a gigabyte.
pub fn read_text(path: &Path) -> Result<Vec<u8>> {
    let data = fs::metadata(path).map_err(Error::io("read", path))?;
    if data.is_dir() {
        return Err(Error::NotText { path: path.to_owned(), what: "a directory".into() });
    }
    let mut part = Part::named(path, &data)?;
    part.form.lines = false;
    part.whole(DOCUMENT)
}

/// Maximum names to list before counting the rest.
const NAMED: usize = 3;

impl Found {
    /// Removes held-out text and returns its paths. If nothing would be left, everything stays.
    pub(super) fn without(&mut self, held_out: &Self) -> Overlap {
        let places: HashSet<PathBuf> = held_out.parts.iter().map(Part::place).collect();
        let (out, rest): (Vec<Part>, Vec<Part>) =
            std::mem::take(&mut self.parts).into_iter().partition(|part| places.contains(&part.place()));
        let paths = out.iter().map(|part| part.path.clone()).collect::<Vec<_>>();
        if paths.is_empty() {
            self.parts = rest;
            return Overlap::None;
        }
        if rest.iter().all(|part| part.len == 0) {
            self.parts = out;
            return Overlap::All(paths);
        }
        self.parts = rest;
        Overlap::Some(paths)
    }

    /// A line about what was read, if that is more than plain files given by name.
    pub(super) fn summary(&self) -> Option<String> {
        let of = |select: &dyn Fn(&Part) -> bool| -> Vec<PathBuf> {
            self.parts.iter().filter(|part| select(part)).map(|part| part.path.clone()).collect()
        };
        let forms = [
            ("decompressed (gzip)", of(&|part| part.form.packing == Packing::Gzip)),
            ("decompressed (zstd)", of(&|part| part.form.packing == Packing::Zstd)),
            ("decoded from UTF-16", of(&|part| part.form.coding.is_utf16())),
        ];
        if !self.searched && forms.iter().all(|(_, paths)| paths.is_empty()) {
            return None;
        }
        let n = self.parts.len();
        let mut line = format!("{n} {} read", if n == 1 { "file" } else { "files" });
        for (how, paths) in forms.iter().filter(|(_, paths)| !paths.is_empty()) {
            line += &format!(", {} {how}: {}", paths.len(), names(paths));
        }
        let left_out = self.what_is_left_out();
        if !left_out.is_empty() {
            line += &format!("; left out: {}", left_out.join(", "));
        }
        Some(line)
    }

    fn what_is_left_out(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.left_out.iter().take(NAMED).map(|(path, why)| format!("{} ({why})", path.display())).collect();
        if self.left_out.len() > NAMED {
            all.push(format!("{} more", self.left_out.len() - NAMED));
        }
        if !self.others.is_empty() {
            let count: usize = self.others.values().sum();
            let mut endings: Vec<&str> = self.others.keys().take(NAMED).map(String::as_str).collect();
            if self.others.len() > NAMED {
                endings.push("…");
            }
            all.push(format!("{count} with other extensions ({})", endings.join(", ")));
        }
        all
    }
}

/// Text that is both in the training and the held-out text.
pub(super) enum Overlap {
    None,
    /// It was left out of the training text.
    Some(Vec<PathBuf>),
    /// It is the whole training text.
    All(Vec<PathBuf>),
}

/// Some paths in one line.
pub(super) fn names(paths: &[PathBuf]) -> String {
    let mut names: Vec<String> = paths.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    if paths.len() > NAMED {
        names.push(format!("{} more", paths.len() - NAMED));
    }
    names.join(", ")
}

impl Coding {
    fn is_utf16(self) -> bool {
        matches!(self, Self::Utf16Le | Self::Utf16Be)
    }
}

#[cfg(test)]
mod tests;
