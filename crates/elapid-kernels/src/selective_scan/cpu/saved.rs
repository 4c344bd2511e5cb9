//! What the forward leaves for the backward.

use crate::Isa;
use crate::selective_scan::Dims;

/// The states before every tile of up to 32 positions, laid out for the vectors of an instruction set.
#[derive(Debug, Default)]
pub(in crate::selective_scan) struct Saved {
    pub(super) states: Vec<f32>,
    /// Sizes and lanes.
    pub(super) made_for: Option<(Dims, usize)>,
}

impl Saved {
    pub(in crate::selective_scan) fn bytes(&self) -> usize {
        self.states.capacity() * size_of::<f32>()
    }

    pub(in crate::selective_scan) fn dims(&self) -> Option<Dims> {
        self.made_for.map(|(dims, _)| dims)
    }

    /// Whether a forward of these sizes left it, by the same instruction set.
    pub(in crate::selective_scan) fn is_for(&self, dims: Dims, isa: Isa) -> bool {
        self.made_for == Some((dims, isa.lanes()))
    }
}
