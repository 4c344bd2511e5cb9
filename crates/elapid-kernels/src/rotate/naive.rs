//! The equation as a loop.

use super::{Args, Pairs};
use crate::{Float, Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(args: &Args<'_, Rows<'_, T>>, inverse: bool, x: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    y.copy_from(x);
    in_place(args, inverse, y);
}

/// Shapes as in [`super::in_place`].
pub fn in_place<T: Float>(args: &Args<'_, Rows<'_, T>>, inverse: bool, mut x: RowsMut<'_, T>) {
    let half = args.frequencies.len();
    for r in 0..x.rows() {
        // Angles in f64: at position 2^20 an f32 is wrong by a twentieth of a radian.
        let position = args.positions[r].min(args.last) as f64;
        let angles = args.frequencies.iter().map(|frequency| position * frequency);
        for (i, (sin, cos)) in angles.map(f64::sin_cos).enumerate() {
            let grown = args.growth.get(i).map_or(1.0, |growth| (growth * (position - args.centre)).exp());
            let factor = args.factor * grown;
            let (sin, cos) = (T::of(factor * if inverse { -sin } else { sin }), T::of(factor * cos));
            let (a, b) = match args.pairs {
                Pairs::Halves => (i, i + half),
                Pairs::Interleaved => (2 * i, 2 * i + 1),
            };
            for x in x.row(r).chunks_exact_mut(args.dim) {
                (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
            }
        }
    }
}
