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

/// The product of sizes, or the largest number where it would be more: no memory of that size is ever given.
pub(crate) fn product(sizes: &[usize]) -> usize {
    match sizes.contains(&0) {
        true => 0,
        false => sizes.iter().fold(1, |product, &size| product.saturating_mul(size)),
    }
}

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
        if holds { Ok(()) } else { Err(self.fault(argument, wanted(), got())) }
    }

    /// The error of an argument.
    pub(crate) fn fault(self, argument: &'static str, wanted: String, got: String) -> Error {
        Error { op: self.0, argument, wanted, got }
    }

    /// The product of sizes, which must be one that memory could have.
    pub(crate) fn product(self, argument: &'static str, sizes: &[usize]) -> Result<usize> {
        let found = product(sizes);
        let fits = isize::try_from(found).is_ok();
        self.that(fits, argument, || "sizes whose product fits in memory".into(), || format!("{sizes:?}"))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_do_not_wrap() {
        let check = Check("test");
        assert_eq!(check.product("b l", &[3, 4, 5]), Ok(60));
        assert_eq!(check.product("b l", &[1 << 40, 0, 1 << 40]), Ok(0));
        for sizes in [[1 << 32, 1 << 32, 1], [usize::MAX, 2, 2], [1 << 63, 1, 1]] {
            assert_eq!(check.product("b l", &sizes).unwrap_err().argument, "b l");
        }
        assert_eq!(product(&[1 << 63, 2, 3]), usize::MAX);
    }
}
