//! What is wrong with a configuration.

use std::fmt;

use crate::settings::Problem;

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("{file}: wanted JSON, got {got}; {fix}")]
    Syntax {
        /// The file read.
        file: String,
        /// The parser's message, with line and column.
        got: String,
        /// The fix.
        fix: String,
    },
    /// A field has an impossible value.
    #[error("{file}: `{field}`: {what}; {fix}")]
    Field {
        /// The file read, or `model config` for one made in code.
        file: String,
        /// The field, by its name in the file.
        field: String,
        /// What is wrong.
        what: String,
        /// The fix.
        fix: String,
    },
}

/// The name that errors give a configuration made in code.
pub(super) const IN_CODE: &str = "model config";

impl ConfigError {
    pub(crate) fn field(
        file: &str,
        field: &str,
        wanted: impl ToString,
        got: impl fmt::Display,
        fix: impl ToString,
    ) -> ConfigError {
        let mut got: String = got.to_string();
        if let Some((at, _)) = got.char_indices().nth(80) {
            got.truncate(at);
            got.push('…');
        }
        let what = format!("wanted {}, got {got}", wanted.to_string());
        ConfigError::Field { file: file.into(), field: field.into(), what, fix: fix.to_string() }
    }

    /// A problem of a setting, in this file.
    pub(crate) fn of(problem: Problem, file: &str) -> Self {
        let Problem { field, what, fix, .. } = problem;
        Self::Field { file: file.into(), field, what, fix }
    }

    /// The same error, about a file with other names of fields: pairs of a name without its section, and the file's name.
    pub(crate) fn in_file(self, file: &str, names: &[(&str, &str)]) -> ConfigError {
        let file = file.to_owned();
        match self {
            ConfigError::Syntax { got, fix, .. } => ConfigError::Syntax { file, got, fix },
            ConfigError::Field { field: ours, what, fix, .. } => {
                let last = ours.rsplit('.').next().unwrap_or_default();
                let field = names.iter().find(|(name, _)| *name == last).map_or(last, |(_, there)| there);
                ConfigError::Field { file, field: field.into(), what, fix }
            }
        }
    }
}
