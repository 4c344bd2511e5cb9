//! What goes wrong with files.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use elapid_kernels::os;

/// An error about a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}; {}", path.display(), fix(source))]
    Io {
        /// The attempted operation: `read`, `write`, `rename`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The name belongs to something that is not a regular file.
    #[error("cannot {doing} {}: it is {what}; give the path of a regular file", path.display())]
    NotAFile {
        /// The attempted operation: `read` or `write`.
        doing: &'static str,
        /// What has the name.
        path: PathBuf,
        /// What it is: `a directory`, `a pipe`, `a device`, `a socket`.
        what: &'static str,
    },
    /// A file larger than any file of its kind.
    #[error("cannot read {}: it has more than {}, the limit for such a file; check the path", path.display(), size(*limit))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The maximum size in bytes.
        limit: u64,
    },
    /// A file that does not fit into memory.
    #[error("cannot read {}: its {bytes} bytes do not fit in memory; free some memory, or use a smaller file", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A file that became shorter while it was open.
    #[error("cannot read {}: it became shorter while it was read; run the command again when nothing writes to it", path.display())]
    Shortened {
        /// The file.
        path: PathBuf,
    },
    /// A file that elapid did not write, or that was damaged.
    #[error("cannot read {}: {what}; write it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Text that is not UTF-8.
    #[error("cannot read {}: not UTF-8 text at byte {at}; give a text file in UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is not.
        at: usize,
    },
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

fn fix(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there, or write elsewhere",
        io::ErrorKind::FileTooLarge => "raise the limit on the size of files (ulimit -f), or write elsewhere",
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

/// What a name refers to, in words.
pub(super) fn kind(data: &Metadata) -> &'static str {
    if data.is_dir() {
        return "a directory";
    }
    os::files::special(data.file_type()).unwrap_or("no regular file")
}
