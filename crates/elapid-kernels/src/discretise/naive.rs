//! The equations, mode by mode. The CPU computes the factors by them too, in f64.

use super::args::{Args, Form, GREATEST, Grads};
use crate::Rows;
use crate::RowsMut;
use crate::float::Float;
use crate::selective_scan::Discretisation;

/// A complex number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Complex<T> {
    /// Its real part.
    pub re: T,
    /// Its imaginary part.
    pub im: T,
}

/// One mode: ā, the factor of B, and the derivatives of both with respect to the three parameters.
#[derive(Debug, Clone, Copy)]
pub struct Mode<T> {
    /// ā.
    pub a: Complex<T>,
    /// The factor f of b̄ = f B.
    pub f: Complex<T>,
    /// Of ā.
    pub da: [Complex<T>; 3],
    /// Of f.
    pub df: [Complex<T>; 3],
}

impl<T: Float> Complex<T> {
    /// The number of these parts.
    pub fn new(re: T, im: T) -> Self {
        Self { re, im }
    }

    fn real(re: T) -> Self {
        Self { re, im: T::zero() }
    }

    /// The conjugate.
    pub fn conj(self) -> Self {
        Self { re: self.re, im: -self.im }
    }

    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    /// The product.
    pub fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    /// A multiple.
    pub fn by(self, x: T) -> Self {
        Self { re: self.re * x, im: self.im * x }
    }

    fn over(self, other: Self) -> Self {
        let square = other.re * other.re + other.im * other.im;
        self.times(other.conj()).by(square.recip())
    }

    fn times_i(self) -> Self {
        Self { re: -self.im, im: self.re }
    }

    fn exp(self) -> Self {
        Self { re: self.im.cos(), im: self.im.sin() }.by(self.re.exp())
    }

    /// exp(z) - 1 without cancellation.
    fn exp_m1(self) -> Self {
        let half = (self.im / T::of(2.0)).sin();
        let re = self.re.exp_m1() * self.im.cos() - T::of(2.0) * half * half;
        Self { re, im: self.re.exp() * self.im.sin() }
    }

    /// The real part of this times the conjugate of another: how a gradient passes through a derivative.
    pub fn dot(self, other: Self) -> T {
        self.re * other.re + self.im * other.im
    }
}

/// φ(z) = (exp(z) - 1) / z and its derivative.
fn phi<T: Float>(z: Complex<T>) -> [Complex<T>; 2] {
    let small = z.re.abs().max(z.im.abs()) < T::of(1e-2);
    if !small {
        let phi = z.exp_m1().over(z);
        return [phi, z.exp().plus(phi.by(-T::one())).over(z)];
    }
    // Σ zᵏ / (k+1)! and Σ (k+1) zᵏ / (k+2)!, by Horner's rule.
    let series = |of: [f64; 8]| {
        let zero = Complex::real(T::zero());
        of.iter().rev().fold(zero, |sum, c| sum.times(z).plus(Complex::real(T::of(c.recip()))))
    };
    let phi = series([1.0, 2.0, 6.0, 24.0, 120.0, 720.0, 5040.0, 40320.0]);
    [phi, series([2.0, 3.0, 8.0, 30.0, 144.0, 840.0, 5760.0, 45360.0])]
}

/// The mode of these parameters.
pub fn mode<T: Float>(form: Form, params: [T; 3]) -> Mode<T> {
    let zero = Complex::real(T::zero());
    let (rule, rescale, clip) = match form {
        Form::Lru => {
            let [nu, theta, gamma] = params.map(|x| x.exp());
            let a = Complex::new(-nu, theta).exp();
            let f = Complex::real(gamma);
            return Mode { a, f, da: [a.by(-nu), a.by(theta).times_i(), zero], df: [zero, zero, f] };
        }
        Form::S5 { rule, rescale, clip } => (rule, rescale, clip),
    };
    let greatest = if clip { T::of(GREATEST) } else { T::infinity() };
    let lambda = Complex::new(params[0].min(greatest), params[1]);
    let delta = params[2].exp() * T::of(rescale.into());
    let z = lambda.by(delta);
    // ā, f, and their derivatives with respect to λ and to Δ.
    let (a, f, of_lambda, of_delta) = match rule {
        Discretisation::Zoh => {
            let (a, [phi, dphi]) = (z.exp(), phi(z));
            (a, phi.by(delta), [a.by(delta), dphi.by(delta * delta)], [a.times(lambda), a])
        }
        Discretisation::ExpEuler => {
            let a = z.exp();
            (a, Complex::real(delta), [a.by(delta), zero], [a.times(lambda), Complex::real(T::one())])
        }
        Discretisation::Bilinear => {
            let (one, half) = (Complex::real(T::one()), z.by(T::of(0.5)));
            let q = one.over(one.plus(half.by(-T::one())));
            let square = q.times(q);
            let of_lambda = [square.by(delta), square.by(delta * delta * T::of(0.5))];
            (one.plus(half).times(q), q.by(delta), of_lambda, [square.times(lambda), square])
        }
    };
    let free = params[0] <= greatest;
    let each = |of_lambda: Complex<T>, of_delta: Complex<T>| {
        [if free { of_lambda } else { zero }, of_lambda.times_i(), of_delta.by(delta)]
    };
    Mode { a, f, da: each(of_lambda[0], of_delta[0]), df: each(of_lambda[1], of_delta[1]) }
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(form: Form, args: &Args<Rows<'_, T>>, a: &mut [T], mut b: RowsMut<'_, T>) {
    let n = args.params[0].len();
    for i in 0..n {
        let mode = mode(form, args.params.map(|x| x[i]));
        (a[i], a[n + i]) = (mode.a.re, -mode.a.im);
        for c in 0..args.b.cols() {
            let x = mode.f.times(Complex::new(args.b.row(i)[c], args.b.row(n + i)[c]));
            (b.row(i)[c], b.row(n + i)[c]) = (x.re, -x.im);
        }
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(
    form: Form,
    args: &Args<Rows<'_, T>>,
    da: &[T],
    db: Rows<'_, T>,
    mut grads: Grads<RowsMut<'_, T>>,
) {
    let n = args.params[0].len();
    for i in 0..n {
        let mode = mode(form, args.params.map(|x| x[i]));
        let mut df = Complex::real(T::zero());
        for c in 0..args.b.cols() {
            let d = Complex::new(db.row(i)[c], -db.row(n + i)[c]);
            df = df.plus(d.times(Complex::new(args.b.row(i)[c], args.b.row(n + i)[c]).conj()));
            let of_b = d.times(mode.f.conj());
            grads.db.row(i)[c] += of_b.re;
            grads.db.row(n + i)[c] += of_b.im;
        }
        let da = Complex::new(da[i], -da[n + i]);
        for (k, d) in grads.params.iter_mut().enumerate() {
            d[i] += da.dot(mode.da[k]) + df.dot(mode.df[k]);
        }
    }
}
