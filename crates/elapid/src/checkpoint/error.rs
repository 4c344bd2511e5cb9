//! What is wrong with a checkpoint.

use crate::config::ConfigError;
use crate::files::FileError;
use crate::formats::stored::StoredError;

pub(super) type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file as a whole is wrong.
    #[error("{file}: wanted {wanted}, got {got}; {fix}")]
    Format {
        /// The file.
        file: String,
        /// What was expected.
        wanted: String,
        /// What was found.
        got: String,
        /// The fix.
        fix: String,
    },
    /// A tensor is wrong.
    #[error("{file}: tensor `{tensor}`: wanted {wanted}, got {got}; {fix}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor, by its name in the file.
        tensor: String,
        /// What was expected.
        wanted: String,
        /// What was found.
        got: String,
        /// The fix.
        fix: String,
    },
}

impl From<StoredError> for CheckpointError {
    fn from(error: StoredError) -> Self {
        let fix = "give the config.json that came with the weights";
        Self::tensor("config.json", &error.what, error.wanted, format_args!("shape {:?}", error.got), fix)
    }
}

impl CheckpointError {
    pub(super) fn format(file: &str, wanted: impl ToString, got: impl ToString, fix: impl ToString) -> Self {
        let (wanted, got, fix) = (wanted.to_string(), got.to_string(), fix.to_string());
        CheckpointError::Format { file: file.into(), wanted, got, fix }
    }

    pub(super) fn tensor(
        file: &str,
        tensor: &str,
        wanted: impl ToString,
        got: impl ToString,
        fix: impl ToString,
    ) -> Self {
        let (wanted, got, fix) = (wanted.to_string(), got.to_string(), fix.to_string());
        CheckpointError::Tensor { file: file.into(), tensor: tensor.into(), wanted, got, fix }
    }
}
