//! A rank that is gone.

/// A rank that is gone, so that all must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} of {size} was lost: {reason}; all ranks end. {kept}")]
pub struct LostRank {
    /// The rank.
    pub rank: usize,
    /// Number of ranks.
    pub size: usize,
    /// What became of it.
    pub reason: String,
    /// What is left to go on from.
    pub kept: String,
}
