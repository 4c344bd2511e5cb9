//! Rounding the groups of a weight to integers and a scale in bf16.
//!
//! The integers are chosen for the scale as it is stored, so that its rounding costs no more than a slightly wider grid.

use half::bf16;

use super::form::GROUP;

/// How integers of 4 bits are chosen.
#[derive(Debug, Clone, Copy)]
pub enum Rounding<'a> {
    /// The scale that maps the largest value of a group to -8.
    Largest,
    /// The scale with the least squared error of a group, of those near the one of `Largest`; errors of value q weigh `[q]`,
    /// such as the mean square of the activation that it is multiplied by. Without weights all weigh the same.
    Least(Option<&'a [f32]>),
}

impl<'a> Rounding<'a> {
    /// The same for one group.
    pub(super) fn of_group(self, group: usize) -> Self {
        match self {
            Self::Least(Some(weights)) => {
                let from = (group * GROUP).min(weights.len());
                Self::Least(Some(&weights[from..weights.len().min(from + GROUP)]))
            }
            other => other,
        }
    }
}

/// The scale, and the integers in -127 ..= 127.
pub(super) fn int8(group: &[f32], integers: &mut [i8; GROUP]) -> bf16 {
    let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = bf16::from_f32(largest / 127.0);
    round(group, scale, (-127.0, 127.0), integers);
    scale
}

/// The scale, and the integers in -8 ..= 7.
pub(super) fn int4(group: &[f32], rounding: Rounding<'_>, integers: &mut [i8; GROUP]) -> bf16 {
    const RANGE: (f32, f32) = (-8.0, 7.0);
    let largest = group.iter().fold(0.0_f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
    let first = bf16::from_f32(largest / -8.0);
    let weights = match rounding {
        Rounding::Largest => {
            round(group, first, RANGE, integers);
            return first;
        }
        Rounding::Least(weights) => weights,
    };
    let weight =
        |i: usize| weights.map_or(1.0, |weights| weights.get(i).copied().unwrap_or(0.0).max(f32::MIN_POSITIVE));
    let (mut best, mut least) = (first, f32::INFINITY);
    for step in -14..=10 {
        // The scale of a guess gives integers; the best scale for these integers is a quotient.
        let guess = largest / (-8.0 + 0.25 * step as f32);
        round(group, bf16::from_f32(guess), RANGE, integers);
        let (mut products, mut squares) = (0.0, 0.0);
        for (i, (&x, &q)) in group.iter().zip(integers.iter()).enumerate() {
            products += weight(i) * x * f32::from(q);
            squares += weight(i) * f32::from(q) * f32::from(q);
        }
        let fitted = bf16::from_f32(if squares > 0.0 { products / squares } else { guess });
        round(group, fitted, RANGE, integers);
        let error: f32 = group
            .iter()
            .zip(integers.iter())
            .enumerate()
            .map(|(i, (&x, &q))| weight(i) * (x - fitted.to_f32() * f32::from(q)).powi(2))
            .sum();
        if error < least {
            (best, least) = (fitted, error);
        }
    }
    round(group, best, RANGE, integers);
    best
}

fn round(group: &[f32], scale: bf16, (low, high): (f32, f32), integers: &mut [i8; GROUP]) {
    let scale = scale.to_f32();
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for (integer, x) in integers.iter_mut().zip(group) {
        // The nearest, ties to even: f32 has no bits left for a fraction beside so large a number.
        const LARGE: f32 = 12_582_912.0;
        *integer = ((x * inverse).clamp(low, high) + LARGE - LARGE) as i8;
    }
}
