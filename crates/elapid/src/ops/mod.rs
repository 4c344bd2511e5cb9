//! Differentiable operations: each a kernel's forward, and on the tape its backward. One file is one operation.

mod add_norm;
mod causal_conv1d;
mod cross_entropy;
mod embedding;
mod linear;
mod neg_exp;
mod selective_scan;

pub use add_norm::add_norm;
pub use causal_conv1d::causal_conv1d;
pub use cross_entropy::{Loss, cross_entropy};
pub use embedding::embedding;
pub use linear::linear;
pub use neg_exp::neg_exp;
pub use selective_scan::{ScanArgs, selective_scan};

use std::sync::Arc;

use elapid_kernels::Segments;

/// How the positions of a batch lie: its size, where rows end, where documents begin.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Rows of the batch.
    pub b: usize,
    /// Positions of a row.
    pub l: usize,
    /// `[b]`: real positions of each row; later ones are padding.
    pub lengths: Option<Arc<[u32]>>,
    /// `[b l]`: where non-zero, every state starts anew before that position.
    pub resets: Option<Arc<[u8]>>,
}

impl Layout {
    /// A batch of full rows, each one document.
    pub fn new(b: usize, l: usize) -> Self {
        Self { b, l, ..Self::default() }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.b * self.l
    }

    /// As the kernels take it.
    pub fn segments(&self) -> Segments<'_> {
        Segments { lengths: self.lengths.as_deref(), resets: self.resets.as_deref() }
    }
}
