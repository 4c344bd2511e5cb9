//! How a run starts.

/// How a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// As a new run, in a directory without anything that it would replace.
    New,
    /// As a new run; files that it would replace are moved into a subfolder, `old-1`.
    Overwrite,
    /// From the checkpoint in the directory.
    Resume,
}
