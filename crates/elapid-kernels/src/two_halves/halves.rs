//! Which halves rows have.

use crate::Array;

/// Which halves rows have.
#[derive(Debug, Clone, Copy)]
pub struct Halves<'a> {
    /// Columns of a half.
    pub c: usize,
    /// `[m]`: the position of each row in its document; none: rows have both halves.
    pub positions: Option<Array<'a, u64>>,
    /// Rows of earlier positions have the second half, others the first.
    pub border: u64,
}
