//! Writing files so that they are whole or not there.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempPath;

use super::error::{FileError, kind};
use crate::fault;

/// Writes a file so that its name means, at every moment and after a crash, either all of the old content or all of
/// the new: to another name in the same directory, to the disk, then renamed.
///
/// Symbolic links are followed: what they lead to is replaced or made, the link stays. A file that is there passes its
/// permissions and, where that is allowed, its owner on to the new one. What is no regular file, a device or a pipe, is
/// written to as it is.
///
/// # Errors
/// If a directory has the name, or any step fails, `write` among them. The old file is then as it was, and nothing else
/// is left behind.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), FileError> {
    Staged::write(path, write)?.commit()
}

/// Checks, before work whose result goes there, that a file can be written: that it is no directory, and in one.
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

/// A file that is on the disk under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Staged {
    /// None where it was written to what is there.
    temporary: Option<Temporary>,
    path: PathBuf,
}

/// A file on the disk whose name follows from what was written. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Unnamed(Temporary);

/// A temporary file. It is locked as long as its writer lives: [`remove_temporaries`] spares it.
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

    /// With the name that it will have, in the same directory.
    pub(crate) fn named(self, path: PathBuf) -> Staged {
        Staged { temporary: Some(self.0), path }
    }
}

/// What a path leads to, through symbolic links.
enum Target {
    /// A file that is replaced under this name, which is no link, or one that is made.
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

    /// Gives the file its name and waits until the directory has it.
    pub(crate) fn commit(self) -> Result<(), FileError> {
        let Some(temporary) = self.temporary else { return Ok(()) };
        fault::operation();
        temporary.path.persist(&self.path).map_err(|e| FileError::io("rename", &self.path)(e.error))?;
        fault::operation();
        sync_directory(directory(&self.path))
    }
}

impl Target {
    fn of(path: &Path) -> Result<Self, FileError> {
        /// As many as Linux follows.
        const LINKS: usize = 40;
        let error = |source| FileError::io("write", path)(source);
        let mut target = path.to_owned();
        for _ in 0..=LINKS {
            if let Some(stream) = standard_stream(&target) {
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
                // What `/proc` links to need not have a name: a pipe, a file that was removed.
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

/// Opens a device or a pipe; a pipe waits for its reader.
fn open_sink(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// This process's own standard output or error, where a path means that: what else is written there goes before or
/// after, also where it is a file.
#[cfg(unix)]
fn standard_stream(path: &Path) -> Option<io::Result<File>> {
    use std::os::fd::AsFd;
    let fd = match path.to_str()? {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => {
            let flushed = io::stdout().flush();
            flushed.and_then(|()| io::stdout().as_fd().try_clone_to_owned())
        }
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => io::stderr().as_fd().try_clone_to_owned(),
        _ => return None,
    };
    Some(fd.map(File::from))
}

#[cfg(not(unix))]
fn standard_stream(_: &Path) -> Option<io::Result<File>> {
    None
}

/// Writes a temporary file in the directory of `path` to the disk.
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
    #[cfg(unix)]
    {
        // As any other new file, what the umask leaves of it; a file that nobody else may read never gets wider.
        use std::os::unix::fs::PermissionsExt;
        let mode = old.map_or(0o666, |old| old.permissions().mode() & 0o666 | 0o600);
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    let (file, temporary) = builder.tempfile_in(directory(path))?.into_parts();
    // Nobody else has it yet. A file system without locks does without.
    file.try_lock().ok();
    #[cfg(unix)]
    if let Some(old) = old {
        use std::os::unix::fs::MetadataExt;
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            // Root alone may give a file away. What others write is theirs then.
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid())).ok();
        }
        // After the owner, whose change takes special bits away.
        file.set_permissions(old.permissions())?;
    }
    #[cfg(not(unix))]
    let _ = old;
    Ok((file, temporary))
}

/// How the temporary files are called.
const TEMPORARY: (&str, &str) = (".elapid-", ".tmp");

/// Whether a name is one of a temporary file.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Removes the temporary files that killed writers left in a directory: those that no process holds a lock on and whose
/// last change is as long ago as `age`.
pub fn remove_temporaries(dir: &Path, age: Duration) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(is_temporary) || !entry.file_type().is_ok_and(|of| of.is_file()) {
            continue;
        }
        let changed = entry.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
        let free = |file: File| !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        // A file that may not be written to is none of this user's.
        let abandoned = || OpenOptions::new().write(true).open(entry.path()).is_ok_and(free);
        if changed.unwrap_or_default() >= age && abandoned() {
            fault::operation();
            // It is in nobody's way: failing to remove it is no failure.
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// [`remove_temporaries`] in a directory that others may write to: a file system may have no locks.
pub(crate) fn remove_abandoned(dir: &Path) {
    remove_temporaries(dir, Duration::from_secs(3600));
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until the names in a directory are on the disk.
fn sync_directory(dir: &Path) -> Result<(), FileError> {
    #[cfg(unix)]
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::io("write", dir))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

#[cfg(test)]
mod tests;
