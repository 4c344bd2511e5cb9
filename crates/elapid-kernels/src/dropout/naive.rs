//! The equation as a loop.

use super::mask::{Mask, Unit};
use crate::sampling::philox::philox4x32_10;
use crate::{Float, Rows, RowsMut};

/// Word `at` of a sample.
pub fn word(key: u64, sample: u64, at: u64) -> u32 {
    let group = at / 4;
    let counter = [group as u32, (group >> 32) as u32, sample as u32, (sample >> 32) as u32];
    philox4x32_10(counter, [key as u32, (key >> 32) as u32])[(at % 4) as usize]
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(mask: &Mask, first: u64, x: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    let (factor, cols) = (T::of(f64::from(mask.factor())), x.cols());
    for r in 0..x.rows() {
        let (sample, t) = (first.wrapping_add((r / mask.l) as u64), r % mask.l);
        for (c, (y, &x)) in y.row(r).iter_mut().zip(x.row(r)).enumerate() {
            let at = match mask.unit {
                Unit::Element => (t * cols + c) as u64,
                Unit::Sample => 0,
            };
            let kept = word(mask.key, sample, at) >= mask.threshold();
            *y = if kept { factor * x } else { T::zero() };
        }
    }
}
