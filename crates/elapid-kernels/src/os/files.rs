//! Kinds, permissions and owners of files.

use std::fs::{File, FileType, Metadata, OpenOptions, Permissions};
use std::io;
use std::path::Path;

/// What a name refers to, in words, if it is neither a file nor a directory nor a link.
pub fn special(kind: FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("a device");
        }
    }
    let _ = kind;
    None
}

/// Whether it is a named pipe.
pub fn is_pipe(kind: FileType) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::FileTypeExt::is_fifo(&kind);
    #[cfg(not(unix))]
    {
        let _ = kind;
        false
    }
}

/// Makes opening a pipe without a writer return at once, where it would wait.
pub fn open_without_waiting(options: &mut OpenOptions) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let _ = options;
}

/// Fills `bytes` from position `at` of a file.
///
/// # Errors
/// The system's, and [`io::ErrorKind::UnexpectedEof`] if the file ends before.
#[cfg(unix)]
pub fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// Fills `bytes` from position `at` of a file.
///
/// # Errors
/// The system's, and [`io::ErrorKind::UnexpectedEof`] if the file ends before.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_read(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => (bytes, at) = (&mut bytes[n..], at + n as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// This process's own stdout or stderr, if the path refers to it, so that other output there stays in order, even if it is a
/// file.
pub fn standard_stream(path: &Path) -> Option<io::Result<File>> {
    #[cfg(unix)]
    {
        use std::io::Write;
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
    {
        let _ = path;
        None
    }
}

/// Permissions to create a file with that will replace `old`: like any new file, subject to the umask; but a file that nobody
/// else may read is never opened up. Nothing where files have no such permissions.
pub fn permissions_to_replace(old: Option<&Metadata>) -> Option<Permissions> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = old.map_or(0o666, |old| old.permissions().mode() & 0o666 | 0o600);
        Some(Permissions::from_mode(mode))
    }
    #[cfg(not(unix))]
    {
        let _ = old;
        None
    }
}

/// Gives a file the owner and the permissions of the one that it will replace.
///
/// # Errors
/// The system's; not if the owner cannot be changed, which only root may.
pub fn inherit(file: &File, old: &Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid())).ok();
        }
        // After the owner, as changing that clears special bits.
        file.set_permissions(old.permissions())?;
    }
    let _ = (file, old);
    Ok(())
}

/// Whether only its owner can read or write a file. Where files have no such permissions, all count as private.
pub fn is_private(data: &Metadata) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o077 == 0;
    #[cfg(not(unix))]
    {
        let _ = data;
        true
    }
}

/// Flushes the entries of a directory to disk, where the system can.
///
/// # Errors
/// The system's.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    let _ = dir;
    Ok(())
}
