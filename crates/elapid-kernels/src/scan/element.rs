//! The elements of scans.

use crate::Float;

/// A map of states that composes with later ones. Composition must be associative, with [`Element::identity`] neutral.
pub trait Element: Copy + Send + Sync {
    /// The map that leaves every state alone.
    fn identity() -> Self;

    /// `self` first, then `later`.
    fn then(self, later: Self) -> Self;

    /// The same step from a state of 0, whatever came before.
    fn reset(self) -> Self;
}

/// Numbers of the recurrence: they can be added and multiplied, and products need not commute.
pub trait Ring: Copy + Send + Sync + std::fmt::Debug + PartialEq {
    /// Adding it changes nothing.
    fn zero() -> Self;
    /// Multiplying by it changes nothing.
    fn one() -> Self;
    /// self + other.
    fn plus(self, other: Self) -> Self;
    /// self · other, in this order.
    fn times(self, other: Self) -> Self;
    /// The adjoint, for gradients: the conjugate of a complex number, the transpose of a matrix.
    fn adjoint(self) -> Self;
}

impl<T: Float> Ring for T {
    fn zero() -> Self {
        num_traits::Zero::zero()
    }
    fn one() -> Self {
        num_traits::One::one()
    }
    fn plus(self, other: Self) -> Self {
        self + other
    }
    fn times(self, other: Self) -> Self {
        self * other
    }
    fn adjoint(self) -> Self {
        self
    }
}

/// A complex number: the diagonal states of S4D, S5 and Mamba-3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Complex<T> {
    /// Real part.
    pub re: T,
    /// Imaginary part.
    pub im: T,
}

impl<T: Float> Ring for Complex<T> {
    fn zero() -> Self {
        Self { re: T::zero(), im: T::zero() }
    }
    fn one() -> Self {
        Self { re: T::one(), im: T::zero() }
    }
    fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
    fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
    fn adjoint(self) -> Self {
        Self { re: self.re, im: -self.im }
    }
}

/// A 2×2 matrix, `[row][column]`. The smallest state whose products do not commute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix2<T>(pub [[T; 2]; 2]);

impl<T: Float> Ring for Matrix2<T> {
    fn zero() -> Self {
        Self([[T::zero(); 2]; 2])
    }
    fn one() -> Self {
        Self([[T::one(), T::zero()], [T::zero(), T::one()]])
    }
    fn plus(self, other: Self) -> Self {
        Self([0, 1].map(|i| [0, 1].map(|j| self.0[i][j] + other.0[i][j])))
    }
    fn times(self, other: Self) -> Self {
        Self([0, 1].map(|i| [0, 1].map(|j| self.0[i][0] * other.0[0][j] + self.0[i][1] * other.0[1][j])))
    }
    fn adjoint(self) -> Self {
        Self([0, 1].map(|i| [0, 1].map(|j| self.0[j][i])))
    }
}

/// The step h ↦ a h + b.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step<T> {
    /// Decay.
    pub a: T,
    /// Input.
    pub b: T,
}

impl<T: Ring> Element for Step<T> {
    fn identity() -> Self {
        Self { a: T::one(), b: T::zero() }
    }

    fn then(self, later: Self) -> Self {
        Self { a: later.a.times(self.a), b: later.a.times(self.b).plus(later.b) }
    }

    fn reset(self) -> Self {
        Self { a: T::zero(), ..self }
    }
}
