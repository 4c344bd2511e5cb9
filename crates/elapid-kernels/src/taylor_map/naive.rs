//! The equation as loops.

use super::features::features;
use crate::{Float, Rows, RowsMut};

/// The factors of xᵢ, of xᵢ², and of xᵢxⱼ.
fn factors<T: Float>(f: usize) -> [T; 3] {
    let f = f as f64;
    [f.powf(-0.25), (2.0 * f).sqrt().recip(), f.sqrt().recip()].map(T::of)
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(f: usize, x: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    let [first, square, product] = factors::<T>(f);
    for r in 0..x.rows() {
        for (x, y) in x.row(r).chunks(f).zip(y.row(r).chunks_mut(features(f))) {
            y[0] = T::one();
            y[1..=f].iter_mut().zip(x).for_each(|(y, &x)| *y = first * x);
            let mut rest = &mut y[1 + f..];
            for (i, &a) in x.iter().enumerate() {
                let (own, after) = rest.split_at_mut(f - i);
                own[0] = square * a * a;
                let a = product * a;
                own[1..].iter_mut().zip(&x[i + 1..]).for_each(|(y, &b)| *y = a * b);
                rest = after;
            }
        }
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(f: usize, x: Rows<'_, T>, dy: Rows<'_, T>, mut dx: RowsMut<'_, T>) {
    let [first, square, product] = factors::<T>(f);
    for r in 0..x.rows() {
        let heads = x.row(r).chunks(f).zip(dy.row(r).chunks(features(f)));
        for ((x, dy), dx) in heads.zip(dx.row(r).chunks_mut(f)) {
            dx.iter_mut().zip(&dy[1..=f]).for_each(|(dx, &dy)| *dx = first * dy);
            let mut rest = &dy[1 + f..];
            for i in 0..f {
                let (own, after) = rest.split_at(f - i);
                let mut sum = T::of(2.0) * square * own[0] * x[i];
                for (j, &dy) in (i + 1..f).zip(&own[1..]) {
                    sum += product * dy * x[j];
                    dx[j] += product * dy * x[i];
                }
                dx[i] += sum;
                rest = after;
            }
        }
    }
}
