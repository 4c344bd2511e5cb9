//! The error for text that is not TOML.

use super::ConfigError;

/// Where the error is, and the fix.
pub(super) fn explain(error: &toml::de::Error, text: &str, file: &str) -> ConfigError {
    let at = error.span().map(|span| span.start.min(text.len()));
    let line = at.map(|at| text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1);
    let what = error.message().lines().next().unwrap_or_default().to_owned();
    ConfigError { file: file.to_owned(), line, field: String::new(), what, fix: "correct the TOML there".to_owned() }
}
