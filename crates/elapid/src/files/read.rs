//! Reading regular files.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use elapid_kernels::os;

use super::error::{FileError, kind};

/// A regular file, open for reading at any position. Reads share no position, so several threads can use one file.
#[derive(Debug)]
pub struct RegularFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl RegularFile {
    /// Opens a regular file. Anything else of that name is refused without being read: a pipe would block until it has a
    /// writer, and a device may have no end.
    ///
    /// # Errors
    /// If there is no such file, it is not a regular one, or it may not be read.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let (file, data) = open(path, &|data| data.is_file())?;
        Ok(Self { file, path: path.to_owned(), len: data.len() })
    }

    /// The file itself, at its beginning, for a streaming reader.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it was empty when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `bytes` from position `at` on.
    ///
    /// # Errors
    /// If the file ends before that, such as one that another process truncates, or cannot be read.
    pub fn read_at(&self, at: u64, bytes: &mut [u8]) -> Result<(), FileError> {
        os::files::read_exact_at(&self.file, bytes, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FileError::Shortened { path: self.path.clone() },
            _ => FileError::io("read", &self.path)(error),
        })
    }

    /// All of its bytes, up to `limit`.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>, FileError> {
        read_whole(&self.file, &self.path, self.len, limit)
    }
}

/// The bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// If there is no such file, it is not a regular one, is larger, or cannot be read. Nothing is read then.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    RegularFile::open(path)?.read_all(limit)
}

/// The text of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`read`]; if the bytes are not UTF-8, with the place.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    let text = String::from_utf8(read(path, limit)?);
    text.map_err(|error| FileError::NotText { path: path.to_owned(), at: error.utf8_error().valid_up_to() })
}

/// The bytes of a regular file or of a pipe (`<(command)`), at most `limit`. A pipe is read to its end.
///
/// # Errors
/// As [`read`].
pub fn read_file_or_pipe(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let data = fs::metadata(path).map_err(FileError::io("read", path))?;
    if !os::files::is_pipe(data.file_type()) {
        return read(path, limit);
    }
    // Blocks until the pipe has a writer, as for every reader of a pipe.
    let file = File::open(path).map_err(FileError::io("read", path))?;
    let data = file.metadata().map_err(FileError::io("read", path))?;
    if !os::files::is_pipe(data.file_type()) {
        return Err(FileError::NotAFile { doing: "read", path: path.to_owned(), what: kind(&data) });
    }
    read_whole(&file, path, 0, limit)
}

/// Opens a file of the `wanted` kind. The kind is checked before opening, since opening some devices has side effects, and
/// again on the open file, which may have been replaced in between.
fn open(path: &Path, wanted: &dyn Fn(&Metadata) -> bool) -> Result<(File, Metadata), FileError> {
    let error = || FileError::io("read", path);
    let check = |data: Metadata| match wanted(&data) {
        true => Ok(data),
        false => Err(FileError::NotAFile { doing: "read", path: path.to_owned(), what: kind(&data) }),
    };
    check(fs::metadata(path).map_err(error())?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // A pipe may have taken the file's place.
    os::files::open_without_waiting(&mut options);
    let file = options.open(path).map_err(error())?;
    let data = check(file.metadata().map_err(error())?)?;
    Ok((file, data))
}

/// Reads to the end. Reserves `expected` bytes; a file may grow while it is read, or report a size of 0, as those of `/proc`
/// do.
fn read_whole(file: &File, path: &Path, expected: u64, limit: u64) -> Result<Vec<u8>, FileError> {
    let too_large = || FileError::TooLarge { path: path.to_owned(), limit };
    if expected > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let room = usize::try_from(expected).map_err(|_| too_large())?;
    bytes.try_reserve_exact(room).map_err(|_| FileError::Memory { path: path.to_owned(), bytes: expected })?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_gives_the_bytes_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "aé").unwrap();
        assert_eq!(read(&path, 3).unwrap(), "aé".as_bytes());
        assert_eq!(read_text(&path, 3).unwrap(), "aé");
        assert_eq!(read_file_or_pipe(&path, 3).unwrap(), "aé".as_bytes());
        fs::write(&path, b"a\xff").unwrap();
        assert!(matches!(read_text(&path, 3), Err(FileError::NotText { at: 1, .. })));
        fs::write(&path, "").unwrap();
        assert!(read(&path, 0).unwrap().is_empty());
    }

    #[test]
    fn read_refuses_more_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, [7; 11]).unwrap();
        let error = read(&path, 10).unwrap_err();
        assert!(matches!(error, FileError::TooLarge { limit: 10, .. }), "{error}");
        // A sparse file costs neither time nor memory.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(read(&path, 1 << 20), Err(FileError::TooLarge { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn read_of_a_file_that_does_not_say_its_size() {
        let path = Path::new("/proc/self/status");
        assert!(read_text(path, 1 << 20).unwrap().contains("VmRSS"));
        assert!(matches!(read(path, 10), Err(FileError::TooLarge { .. })));
    }

    #[test]
    fn read_names_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path(), 10).unwrap_err().to_string();
        assert!(error.contains("it is a directory"), "{error}");
        assert!(matches!(read(&dir.path().join("x"), 10), Err(FileError::Io { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn read_waits_for_no_pipe_and_no_device() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = super::super::testing::pipe(dir.path(), "pipe");
        let error = read(&pipe, 10).unwrap_err().to_string();
        assert!(error.contains("it is a pipe") && error.contains(pipe.to_str().unwrap()), "{error}");
        let error = read(Path::new("/dev/zero"), 10).unwrap_err().to_string();
        assert!(error.contains("it is a device"), "{error}");
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = read_file_or_pipe(&socket, 10).unwrap_err().to_string();
        assert!(error.contains("it is a socket"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn read_file_or_pipe_reads_a_pipe_to_its_end_or_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = super::super::testing::pipe(dir.path(), "pipe");
        for (limit, whole) in [(200_000, true), (199_999, false)] {
            let to = pipe.clone();
            // The pipe closes when the reader has reached its limit, and the rest of the write fails.
            let writer = std::thread::spawn(move || fs::write(to, vec![b'x'; 200_000]).ok());
            match read_file_or_pipe(&pipe, limit) {
                Ok(bytes) => assert!(whole && bytes.len() == 200_000),
                Err(error) => assert!(!whole && matches!(error, FileError::TooLarge { .. }), "{error}"),
            }
            writer.join().unwrap();
        }
    }

    #[test]
    fn read_at_of_a_file_that_became_shorter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, [1, 2, 3, 4]).unwrap();
        let file = RegularFile::open(&path).unwrap();
        let mut bytes = [0; 2];
        file.read_at(2, &mut bytes).unwrap();
        assert_eq!((bytes, file.len()), ([3, 4], 4));
        File::options().write(true).open(&path).unwrap().set_len(3).unwrap();
        let error = file.read_at(2, &mut bytes).unwrap_err();
        assert!(
            matches!(error, FileError::Shortened { .. }) && error.to_string().contains("became shorter"),
            "{error}"
        );
    }
}
