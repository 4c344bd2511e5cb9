//! The equations as loops.

use super::{Args, Grads, Residual, Saved};
use crate::{Float, Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(
    args: &Args<Rows<'_, T>>,
    mut y: RowsMut<'_, T>,
    mut sum: Option<RowsMut<'_, T>>,
    statistics: &mut [T],
) {
    let Args { x, residual, weight, bias, eps } = *args;
    let d = T::of(x.cols().max(1) as f64);
    for (r, statistics) in statistics.chunks_exact_mut(2).enumerate() {
        let y = y.row(r);
        y.copy_from_slice(x.row(r));
        if let Some(Residual { r: residual, keep, scale }) = residual {
            let (keep, scale) = (T::of(keep.into()), T::of(scale.into()));
            y.iter_mut().zip(residual.row(r)).for_each(|(s, &r)| *s = keep * r + scale * *s);
        }
        if let Some(sum) = &mut sum {
            sum.row(r).copy_from_slice(y);
        }
        let mean = y.iter().copied().sum::<T>() / d;
        let variance = y.iter().map(|&s| (s - mean) * (s - mean)).sum::<T>() / d;
        let rstd = (variance + T::of(eps.into())).sqrt().recip();
        statistics.copy_from_slice(&[mean, rstd]);
        for (i, y) in y.iter_mut().enumerate() {
            *y = (*y - mean) * rstd * weight.map_or(T::one(), |w| w[i]) + bias.map_or(T::zero(), |b| b[i]);
        }
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(
    saved: &Saved<Rows<'_, T>>,
    dy: Rows<'_, T>,
    dsum: Option<Rows<'_, T>>,
    grads: Grads<RowsMut<'_, T>>,
) {
    let Grads { mut dx, mut dresidual, mut dweight, mut dbias } = grads;
    let d = saved.s.cols();
    let count = T::of(d.max(1) as f64);
    let (keep, scale) = (T::of(saved.factors.0.into()), T::of(saved.factors.1.into()));
    for r in 0..saved.s.rows() {
        let (mean, rstd) = (saved.statistics[2 * r], saved.statistics[2 * r + 1]);
        let (s, dy) = (saved.s.row(r), dy.row(r));
        let hat = |i: usize| (s[i] - mean) * rstd;
        let g = |i: usize| dy[i] * saved.weight.map_or(T::one(), |w| w[i]);
        let mean_g = (0..d).map(g).sum::<T>() / count;
        let mean_gx = (0..d).map(|i| g(i) * hat(i)).sum::<T>() / count;
        for i in 0..d {
            let ds = rstd * (g(i) - mean_g - hat(i) * mean_gx) + dsum.map_or(T::zero(), |dsum| dsum.row(r)[i]);
            dx.row(r)[i] = scale * ds;
            if let Some(dresidual) = &mut dresidual {
                dresidual.row(r)[i] = keep * ds;
            }
            if let Some(dweight) = &mut dweight {
                dweight[i] += dy[i] * hat(i);
            }
            if let Some(dbias) = &mut dbias {
                dbias[i] += dy[i];
            }
        }
    }
}
