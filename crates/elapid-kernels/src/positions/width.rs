//! The format of positions on a GPU.

/// The format of positions on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// u32, as ids of a table; what is larger wraps.
    U32,
    /// u64.
    U64,
    /// u8: 1 where a document begins, at position 0, else 0; as resets are.
    Begins,
}
