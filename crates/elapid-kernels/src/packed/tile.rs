//! What an instruction set has to do for a form.

use super::form::PANEL;
use super::input::Row;

/// Sums of `M` rows of x by `N` panels.
pub(super) type Sums<const M: usize, const N: usize> = [[[f32; PANEL]; N]; M];

/// The product of one form by one instruction set.
pub(super) trait Tile {
    /// Panels beside each other for several rows: 2 or 4, as many as registers hold.
    const PANELS: usize;

    /// The sums of rows and panels.
    ///
    /// # Safety
    /// The CPU has the instruction set; rows and panels are those of one product in this form.
    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>);
}
