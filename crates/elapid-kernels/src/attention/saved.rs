//! What the forward leaves for the backward.

use super::cuda as device;

/// What [`forward`](super::forward) leaves for [`backward`](super::backward): on a GPU the log-sum-exp of each query's
/// scores, on the CPU nothing.
#[derive(Debug, Default)]
pub struct Saved(pub(super) Option<device::Saved>);

impl Saved {
    /// An empty one, for [`forward`](super::forward) to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, device::Saved::bytes)
    }
}
