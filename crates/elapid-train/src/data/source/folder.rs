//! The files of a directory.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ignore::WalkBuilder;

use super::{Found, Part, kind, what_is};
use crate::{Error, Result};

/// Extensions of files that are read, possibly followed by that of a compression.
const ENDINGS: [&str; 3] = ["txt", "md", "jsonl"];

/// Directories that were entered, by identity, and further paths to the same ones.
#[derive(Default)]
struct Entered {
    places: HashSet<PathBuf>,
    again: Vec<PathBuf>,
}

impl Found {
    /// Adds the text of a directory.
    pub(super) fn search(&mut self, dir: &Path) -> Result<()> {
        self.searched = true;
        let entered = Arc::new(Mutex::new(Entered::default()));
        let seen = entered.clone();
        let walk = WalkBuilder::new(dir)
            .standard_filters(false)
            .hidden(true)
            .follow_links(true)
            .sort_by_file_path(Path::cmp)
            .filter_entry(move |entry| {
                if !entry.file_type().is_some_and(|kind| kind.is_dir()) {
                    return true;
                }
                let place = fs::canonicalize(entry.path()).unwrap_or_else(|_| entry.path().to_owned());
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                let new = seen.places.insert(place);
                if !new {
                    seen.again.push(entry.path().to_owned());
                }
                new
            })
            .build();
        let mut files = HashSet::new();
        for entry in walk {
            match entry {
                Ok(entry) => self.entry(entry.path(), &mut files)?,
                Err(error) => self.unread(dir, error)?,
            }
        }
        let again = std::mem::take(&mut entered.lock().unwrap_or_else(PoisonError::into_inner).again);
        self.left_out.extend(again.into_iter().map(|path| (path, TWICE.to_owned())));
        Ok(())
    }

    fn entry(&mut self, path: &Path, files: &mut HashSet<PathBuf>) -> Result<()> {
        let data = fs::metadata(path).map_err(Error::io("read", path))?;
        if data.is_dir() {
            return Ok(());
        }
        if !is_text(path) {
            let ending = path.extension().map_or("none".into(), |end| format!(".{}", end.display()));
            *self.others.entry(ending).or_default() += 1;
            return Ok(());
        }
        let mut leave_out = |why: &str| self.left_out.push((path.to_owned(), why.to_owned()));
        if !data.is_file() {
            // Not opened: opening a pipe would block until it has a writer.
            leave_out(what_is(data.file_type()));
            return Ok(());
        }
        let part = Part::file(path, &data);
        if !files.insert(part.place()) {
            leave_out(TWICE);
            return Ok(());
        }
        match part.looked_at()? {
            Ok(part) => self.parts.push(part),
            Err(what) => leave_out(&what),
        }
        Ok(())
    }

    /// Dangling and cyclic links are left out; anything else that cannot be read is an error.
    fn unread(&mut self, dir: &Path, error: ignore::Error) -> Result<()> {
        let mut path = dir.to_owned();
        let mut inner = &error;
        loop {
            match inner {
                ignore::Error::WithPath { path: at, err } => (path, inner) = (at.clone(), err),
                ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => inner = err,
                ignore::Error::Loop { child, .. } => {
                    self.left_out.push((child.clone(), TWICE.into()));
                    return Ok(());
                }
                _ => break,
            }
        }
        if path.is_symlink() && !path.exists() {
            self.left_out.push((path, "a link to nothing".into()));
            return Ok(());
        }
        let source = error.into_io_error().unwrap_or_else(|| std::io::Error::other("it cannot be listed"));
        Err(Error::Io { doing: "list", path, source })
    }
}

const TWICE: &str = "a link to what is read";

/// Whether a file in a directory is read, by its name.
fn is_text(path: &Path) -> bool {
    let name = kind::without_packing(path);
    let end = Path::new(&name).extension();
    end.is_some_and(|end| ENDINGS.iter().any(|text| end.eq_ignore_ascii_case(text)))
}
