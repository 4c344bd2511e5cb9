//! Values that track the magnitudes of the terms that they are sums of.

use std::iter::Sum;
use std::num::FpCategory;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Rem, RemAssign, Sub, SubAssign};

use num_traits::{FromPrimitive, Num, One, ToPrimitive, Zero};

use crate::Float;

/// A value, and the value it would have if all its terms had the same sign. Run on this type, the oracles compute both.
///
/// Rounding errors are relative to the terms, not to their sum, which may be near 0. Inputs, and values of functions like
/// exp, count as single terms.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The value.
    pub value: f64,
    /// The sum of its terms' magnitudes.
    pub size: f64,
}

/// A sum below this share of its terms' magnitudes is compared relative to them.
const SMALL: f64 = 0.25;

/// RMS of the error over RMS of the reference, where each element counts with its magnitude, or with a quarter of its terms'
/// magnitudes if that is more: the [`err_ratio`](super::err_ratio) for outputs with sums near 0. Infinity if `got` has
/// another length, or a NaN or infinity.
pub fn err_ratio_of_terms(want: &[Terms], got: &[f32]) -> f64 {
    if want.len() != got.len() || got.iter().any(|g| !g.is_finite()) {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let error: f64 = want.iter().zip(got).map(|(want, &got)| square(f64::from(got) - want.value)).sum();
    let reference: f64 = want.iter().map(|want| square(want.value.abs().max(SMALL * want.size))).sum();
    if error == 0.0 { 0.0 } else { (error / reference.max(f64::MIN_POSITIVE)).sqrt() }
}

/// RMS of the relative errors: each element's relative to its value, or to a quarter of its terms' magnitudes if that is
/// more. So a large element cannot hide the error of another. Infinity if `got` has another length, or a NaN or infinity.
pub fn error_of_terms(want: &[Terms], got: &[f32]) -> f64 {
    if want.len() != got.len() || got.iter().any(|g| !g.is_finite()) {
        return f64::INFINITY;
    }
    let error = |(want, &got): (&Terms, &f32)| {
        // Values below the normal range of f32 may be flushed to 0.
        let scale = want.value.abs().max(SMALL * want.size).max(f32::MIN_POSITIVE.into());
        ((f64::from(got) - want.value) / scale).powi(2)
    };
    let mean = want.iter().zip(got).map(error).sum::<f64>() / want.len().max(1) as f64;
    if mean.is_nan() { f64::INFINITY } else { mean.sqrt() }
}

/// The same values as terms.
pub fn terms(x: &[f32]) -> Vec<Terms> {
    x.iter().map(|&x| Terms::new(x.into())).collect()
}

impl Terms {
    /// A value that is not a sum.
    pub fn new(value: f64) -> Self {
        Self { value, size: value.abs() }
    }
}

impl From<f32> for Terms {
    fn from(x: f32) -> Self {
        Self::new(x.into())
    }
}

impl Add for Terms {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, size: self.size + other.size }
    }
}

impl Sub for Terms {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Terms {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self { value: self.value * other.value, size: self.size * other.size }
    }
}

impl Div for Terms {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        Self { value: self.value / other.value, size: self.size / other.value.abs() }
    }
}

impl Rem for Terms {
    type Output = Self;
    fn rem(self, other: Self) -> Self {
        Self::new(self.value % other.value)
    }
}

impl Neg for Terms {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, size: self.size }
    }
}

macro_rules! assign {
    ($($assign:ident $method:ident $op:tt,)*) => {
        $(impl $assign for Terms {
            fn $method(&mut self, other: Self) {
                *self = *self $op other;
            }
        })*
    };
}

assign! { AddAssign add_assign +, SubAssign sub_assign -, MulAssign mul_assign *, DivAssign div_assign /, RemAssign rem_assign %, }

impl PartialEq for Terms {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialOrd for Terms {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl Sum for Terms {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::zero(), Add::add)
    }
}

impl Zero for Terms {
    fn zero() -> Self {
        Self::new(0.0)
    }
    fn is_zero(&self) -> bool {
        self.value == 0.0
    }
}

impl One for Terms {
    fn one() -> Self {
        Self::new(1.0)
    }
}

impl Num for Terms {
    type FromStrRadixErr = <f64 as Num>::FromStrRadixErr;
    fn from_str_radix(text: &str, radix: u32) -> Result<Self, Self::FromStrRadixErr> {
        f64::from_str_radix(text, radix).map(Self::new)
    }
}

impl ToPrimitive for Terms {
    fn to_i64(&self) -> Option<i64> {
        self.value.to_i64()
    }
    fn to_u64(&self) -> Option<u64> {
        self.value.to_u64()
    }
    fn to_f64(&self) -> Option<f64> {
        Some(self.value)
    }
}

impl num_traits::NumCast for Terms {
    fn from<T: ToPrimitive>(x: T) -> Option<Self> {
        x.to_f64().map(Self::new)
    }
}

impl FromPrimitive for Terms {
    fn from_i64(x: i64) -> Option<Self> {
        Some(Self::new(x as f64))
    }
    fn from_u64(x: u64) -> Option<Self> {
        Some(Self::new(x as f64))
    }
    fn from_f64(x: f64) -> Option<Self> {
        Some(Self::new(x))
    }
}

/// Functions of the value alone.
macro_rules! of_value {
    (constants: $($constant:ident)*; tests: $($test:ident)*; one: $($one:ident)*; two: $($two:ident)*;) => {
        $(fn $constant() -> Self { Self::new(<f64 as num_traits::Float>::$constant()) })*
        $(fn $test(self) -> bool { self.value.$test() })*
        $(fn $one(self) -> Self { Self::new(self.value.$one()) })*
        $(fn $two(self, other: Self) -> Self { Self::new(num_traits::Float::$two(self.value, other.value)) })*
    };
}

impl num_traits::Float for Terms {
    of_value! {
        constants: nan infinity neg_infinity neg_zero min_value min_positive_value max_value;
        tests: is_nan is_infinite is_finite is_normal is_sign_positive is_sign_negative;
        one: floor ceil round trunc fract signum recip sqrt exp exp2 ln log2 log10 cbrt sin cos tan asin acos atan exp_m1
            ln_1p sinh cosh tanh asinh acosh atanh;
        two: powf log abs_sub hypot atan2;
    }
    fn classify(self) -> FpCategory {
        self.value.classify()
    }
    fn abs(self) -> Self {
        Self { value: self.value.abs(), size: self.size }
    }
    fn mul_add(self, by: Self, other: Self) -> Self {
        self * by + other
    }
    fn powi(self, n: i32) -> Self {
        let size = if n >= 0 { self.size } else { self.value.abs() };
        Self { value: self.value.powi(n), size: size.powi(n) }
    }
    fn max(self, other: Self) -> Self {
        if self < other { other } else { self }
    }
    fn min(self, other: Self) -> Self {
        if other < self { other } else { self }
    }
    fn sin_cos(self) -> (Self, Self) {
        (self.sin(), self.cos())
    }
    fn integer_decode(self) -> (u64, i16, i8) {
        num_traits::Float::integer_decode(self.value)
    }
}

impl Float for Terms {
    fn sigmoid(self) -> Self {
        Self::new(self.value.sigmoid())
    }
    /// σ (1 + x (1 - σ)), whose terms cancel where x is about -1.28.
    fn dsilu(self) -> Self {
        let terms = 1.0 + self.size * (-self.value).sigmoid();
        Self { value: self.value.dsilu(), size: self.value.sigmoid() * terms }
    }
}

#[cfg(test)]
mod tests {
    use num_traits::Float as _;

    use super::*;

    #[test]
    fn sizes_are_those_of_the_terms() {
        let [a, b, c] = [3.0, -2.0, 0.5].map(Terms::new);
        let sum = a * b + c * c * Terms::new(23.0) - Terms::new(0.25);
        assert_eq!((sum.value, sum.size), (-0.5, 12.0));
        assert_eq!(((sum / c).value, (sum / c).size), (-1.0, 24.0));
        assert_eq!((b.powi(2).value, sum.powi(2).size), (4.0, 144.0));
        assert_eq!((b.exp().size, (-b).silu().value), ((-2.0f64).exp(), 2.0f64.silu()));
        let root = Terms::new(-1.278464542761074).dsilu();
        assert!(root.value.abs() < 1e-12 && (root.size - 0.4356).abs() < 1e-3, "{root:?}");
    }

    #[test]
    fn only_small_sums_are_compared_by_their_terms() {
        let sum = |value, size| Terms { value, size };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(error_of_terms(&[sum(2.0, 4.0)], &[2.5]), 0.25);
        close(error_of_terms(&[sum(0.0, 4.0)], &[0.5]), 0.5);
        // Large terms of one element do not hide the error of another.
        close(error_of_terms(&[sum(0.0, 1e6), sum(1.0, 1.0)], &[0.0, 1.5]), 0.5 / 2f64.sqrt());
        close(err_ratio_of_terms(&[sum(0.0, 8.0), sum(2.0, 2.0)], &[1.0, 2.0]), 0.5f64.sqrt() / 2.0);
        close(err_ratio_of_terms(&[sum(2.0, 4.0)], &[2.5]), 0.25);
        assert_eq!(error_of_terms(&[sum(0.0, 0.0)], &[0.0]), 0.0);
        assert!(error_of_terms(&[sum(0.0, 0.0)], &[1e-30]) > 1.0);
        for wrong in [&[f32::NAN][..], &[f32::INFINITY], &[]] {
            assert_eq!(error_of_terms(&[sum(1.0, 1.0)], wrong), f64::INFINITY);
        }
    }
}
