//! Single changes to a run's directory; each is a point where a run may be killed.

use std::fs;
use std::io;
use std::path::Path;

use elapid::fault;
use elapid_kernels::os;

use crate::{Error, Result};

/// Creates a directory and its parents.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    fault::operation();
    fs::create_dir_all(dir).map_err(Error::io("make", dir))
}

/// Renames a file or directory; the new name must be unused.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::operation();
    fs::rename(from, to).map_err(Error::io("rename", from))
}

/// Flushes the entries of a directory to disk.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    fault::operation();
    os::files::sync_directory(dir).map_err(Error::io("write", dir))
}

/// Removes a file if it exists.
pub(crate) fn remove_file(file: &Path) -> Result<()> {
    fault::operation();
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", file)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory if it exists and is empty.
pub(crate) fn remove_empty_dir(dir: &Path) -> Result<()> {
    fault::operation();
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(Error::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Names in a directory, sorted; none if there is no such directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}
