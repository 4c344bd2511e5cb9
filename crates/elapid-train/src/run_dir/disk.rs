//! Changes to a run's directory, one by one: each is a place where a run may be killed.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use elapid::fault;

use crate::{Error, Result};

/// Makes a directory and those above it.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    fault::operation();
    fs::create_dir_all(dir).map_err(Error::io("make", dir))
}

/// Gives a file or a directory another name, which no other may have.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::operation();
    fs::rename(from, to).map_err(Error::io("rename", from))
}

/// Waits until the names in a directory are on the disk.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    fault::operation();
    #[cfg(unix)]
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("write", dir))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// Removes a file, if it is there.
pub(crate) fn remove_file(file: &Path) -> Result<()> {
    fault::operation();
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", file)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory, if it is there and empty.
pub(crate) fn remove_empty_dir(dir: &Path) -> Result<()> {
    fault::operation();
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(Error::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Names in a directory, sorted; none where there is no such directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}
