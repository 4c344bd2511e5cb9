//! What callers hold of a row, and what a row goes on with.

use crate::Tensor;

/// A row of a decoder, from its admission to its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row(pub(super) u64);

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What an admitted row goes on with.
#[derive(Debug, Clone, Copy)]
pub enum Next<'a> {
    /// The token that it reads in the next step.
    Token(u32),
    /// Logits `[v]` or `[1 v]` after what its state has read: the token is drawn from them at once.
    Logits(&'a Tensor),
}
