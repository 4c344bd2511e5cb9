//! Errors of operations whose arguments do not fit.

/// An argument that breaks an operation's contract.
///
/// Shapes are checked before anything is written, so after an error every output is untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op}: argument `{argument}`: wanted {wanted}, got {got}")]
pub struct Error {
    /// The operation, by its module's name.
    pub op: &'static str,
    /// The argument at fault.
    pub argument: &'static str,
    /// What the contract requires.
    pub wanted: String,
    /// What was given.
    pub got: String,
}

/// The result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Collects the checks of one operation, so that each reads as one line.
#[derive(Clone, Copy)]
pub(crate) struct Check(pub(crate) &'static str);

impl Check {
    /// The argument must have exactly `wanted` elements.
    pub(crate) fn len(self, argument: &'static str, got: usize, wanted: usize) -> Result<()> {
        self.that(got == wanted, argument, || format!("{wanted} elements"), || format!("{got}"))
    }

    /// The matrix must be `rows` by `cols`.
    pub(crate) fn shape(self, argument: &'static str, got: (usize, usize), wanted: (usize, usize)) -> Result<()> {
        self.that(
            got == wanted,
            argument,
            || format!("{} rows of {}", wanted.0, wanted.1),
            || format!("{} rows of {}", got.0, got.1),
        )
    }

    /// Any other condition.
    pub(crate) fn that(
        self,
        holds: bool,
        argument: &'static str,
        wanted: impl FnOnce() -> String,
        got: impl FnOnce() -> String,
    ) -> Result<()> {
        if holds { Ok(()) } else { Err(Error { op: self.0, argument, wanted: wanted(), got: got() }) }
    }
}
