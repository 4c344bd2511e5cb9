//! Where text comes from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::{Error, Result};

/// Tiny Shakespeare: 1.1 MB of plays, public domain.
pub static TINY_SHAKESPEARE: &[u8] = include_bytes!("../../assets/tinyshakespeare.txt");

/// Endings of files that a directory is searched for.
const TEXT: [&str; 2] = ["txt", "md"];

/// A source of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The text inside the binary.
    TinyShakespeare,
    /// A file of any kind, or a directory, of which `*.txt` and `*.md` are read, in the order of their paths, at any
    /// depth. A file is one document.
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

/// One document.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Its path, or a name.
    pub(super) path: PathBuf,
    /// Its size in bytes.
    pub(super) len: u64,
    pub(super) text: Text,
}

/// Where a document's bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Text {
    /// In the file, last changed at this time, in nanoseconds since 1970.
    File {
        modified: u128,
    },
    Embedded(&'static [u8]),
}

impl Part {
    pub(super) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { path: name.into(), len: bytes.len() as u64, text: Text::Embedded(bytes) }
    }
}

/// All documents of some sources, in order.
pub(super) fn parts(sources: &[Source]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for source in sources {
        match source {
            Source::TinyShakespeare => parts.push(Part::embedded("tinyshakespeare", TINY_SHAKESPEARE)),
            Source::Path(path) if path.is_dir() => directory(path, &mut parts)?,
            Source::Path(path) => parts.push(file(path)?),
        }
    }
    let reason = match parts.as_slice() {
        [] => "there is no *.txt or *.md in it; name other files one by one",
        parts if parts.iter().all(|part| part.len == 0) => "every file is empty",
        _ => return Ok(parts),
    };
    Err(Error::NoText { sources: sources.iter().map(Source::name).collect(), reason })
}

fn directory(dir: &Path, parts: &mut Vec<Part>) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(Error::io("list", dir))?;
    entries.sort();
    for path in entries {
        // Links are followed to files only: a link to a directory could lead back here.
        let is_link = path.is_symlink();
        let is_text = path.extension().is_some_and(|end| TEXT.iter().any(|text| end.eq_ignore_ascii_case(text)));
        if path.is_dir() {
            if !is_link {
                directory(&path, parts)?;
            }
        } else if is_text {
            parts.push(file(&path)?);
        }
    }
    Ok(())
}

fn file(path: &Path) -> Result<Part> {
    let data = fs::metadata(path).map_err(Error::io("read", path))?;
    let modified = data.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let text = Text::File { modified: modified.map_or(0, |at| at.as_nanos()) };
    Ok(Part { path: path.to_owned(), len: data.len(), text })
}
