//! How many features there are.

/// Features of a head of f columns.
pub fn features(f: usize) -> usize {
    1 + f + f * (f + 1) / 2
}
