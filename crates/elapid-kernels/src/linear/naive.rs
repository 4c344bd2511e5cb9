//! The products as loops.

use crate::{Float, Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(x: Rows<'_, T>, w: Rows<'_, T>, bias: Option<&[T]>, mut y: RowsMut<'_, T>) {
    for i in 0..x.rows() {
        for j in 0..w.rows() {
            let dot: T = x.row(i).iter().zip(w.row(j)).map(|(&x, &w)| x * w).sum();
            y.row(i)[j] = dot + bias.map_or(T::zero(), |bias| bias[j]);
        }
    }
}

/// Shapes as in [`super::backward_input`].
pub fn backward_input<T: Float>(dy: Rows<'_, T>, w: Rows<'_, T>, mut dx: RowsMut<'_, T>) {
    dx.fill(T::zero());
    for i in 0..dy.rows() {
        for j in 0..w.rows() {
            for (dx, &w) in dx.row(i).iter_mut().zip(w.row(j)) {
                *dx += dy.row(i)[j] * w;
            }
        }
    }
}

/// Shapes as in [`super::backward_weight`].
pub fn backward_weight<T: Float>(dy: Rows<'_, T>, x: Rows<'_, T>, mut dw: RowsMut<'_, T>) {
    for i in 0..dy.rows() {
        for j in 0..dw.rows() {
            for (dw, &x) in dw.row(j).iter_mut().zip(x.row(i)) {
                *dw += dy.row(i)[j] * x;
            }
        }
    }
}

/// Shapes as in [`super::backward_bias`].
pub fn backward_bias<T: Float>(dy: Rows<'_, T>, db: &mut [T]) {
    for i in 0..dy.rows() {
        for (db, &dy) in db.iter_mut().zip(dy.row(i)) {
            *db += dy;
        }
    }
}
