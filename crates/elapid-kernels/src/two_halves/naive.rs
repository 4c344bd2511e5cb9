//! The equation as loops.

use crate::{Float, Rows, RowsMut};

/// Whether row `r` has its first half, and its second.
fn filled(positions: Option<&[u64]>, border: u64, r: usize) -> (bool, bool) {
    positions.map_or((true, true), |positions| (positions[r] >= border, positions[r] < border))
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(
    c: usize,
    positions: Option<&[u64]>,
    border: u64,
    a: Rows<'_, T>,
    b: Rows<'_, T>,
    mut y: RowsMut<'_, T>,
) {
    for r in 0..a.rows() {
        let (first, second) = filled(positions, border, r);
        let heads = a.row(r).chunks_exact(c).zip(b.row(r).chunks_exact(c));
        for (y, (a, b)) in y.row(r).chunks_exact_mut(2 * c).zip(heads) {
            for i in 0..c {
                y[i] = if first { a[i] } else { T::zero() };
                y[c + i] = if second { b[i] } else { T::zero() };
            }
        }
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(
    c: usize,
    positions: Option<&[u64]>,
    border: u64,
    dy: Rows<'_, T>,
    mut da: RowsMut<'_, T>,
    mut db: RowsMut<'_, T>,
) {
    for r in 0..dy.rows() {
        let (first, second) = filled(positions, border, r);
        let heads = da.row(r).chunks_exact_mut(c).zip(db.row(r).chunks_exact_mut(c));
        for (dy, (da, db)) in dy.row(r).chunks_exact(2 * c).zip(heads) {
            for i in 0..c {
                da[i] = if first { dy[i] } else { T::zero() };
                db[i] = if second { dy[c + i] } else { T::zero() };
            }
        }
    }
}
