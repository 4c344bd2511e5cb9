//! Files: regular files read with a limit or at positions, and outputs that are written completely or not at all.

mod error;
mod read;
mod tensors;
mod write;
mod write_tensors;

pub use error::FileError;
pub use read::{RegularFile, read, read_file_or_pipe, read_text};
pub use tensors::TensorFile;
pub(crate) use write::{Staged, Unnamed, remove_abandoned};
pub use write::{atomic_write, check_output, is_temporary, remove_temporaries};
pub use write_tensors::{Elements, write_tensors};

/// Maximum sizes of files that are read whole.
pub mod limit {
    /// Maximum size of a configuration: `config.json` and its neighbours, an index of shards, settings in TOML.
    pub const CONFIG: u64 = 256 << 20;
    /// Maximum size of a `tokenizer.json`; the largest published ones have some 40 MB.
    pub const TOKENIZER: u64 = 512 << 20;
    /// Maximum size of text, token ids or metrics that are held in memory.
    pub const TEXT: u64 = 4 << 30;
}

#[cfg(all(test, unix))]
mod testing {
    use std::path::{Path, PathBuf};

    /// A named pipe.
    pub(super) fn pipe(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        path
    }
}
