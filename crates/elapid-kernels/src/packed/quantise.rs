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

/// The scale, and the integers in -127 ..= 127. A group that ends early has zeros.
#[inline(always)]
pub(super) fn int8(group: &[f32; GROUP]) -> (bf16, [f32; GROUP]) {
    let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = bf16::from_f32(largest / 127.0);
    (scale, round(group, scale, (-127.0, 127.0)))
}

/// The scale, and the integers in -8 ..= 7.
#[inline(always)]
pub(super) fn int4(group: &[f32; GROUP], rounding: Rounding<'_>) -> (bf16, [f32; GROUP]) {
    const RANGE: (f32, f32) = (-8.0, 7.0);
    let largest = group.iter().fold(0.0_f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
    let first = bf16::from_f32(largest / -8.0);
    let mut weights = [1.0; GROUP];
    match rounding {
        Rounding::Largest => return (first, round(group, first, RANGE)),
        Rounding::Least(None) => {}
        Rounding::Least(Some(given)) => {
            weights = [f32::MIN_POSITIVE; GROUP];
            weights.iter_mut().zip(given).for_each(|(weight, &given)| *weight = given.max(f32::MIN_POSITIVE));
        }
    }
    let (mut best, mut least) = (first, f32::INFINITY);
    for step in -14..=10 {
        // The scale of a guess gives integers; the best scale for these integers is a quotient.
        let guess = largest / (-8.0 + 0.25 * step as f32);
        let integers = round(group, bf16::from_f32(guess), RANGE);
        let products = sum(|i| weights[i] * group[i] * integers[i]);
        let squares = sum(|i| weights[i] * integers[i] * integers[i]);
        let fitted = bf16::from_f32(if squares > 0.0 { products / squares } else { guess });
        let (integers, scale) = (round(group, fitted, RANGE), fitted.to_f32());
        let error = sum(|i| {
            let off = group[i] - scale * integers[i];
            weights[i] * off * off
        });
        if error < least {
            (best, least) = (fitted, error);
        }
    }
    (best, round(group, best, RANGE))
}

/// The nearest integers within a range.
#[inline(always)]
fn round(group: &[f32; GROUP], scale: bf16, (low, high): (f32, f32)) -> [f32; GROUP] {
    // The nearest, ties to even: f32 has no bits left for a fraction beside so large a number.
    const LARGE: f32 = 12_582_912.0;
    let scale = scale.to_f32();
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    group.map(|x| (x * inverse).max(low).min(high) + LARGE - LARGE)
}

/// The sum over a group, eight beside each other.
#[inline(always)]
fn sum(term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; 8];
    for i in (0..GROUP).step_by(8) {
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum += term(i + j);
        }
    }
    sums.iter().sum()
}
