//! What the files of this operation share.

use crate::error::Check;

pub(super) const CHECK: Check = Check("experts");

/// In the place of a use that has none: its expert had no room.
pub const NOWHERE: u32 = u32::MAX;

/// An [`Order`](super::Order) on the CPU.
#[derive(Debug)]
pub struct HostOrder {
    /// `[e + 1]`: where the rows of each expert begin; the last is the number of uses that have a place.
    pub starts: Vec<u32>,
    /// `[n]`: the use of each row, as far as rows have one.
    pub uses: Vec<u32>,
    /// `[n]`: the row of each use, or [`NOWHERE`].
    pub places: Vec<u32>,
    /// Experts of a position.
    pub k: usize,
}

impl HostOrder {
    /// Rows of each expert, one after another.
    pub(super) fn groups(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + '_ {
        self.starts.windows(2).map(|ends| ends[0] as usize..ends[1] as usize).enumerate()
    }
}
