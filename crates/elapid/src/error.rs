//! Errors; each names what is wrong and the fix.

use std::path::PathBuf;

/// The result of elapid's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of elapid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation's arguments do not fit each other.
    #[error(transparent)]
    Kernel(#[from] elapid_kernels::Error),
    /// A GPU.
    #[error(transparent)]
    Cuda(elapid_kernels::cuda::Error),
    /// A model's configuration.
    #[error(transparent)]
    Config(Box<crate::config::ConfigError>),
    /// A model's files.
    #[error(transparent)]
    Checkpoint(Box<crate::checkpoint::CheckpointError>),
    /// A tokenizer or its text.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// A saved state that is damaged or does not fit.
    #[error("state{}: {reason}", .path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default())]
    State {
        /// Its file, if it came from one.
        path: Option<PathBuf>,
        /// What is wrong, and the fix.
        reason: String,
    },
    /// A device that cannot be used.
    #[error("device `{name}`: {reason}")]
    Device {
        /// The requested name.
        name: String,
        /// The reason and the fix.
        reason: String,
    },
    /// Values that are not finite.
    #[error("{what} is not finite (first at {place}); lower the learning rate or go back to an earlier checkpoint")]
    NonFinite {
        /// The tensor.
        what: String,
        /// The index of the first such value.
        place: usize,
    },
    /// Work that needs more memory than there is, detected before it began.
    #[error(transparent)]
    Memory(Box<crate::memory::Shortage>),
    /// Memory that could not be allocated.
    #[error(transparent)]
    OutOfMemory(#[from] elapid_kernels::OutOfMemory),
    /// An operation that a device does not support.
    #[error("`{op}` does not run on {device} yet; use --device cpu")]
    Missing {
        /// The operation.
        op: &'static str,
        /// The device.
        device: String,
    },
    /// An argument of a library call.
    #[error("{0}")]
    Argument(String),
}

impl From<elapid_kernels::cuda::Error> for Error {
    fn from(error: elapid_kernels::cuda::Error) -> Self {
        match error {
            elapid_kernels::cuda::Error::Argument(error) => Self::Kernel(error),
            error => Self::Cuda(error),
        }
    }
}

impl From<crate::config::ConfigError> for Error {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::Config(Box::new(error))
    }
}

impl From<crate::checkpoint::CheckpointError> for Error {
    fn from(error: crate::checkpoint::CheckpointError) -> Self {
        Self::Checkpoint(Box::new(error))
    }
}
