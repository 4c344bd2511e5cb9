//! Files that are whole or not there: atomic replacement and read-only memory maps.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}; {}", path.display(), fix(source))]
    Io {
        /// What was tried: `read`, `write`, `rename`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Something else has this name: a directory, a pipe, a device.
    #[error("cannot read {}: wanted a regular file, got something else; give the path of a file", path.display())]
    NotAFile {
        /// What has the name.
        path: PathBuf,
    },
}

fn fix(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there, or write elsewhere",
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "check the permissions, or write elsewhere"
        }
        _ => "check the path and the device",
    }
}

impl FileError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        let path = path.to_owned();
        move |source| FileError::Io { doing, path, source }
    }
}

/// Writes a file so that its name means, at every moment and after a crash, either all of the old content or all of
/// the new: to another name in the same directory, to the disk, then renamed.
///
/// # Errors
/// If any step fails, `write` among them. The old file is then as it was, and nothing else is left behind.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), FileError> {
    Staged::write(path, write)?.commit()
}

/// A file that is on the disk under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Staged {
    temporary: TempPath,
    path: PathBuf,
}

impl Staged {
    pub(crate) fn write(
        path: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<Self, FileError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
        #[cfg(unix)]
        {
            // As any other new file: what the umask leaves of it.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let (file, temporary) =
            builder.tempfile_in(directory(path)).map_err(FileError::io("write", path))?.into_parts();
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        write(&mut writer)
            .and_then(|()| writer.into_inner().map_err(io::IntoInnerError::into_error))
            .and_then(|file| file.sync_all())
            .map_err(FileError::io("write", path))?;
        Ok(Self { temporary, path: path.to_owned() })
    }

    /// The name it will have, changed.
    pub(crate) fn rename_to(self, path: PathBuf) -> Self {
        Self { path, ..self }
    }

    /// Gives the file its name and waits until the directory has it.
    pub(crate) fn commit(self) -> Result<(), FileError> {
        self.temporary.persist(&self.path).map_err(|e| FileError::io("rename", &self.path)(e.error))?;
        sync_directory(directory(&self.path))
    }
}

/// How the temporary files are called.
const TEMPORARY: (&str, &str) = (".elapid-", ".tmp");

/// Removes what killed writers left in the directory: temporary files that were last written over an hour ago.
pub(crate) fn remove_abandoned(dir: &Path) {
    const LIVE: std::time::Duration = std::time::Duration::from_secs(3600);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1));
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
        if ours && age.is_some_and(|age| age > LIVE) {
            // It is in nobody's way: failing to remove it is no failure.
            fs::remove_file(entry.path()).ok();
        }
    }
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
            return Err(FileError::NotAFile { path: path.to_owned() });
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
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn atomic_write_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for content in ["one", "two, longer", ""] {
            atomic_write(&path, |w| w.write_all(content.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(&*Map::open(&path).unwrap(), content.as_bytes());
        }
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn atomic_write_that_fails_leaves_the_old_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        let error = atomic_write(&path, |w| {
            w.write_all(&[7; 3 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("free some space"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn atomic_write_where_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such");
        assert!(atomic_write(&missing, |_| Ok(())).unwrap_err().to_string().contains("no/such"));
        // A directory has the name: the rename fails, and the temporary file goes.
        fs::create_dir(dir.path().join("d")).unwrap();
        assert!(atomic_write(&dir.path().join("d"), |_| Ok(())).is_err());
        assert_eq!(names(dir.path()), ["d"]);
    }

    #[cfg(unix)]
    #[test]
    fn atomic_write_gives_the_permissions_of_a_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        atomic_write(&dir.path().join("a"), |_| Ok(())).unwrap();
        File::create(dir.path().join("b")).unwrap();
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("a"), mode("b"));
    }

    #[test]
    fn map_of_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Map::open(dir.path()), Err(FileError::NotAFile { .. })));
        assert!(matches!(Map::open(&dir.path().join("x")), Err(FileError::Io { .. })));
    }

    #[test]
    fn remove_abandoned_spares_the_living() {
        let dir = tempfile::tempdir().unwrap();
        for (name, hours) in [(".elapid-old.tmp", 2), (".elapid-new.tmp", 0), ("other.tmp", 2)] {
            let file = File::create(dir.path().join(name)).unwrap();
            let at = std::time::SystemTime::now() - std::time::Duration::from_secs(3600 * hours);
            file.set_modified(at).unwrap();
        }
        remove_abandoned(dir.path());
        assert_eq!(names(dir.path()), [".elapid-new.tmp", "other.tmp"]);
    }
}
