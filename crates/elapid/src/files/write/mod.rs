//! Writing files completely or not at all.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use elapid_kernels::os;
use tempfile::TempPath;

use super::error::{FileError, kind};
use crate::fault;

/// Writes a file such that at every moment, and after a crash, its name refers to the complete old or the complete new
/// content: it is written under another name in the same directory, flushed to disk, then renamed.
///
/// Symbolic links are followed: their target is replaced or created, and the link stays. The new file inherits the
/// permissions of an existing one and, if allowed, its owner. Devices and pipes are written to directly.
///
/// # Errors
/// If the name is that of a directory, or any step fails, including `write`. The old file is then unchanged, and nothing
/// else is left behind.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), FileError> {
    Staged::write(path, write)?.commit()
}

/// Checks before long work that its result can be written to a path: that it is not a directory, and that its parent is one.
///
/// # Errors
/// If it cannot.
pub fn check_output(path: &Path) -> Result<(), FileError> {
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => {
            Err(FileError::NotAFile { doing: "write", path: path.to_owned(), what: kind(&data) })
        }
        Ok(_) => Ok(()),
        Err(_) => fs::metadata(directory(path)).map(|_| ()).map_err(FileError::io("write", path)),
    }
}

/// A file on disk under a temporary name, removed when dropped.
#[derive(Debug)]
pub(crate) struct Staged {
    /// None if it was written directly to a device or pipe.
    temporary: Option<Temporary>,
    path: PathBuf,
}

/// A file on disk whose name depends on its contents, removed when dropped.
#[derive(Debug)]
pub(crate) struct Unnamed(Temporary);

/// A temporary file. It is locked while its writer lives, so that [`remove_temporaries`] spares it.
#[derive(Debug)]
struct Temporary {
    path: TempPath,
    _locked: File,
}

impl Unnamed {
    pub(crate) fn write(
        dir: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<Self, FileError> {
        Ok(Self(write_beside(&dir.join("-"), None, write).map_err(FileError::io("write", dir))?))
    }

    /// With its final name, in the same directory.
    pub(crate) fn named(self, path: PathBuf) -> Staged {
        Staged { temporary: Some(self.0), path }
    }
}

/// The target of a path, through symbolic links.
enum Target {
    /// A file to replace or create under this name, which is not a link.
    File { path: PathBuf, old: Option<Metadata> },
    /// A device, a pipe, standard output.
    Sink(File),
}

impl Staged {
    pub(crate) fn write(
        path: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<Self, FileError> {
        let error = || FileError::io("write", path);
        let (target, old) = match Target::of(path)? {
            Target::File { path, old } => (path, old),
            Target::Sink(sink) => {
                let mut writer = BufWriter::with_capacity(1 << 20, sink);
                write(&mut writer).and_then(|()| writer.flush()).map_err(error())?;
                return Ok(Self { temporary: None, path: path.to_owned() });
            }
        };
        let temporary = write_beside(&target, old.as_ref(), write).map_err(error())?;
        Ok(Self { temporary: Some(temporary), path: target })
    }

    /// Renames the file and flushes the directory.
    pub(crate) fn commit(self) -> Result<(), FileError> {
        let Some(temporary) = self.temporary else { return Ok(()) };
        fault::operation();
        temporary.path.persist(&self.path).map_err(|e| FileError::io("rename", &self.path)(e.error))?;
        fault::operation();
        let dir = directory(&self.path);
        os::files::sync_directory(dir).map_err(FileError::io("write", dir))
    }
}

impl Target {
    fn of(path: &Path) -> Result<Self, FileError> {
        /// As many as Linux follows.
        const LINKS: usize = 40;
        let error = |source| FileError::io("write", path)(source);
        let mut target = path.to_owned();
        for _ in 0..=LINKS {
            if let Some(stream) = os::files::standard_stream(&target) {
                return Ok(Self::Sink(stream.map_err(error)?));
            }
            let data = match fs::symlink_metadata(&target) {
                Ok(data) => data,
                Err(source) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(Self::File { path: target, old: None });
                }
                Err(source) => return Err(error(source)),
            };
            if data.is_symlink() {
                let link = fs::read_link(&target).map_err(error)?;
                let next = directory(&target).join(link);
                // The target of a link in `/proc` need not have a name: a pipe, or a file that was removed.
                let nameless = fs::symlink_metadata(&next).is_err() && fs::metadata(&target).is_ok();
                if nameless {
                    return Ok(Self::Sink(open_sink(&target).map_err(error)?));
                }
                target = next;
                continue;
            }
            return match data {
                data if data.is_file() => Ok(Self::File { path: target, old: Some(data) }),
                data if data.is_dir() => {
                    Err(FileError::NotAFile { doing: "write", path: path.to_owned(), what: kind(&data) })
                }
                _ => Ok(Self::Sink(open_sink(&target).map_err(error)?)),
            };
        }
        Err(error(io::Error::other(format!("more than {LINKS} symbolic links, one after another"))))
    }
}

/// Opens a device or a pipe; a pipe blocks until it has a reader.
fn open_sink(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// Writes a temporary file in the directory of `path` and flushes it to disk.
fn write_beside(
    path: &Path,
    old: Option<&Metadata>,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<Temporary> {
    fault::operation();
    let (file, temporary) = create_beside(path, old)?;
    fault::operation();
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    fault::operation();
    file.sync_all()?;
    Ok(Temporary { path: temporary, _locked: file })
}

/// A temporary file in the directory of `path`, with the permissions and the owner of the file that it will replace.
fn create_beside(path: &Path, old: Option<&Metadata>) -> io::Result<(File, TempPath)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    if let Some(permissions) = os::files::permissions_to_replace(old) {
        builder.permissions(permissions);
    }
    let (file, temporary) = builder.tempfile_in(directory(path))?.into_parts();
    // Nobody else has it yet. On a file system without locks there is none.
    file.try_lock().ok();
    if let Some(old) = old {
        os::files::inherit(&file, old)?;
    }
    Ok((file, temporary))
}

/// The prefix of temporary files.
const TEMPORARY: (&str, &str) = (".elapid-", ".tmp");

/// Whether a name is one of a temporary file.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Removes temporary files that killed writers left in a directory: those that are not locked and are at least `age` old.
pub fn remove_temporaries(dir: &Path, age: Duration) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(is_temporary) || !entry.file_type().is_ok_and(|of| of.is_file()) {
            continue;
        }
        let changed = entry.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
        let free = |file: File| !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        // A file that cannot be opened for writing is not this user's.
        let abandoned = || OpenOptions::new().write(true).open(entry.path()).is_ok_and(free);
        if changed.unwrap_or_default() >= age && abandoned() {
            fault::operation();
            // It does no harm, so failing to remove it is not an error.
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// [`remove_temporaries`] in a directory that others may write to, in case the file system has no locks.
pub(crate) fn remove_abandoned(dir: &Path) {
    remove_temporaries(dir, Duration::from_secs(3600));
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
