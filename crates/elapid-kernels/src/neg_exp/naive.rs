//! The equation as a loop.

use crate::Float;

/// y = -exp(x).
pub fn forward<T: Float>(x: &[T], y: &mut [T]) {
    x.iter().zip(y).for_each(|(x, y)| *y = -x.exp());
}

/// dx += y dy.
pub fn backward<T: Float>(y: &[T], dy: &[T], dx: &mut [T]) {
    y.iter().zip(dy).zip(dx).for_each(|((y, dy), dx)| *dx += *y * *dy);
}
