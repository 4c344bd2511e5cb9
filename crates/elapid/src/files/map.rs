//! Files mapped into memory.

use std::fs::{self, File};
use std::ops::Deref;
use std::path::Path;

use super::{FileError, kind};

/// A file's bytes, read from the disk as they are touched. It dereferences to `[u8]`.
#[derive(Debug)]
pub struct Map(Option<memmap2::Mmap>);

impl Map {
    /// Maps a regular file; an empty one gives no bytes.
    ///
    /// The file must not be changed in place while it is mapped. elapid never does that: it replaces files.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let error = || FileError::io("read", path);
        // Before it is opened, for opening a pipe waits for its writer.
        let data = fs::metadata(path).map_err(error())?;
        if !data.is_file() {
            return Err(FileError::NotAFile { doing: "read", path: path.to_owned(), what: kind(&data) });
        }
        if data.len() == 0 {
            return Ok(Self(None));
        }
        let file = File::open(path).map_err(error())?;
        // SAFETY: the map is private to this value, read-only, and lives as long as the slices `deref` gives out. What
        // the type system cannot exclude is another process that writes into the file or cuts it: every value read from
        // the map is plain bytes, checked after it is copied out, so that a change there can give wrong numbers or end
        // the process (SIGBUS), as with any program that maps files. The documentation above says so.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(error())?;
        Ok(Self(Some(map)))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_of_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Map::open(dir.path()), Err(FileError::NotAFile { .. })));
        assert!(matches!(Map::open(&dir.path().join("x")), Err(FileError::Io { .. })));
    }
}
