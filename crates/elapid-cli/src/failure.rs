//! Failures as exit codes: 1 if the work failed, 2 if the command line or an input file was wrong.

use std::io;

use elapid::checkpoint::CheckpointError;
use elapid::config::ConfigError;
use elapid::files::FileError;
use elapid::tokenizer::TokenizerError;

/// The work failed.
const WORK: u8 = 1;
/// The command line or a file was wrong: the same command will fail again.
const INPUT: u8 = 2;

/// The command line, or a file that it names, is wrong.
#[derive(Debug)]
pub(crate) struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// Ranks that ended with an error, and the exit code for it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: u8,
    /// Empty if it was already printed.
    pub(crate) text: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Ended {}

/// An error about the command line or an input file.
pub(crate) fn wrong(reason: impl Into<String>) -> anyhow::Error {
    Wrong(reason.into()).into()
}

/// The exit code of an error.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(WORK)
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<elapid_train::Error>() {
        use elapid_train::Error as E;
        return match error {
            E::Elapid(error) => code_of(error.as_ref()),
            E::File(error) => code_of(error),
            E::Io { source, .. } => Some(system(source)),
            E::Plot { .. } | E::Diverged { .. } | E::Meeting { .. } | E::Lost(_) => Some(WORK),
            _ => Some(INPUT),
        };
    }
    if let Some(error) = cause.downcast_ref::<elapid::Error>() {
        use elapid::Error as E;
        return match error {
            E::Kernel(_) | E::NonFinite { .. } | E::OutOfMemory(_) => Some(WORK),
            E::Checkpoint(error) => code_of(&**error),
            E::File(error) => code_of(error),
            E::Tokenizer(error) => code_of(error),
            E::Config(_) | E::State { .. } | E::Device { .. } | E::Memory(_) | E::Argument(_) => Some(INPUT),
            _ => Some(WORK),
        };
    }
    if let Some(error) = cause.downcast_ref::<CheckpointError>() {
        return match error {
            CheckpointError::File(error) => code_of(error),
            _ => Some(INPUT),
        };
    }
    if let Some(error) = cause.downcast_ref::<TokenizerError>() {
        return match error {
            TokenizerError::File(error) => code_of(error),
            _ => Some(INPUT),
        };
    }
    if let Some(ended) = cause.downcast_ref::<Ended>() {
        return Some(ended.code);
    }
    match cause.downcast_ref::<FileError>() {
        Some(FileError::Io { source, .. }) => Some(system(source)),
        Some(FileError::Shortened { .. } | FileError::Memory { .. }) => Some(WORK),
        Some(_) => Some(INPUT),
        None => {
            let wrong =
                cause.is::<Wrong>() || cause.is::<ConfigError>() || cause.is::<elapid_train::config::ConfigError>();
            wrong.then_some(INPUT)
        }
    }
}

/// A missing or inaccessible path and a damaged file are errors in the command; a full or failing disk is not.
fn system(error: &io::Error) -> u8 {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound
        | K::PermissionDenied
        | K::IsADirectory
        | K::NotADirectory
        | K::InvalidData
        | K::InvalidInput
        | K::UnexpectedEof
        | K::ReadOnlyFilesystem => INPUT,
        _ => WORK,
    }
}

/// The error in one line. A cause whose text is already contained, as in file errors, is not repeated.
pub(crate) fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        text if text.contains(&cause) => text.to_owned(),
        text => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn exit_codes_tell_wrong_input_from_failed_work() {
        let not_finite = elapid::Error::NonFinite { what: "x".into(), place: 0 };
        assert_eq!(code(&not_finite.into()), WORK);
        assert_eq!(code(&elapid::Error::Argument("x".into()).into()), INPUT);
        assert_eq!(code(&wrong("x").context("reading")), INPUT);
        assert_eq!(code(&anyhow::anyhow!("x")), WORK);
        let file = |kind: io::ErrorKind| FileError::Io { doing: "write", path: "x".into(), source: kind.into() };
        assert_eq!(code(&elapid::Error::from(file(io::ErrorKind::NotFound)).into()), INPUT);
        assert_eq!(code(&elapid::Error::from(file(io::ErrorKind::StorageFull)).into()), WORK);
        assert_eq!(code(&elapid_train::Error::from(elapid::Error::Argument("x".into())).into()), INPUT);
    }

    #[test]
    fn causes_are_not_said_twice() {
        let file = FileError::Io { doing: "read", path: "x".into(), source: io::ErrorKind::NotFound.into() };
        let text = message(&anyhow::Error::from(file).context("loading"));
        assert_eq!(text.matches("entity not found").count(), 1, "{text}");
        assert!(text.starts_with("loading: cannot read x"), "{text}");
        let nothing: Option<u8> = None;
        assert_eq!(message(&nothing.context("a").context("b").unwrap_err()), "b: a");
    }
}
