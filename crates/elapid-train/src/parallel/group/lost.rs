//! A lost rank.

/// A lost rank, because of which all ranks end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} of {size} was lost: {reason}; all ranks end. {kept}")]
pub struct LostRank {
    /// The rank.
    pub rank: usize,
    /// Number of ranks.
    pub size: usize,
    /// How it was lost.
    pub reason: String,
    /// The checkpoint to resume from, if any.
    pub kept: String,
}
