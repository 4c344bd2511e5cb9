//! The shape of a cache.

use elapid_kernels::attention::paged::Shape;

use crate::DType;

/// The shape of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// Elements per position.
    pub cols: usize,
    /// Groups of columns that are contiguous inside a page, `[groups][64][cols / groups]`: heads of keys.
    pub groups: usize,
    /// Number of most recent positions to keep; 0 keeps all.
    pub window: usize,
    /// Number of first positions of a document to keep regardless of the window.
    pub sinks: usize,
}

impl CacheSpec {
    /// The shape of its pages on a GPU.
    pub(super) fn page(&self, dtype: DType) -> Shape {
        Shape { groups: self.groups, dim: self.cols / self.groups.max(1), dtype }
    }

    /// A cache of all positions.
    pub fn growing(cols: usize, groups: usize) -> Self {
        Self { cols, groups, window: 0, sinks: 0 }
    }
}
