//! The equation as a loop.

use crate::{Float, Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(ids: &[u32], table: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    for (r, &id) in ids.iter().enumerate() {
        y.row(r).copy_from_slice(table.row(id as usize));
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(ids: &[u32], dy: Rows<'_, T>, mut dtable: RowsMut<'_, T>) {
    for (r, &id) in ids.iter().enumerate() {
        for (g, &d) in dtable.row(id as usize).iter_mut().zip(dy.row(r)) {
            *g += d;
        }
    }
}
