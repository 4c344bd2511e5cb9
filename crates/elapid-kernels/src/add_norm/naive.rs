//! The equations as loops.

#![expect(clippy::needless_range_loop, reason = "as the equations have it")]

use crate::{Float, Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(
    x: Rows<'_, T>,
    residual: Option<Rows<'_, T>>,
    weight: &[T],
    eps: T,
    mut y: RowsMut<'_, T>,
    mut sum: RowsMut<'_, T>,
    rstd: &mut [T],
) {
    let d = T::of(x.cols().max(1) as f64);
    for r in 0..x.rows() {
        let sum = sum.row(r);
        for (i, s) in sum.iter_mut().enumerate() {
            *s = x.row(r)[i] + residual.map_or(T::zero(), |residual| residual.row(r)[i]);
        }
        rstd[r] = (sum.iter().map(|&s| s * s).sum::<T>() / d + eps).sqrt().recip();
        for (i, y) in y.row(r).iter_mut().enumerate() {
            *y = sum[i] * rstd[r] * weight[i];
        }
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(
    sum: Rows<'_, T>,
    weight: &[T],
    rstd: &[T],
    dy: Rows<'_, T>,
    dsum: Option<Rows<'_, T>>,
    mut dx: RowsMut<'_, T>,
    dweight: &mut [T],
) {
    let d = sum.cols();
    for r in 0..sum.rows() {
        let hat = |i: usize| sum.row(r)[i] * rstd[r];
        let mean = (0..d).map(|i| dy.row(r)[i] * weight[i] * hat(i)).sum::<T>() / T::of(d as f64);
        for i in 0..d {
            let through = rstd[r] * (dy.row(r)[i] * weight[i] - hat(i) * mean);
            dx.row(r)[i] = through + dsum.map_or(T::zero(), |dsum| dsum.row(r)[i]);
            dweight[i] += dy.row(r)[i] * hat(i);
        }
    }
}
