//! The equations as loops.

use crate::{Float, Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(
    x: Rows<'_, T>,
    weight: Option<&[T]>,
    bias: Option<&[T]>,
    eps: T,
    mut y: RowsMut<'_, T>,
    mut statistics: RowsMut<'_, T>,
) {
    let d = T::of(x.cols().max(1) as f64);
    for r in 0..x.rows() {
        let x = x.row(r);
        let mean = x.iter().copied().sum::<T>() / d;
        let variance = x.iter().map(|&x| (x - mean) * (x - mean)).sum::<T>() / d;
        let rstd = (variance + eps).sqrt().recip();
        statistics.row(r).copy_from_slice(&[mean, rstd]);
        for (i, y) in y.row(r).iter_mut().enumerate() {
            *y = (x[i] - mean) * rstd * weight.map_or(T::one(), |w| w[i]) + bias.map_or(T::zero(), |b| b[i]);
        }
    }
}

/// With x̂ = (x - mean) rstd and g = dy · weight: dx = rstd (g - mean(g) - x̂ mean(g x̂)). Shapes as in
/// [`super::backward`].
pub fn backward<T: Float>(
    x: Rows<'_, T>,
    weight: Option<&[T]>,
    statistics: Rows<'_, T>,
    dy: Rows<'_, T>,
    mut dx: RowsMut<'_, T>,
    mut dweight: Option<&mut [T]>,
    mut dbias: Option<&mut [T]>,
) {
    let d = x.cols();
    let count = T::of(d.max(1) as f64);
    for r in 0..x.rows() {
        let (mean, rstd) = (statistics.row(r)[0], statistics.row(r)[1]);
        let (x, dy) = (x.row(r), dy.row(r));
        let hat = |i: usize| (x[i] - mean) * rstd;
        let g = |i: usize| dy[i] * weight.map_or(T::one(), |w| w[i]);
        let mean_g = (0..d).map(g).sum::<T>() / count;
        let mean_gx = (0..d).map(|i| g(i) * hat(i)).sum::<T>() / count;
        for (i, dx) in dx.row(r).iter_mut().enumerate() {
            *dx = rstd * (g(i) - mean_g - hat(i) * mean_gx);
        }
        for i in 0..d {
            if let Some(dweight) = &mut dweight {
                dweight[i] += dy[i] * hat(i);
            }
            if let Some(dbias) = &mut dbias {
                dbias[i] += dy[i];
            }
        }
    }
}
