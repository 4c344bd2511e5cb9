//! The equation as loops.

use crate::{Float, Rows, RowsMut};

/// The softmax of column c.
fn softmax<T: Float>(p: Rows<'_, T>, c: usize) -> Vec<T> {
    let column = || (0..p.rows()).map(|m| p.row(m)[c]);
    let most = column().fold(T::neg_infinity(), T::max);
    let mut sum = T::zero();
    column().for_each(|x| sum += (x - most).exp());
    column().map(|x| (x - most).exp() / sum).collect()
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(i: usize, p: Rows<'_, T>, y: &mut [T]) {
    for (c, y) in y.iter_mut().enumerate() {
        *y = T::zero();
        softmax(p, c).iter().skip(1).take(i).for_each(|&s| *y += s);
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(i: usize, p: Rows<'_, T>, dy: &[T], mut dp: RowsMut<'_, T>) {
    for (c, &dy) in dy.iter().enumerate() {
        let s = softmax(p, c);
        let mut y = T::zero();
        s.iter().skip(1).take(i).for_each(|&s| y += s);
        for (m, &s) in s.iter().enumerate() {
            let inside = if (1..=i).contains(&m) { T::one() } else { T::zero() };
            dp.row(m)[c] += s * dy * (inside - y);
        }
    }
}
