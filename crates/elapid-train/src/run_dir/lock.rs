//! The lock on a run's directory: one run at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;

use elapid_kernels::os;

use crate::{Error, Result};

/// The file that is locked. The file stays after the run; the lock does not.
pub(super) const NAME: &str = ".elapid-lock";

/// The lock, held as long as this value lives. The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    /// None where the file system has no locks.
    _file: Option<File>,
}

impl Lock {
    /// Locks a directory.
    ///
    /// # Errors
    /// If another process holds the lock (the error has what it wrote about itself); if the file cannot be written.
    pub(super) fn take(dir: &Path, notices: &mut Vec<String>) -> Result<Self> {
        let path = dir.join(NAME);
        if fs::symlink_metadata(&path).is_ok_and(|data| !data.is_file()) {
            return Err(Error::Directory { path, reason: "it must be a regular file; remove it".into() });
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => {
                // Only for the message of another run, so failures here are ignored.
                let holder = format!("process {} on {}\n", std::process::id(), host());
                file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).ok();
                Ok(Self { _file: Some(file) })
            }
            Err(TryLockError::WouldBlock) => Err(busy(dir, &mut file)),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                notices.push(format!(
                    "{}: this file system has no locks; make sure that no other run writes there",
                    dir.display()
                ));
                Ok(Self { _file: None })
            }
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }

    /// Checks whether another process holds the lock, without leaving anything behind.
    ///
    /// # Errors
    /// As [`take`](Self::take), if one does.
    pub(super) fn check_free(dir: &Path) -> Result<()> {
        let path = dir.join(NAME);
        if !fs::symlink_metadata(&path).is_ok_and(|data| data.is_file()) {
            return Ok(());
        }
        let Ok(mut file) = File::open(&path) else { return Ok(()) };
        // A shared lock, so that checks do not block each other.
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Err(busy(dir, &mut file)),
            _ => Ok(()),
        }
    }
}

fn busy(dir: &Path, file: &mut File) -> Error {
    let mut holder = String::new();
    // A name has at most 255 bytes.
    file.take(512).read_to_string(&mut holder).ok();
    let holder = match holder.trim() {
        "" => String::new(),
        holder => format!(" ({holder})"),
    };
    let reason =
        format!("another run is using it{holder}; wait until that ends, or choose another directory by --output");
    Error::Directory { path: dir.to_owned(), reason }
}

fn host() -> String {
    os::machine::host_name().unwrap_or_else(|| "this host".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_a_stale_file_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "process 1 on a host that is gone").unwrap();
        Lock::check_free(dir.path()).unwrap();
        let held = Lock::take(dir.path(), &mut Vec::new()).unwrap();
        let (mut notices, process) = (Vec::new(), format!("process {} on ", std::process::id()));
        for error in [Lock::check_free(dir.path()).unwrap_err(), Lock::take(dir.path(), &mut notices).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(&process) && error.contains("--output"), "{error}");
        }
        drop(held);
        Lock::take(dir.path(), &mut notices).unwrap();
        assert!(notices.is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join(NAME)).unwrap();
        let error = Lock::take(dir.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(NAME) && error.contains("regular file"), "{error}");
        assert_eq!(fs::read_to_string(other).unwrap(), "precious");
    }
}
