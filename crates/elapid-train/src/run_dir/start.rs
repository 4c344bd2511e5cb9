//! How a run begins.

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Anew, in a directory that holds nothing which it would replace.
    New,
    /// Anew; what would be replaced is moved into a folder of its own, `old-1` in the directory.
    Overwrite,
    /// From the checkpoint in the directory.
    Resume,
}
