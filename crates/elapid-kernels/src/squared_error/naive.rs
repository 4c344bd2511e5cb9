//! The equations as loops.

use crate::{Float, Rows, RowsMut};

/// The mean, and the number of targets, at least 1. Shapes as in [`super::forward`].
pub fn forward<T: Float>(y: Rows<'_, T>, targets: &[T]) -> (T, T) {
    let (mut sum, mut count) = (T::zero(), T::zero());
    for (r, targets) in targets.chunks_exact(y.cols().max(1)).enumerate() {
        for (&y, &t) in y.row(r).iter().zip(targets).filter(|(_, t)| !t.is_nan()) {
            sum += (y - t) * (y - t);
            count += T::one();
        }
    }
    let count = count.max(T::one());
    (sum / count, count)
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(y: Rows<'_, T>, targets: &[T], count: T, scale: T, mut dy: RowsMut<'_, T>) {
    let factor = T::of(2.0) * scale / count;
    for (r, targets) in targets.chunks_exact(y.cols().max(1)).enumerate() {
        for ((dy, &y), &t) in dy.row(r).iter_mut().zip(y.row(r)).zip(targets) {
            *dy = if t.is_nan() { T::zero() } else { factor * (y - t) };
        }
    }
}
