//! What is wrong with a setting.

/// What is wrong with a setting, where, and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}{}: {}{what}; {fix}",
    .line.map(|line| format!(":{line}")).unwrap_or_default(),
    if .field.is_empty() { String::new() } else { format!("`{}`: ", .field) },
)]
pub struct ConfigError {
    /// The file, or `--set` with its argument.
    pub file: String,
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The setting with its section, such as `train.lr`; empty if the text is not TOML.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub fix: String,
}
