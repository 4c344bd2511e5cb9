//! The equations as loops.

use super::{Function, Map};
use crate::{Float, Rows, RowsMut};

/// β f(α x).
pub fn map_value<T: Float>(map: Map, x: T) -> T {
    T::of(map.beta.into()) * value(map.f, T::of(map.alpha.into()) * x)
}

/// The derivative of [`map_value`]: α β f'(α x).
pub fn map_derivative<T: Float>(map: Map, x: T) -> T {
    let (alpha, beta) = (T::of(map.alpha.into()), T::of(map.beta.into()));
    alpha * beta * derivative(map.f, alpha * x)
}

/// f(x).
pub fn value<T: Float>(f: Function, x: T) -> T {
    let half = T::of(0.5);
    match f {
        Function::Identity => x,
        Function::Relu => x.max(T::zero()),
        Function::SquaredRelu => x.max(T::zero()) * x.max(T::zero()),
        Function::Silu => x.silu(),
        Function::Gelu => x * half * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        Function::GeluTanh => half * x * (T::one() + inner(x).tanh()),
        Function::Sigmoid => x.sigmoid(),
        Function::Tanh => x.tanh(),
        Function::EluPlusOne => {
            if x > T::zero() {
                x + T::one()
            } else {
                x.exp()
            }
        }
        Function::Softplus => x.softplus(),
        Function::LogSigmoid => -(-x).softplus(),
        Function::LogOneMinus => (-x).ln_1p(),
    }
}

/// f'(x).
pub fn derivative<T: Float>(f: Function, x: T) -> T {
    let half = T::of(0.5);
    match f {
        Function::Identity => T::one(),
        Function::Relu => {
            if x > T::zero() {
                T::one()
            } else {
                T::zero()
            }
        }
        Function::SquaredRelu => T::of(2.0) * x.max(T::zero()),
        Function::Silu => x.dsilu(),
        Function::Gelu => {
            let density = (-half * x * x).exp() * T::of((2.0 * std::f64::consts::PI).sqrt().recip());
            half * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf()) + x * density
        }
        Function::GeluTanh => {
            let t = inner(x).tanh();
            let slope = T::of(FACTOR) * (T::one() + T::of(3.0 * CUBE) * x * x);
            half * (T::one() + t) + half * x * (T::one() - t * t) * slope
        }
        Function::Sigmoid => x.sigmoid() * (T::one() - x.sigmoid()),
        Function::Tanh => T::one() - x.tanh() * x.tanh(),
        Function::EluPlusOne => {
            if x > T::zero() {
                T::one()
            } else {
                x.exp()
            }
        }
        Function::Softplus => x.sigmoid(),
        Function::LogSigmoid => (-x).sigmoid(),
        Function::LogOneMinus => -(T::one() - x).recip(),
    }
}

/// √(2/π).
const FACTOR: f64 = 0.797_884_560_802_865_4;
const CUBE: f64 = 0.044715;

fn inner<T: Float>(x: T) -> T {
    T::of(FACTOR) * (x + T::of(CUBE) * x * x * x)
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(f: impl Into<Map>, x: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    let f = f.into();
    for r in 0..x.rows() {
        y.row(r).iter_mut().zip(x.row(r)).for_each(|(y, &x)| *y = map_value(f, x));
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(f: impl Into<Map>, x: Rows<'_, T>, dy: Rows<'_, T>, mut dx: RowsMut<'_, T>) {
    let f = f.into();
    for r in 0..x.rows() {
        for ((dx, &x), &dy) in dx.row(r).iter_mut().zip(x.row(r)).zip(dy.row(r)) {
            *dx = map_derivative(f, x) * dy;
        }
    }
}

/// Shapes as in [`super::glu_forward`].
pub fn glu_forward<T: Float>(f: impl Into<Map>, x: Rows<'_, T>, z: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    let f = f.into();
    for r in 0..x.rows() {
        for ((y, &x), &z) in y.row(r).iter_mut().zip(x.row(r)).zip(z.row(r)) {
            *y = map_value(f, x) * z;
        }
    }
}

/// Shapes as in [`super::glu_backward`].
pub fn glu_backward<T: Float>(
    f: impl Into<Map>,
    x: Rows<'_, T>,
    z: Rows<'_, T>,
    dy: Rows<'_, T>,
    mut dx: RowsMut<'_, T>,
    mut dz: RowsMut<'_, T>,
) {
    let f = f.into();
    for r in 0..x.rows() {
        let (x, z, dx, dz) = (x.row(r), z.row(r), dx.row(r), dz.row(r));
        for (i, &dy) in dy.row(r).iter().enumerate() {
            dx[i] = map_derivative(f, x[i]) * z[i] * dy;
            dz[i] = map_value(f, x[i]) * dy;
        }
    }
}

/// y = α a + β b + γ. Shapes as in [`super::add_scaled`].
pub fn add_scaled<T: Float>(alpha: T, a: Rows<'_, T>, b: Option<(T, Rows<'_, T>)>, gamma: T, mut y: RowsMut<'_, T>) {
    for r in 0..a.rows() {
        match b {
            None => y.row(r).iter_mut().zip(a.row(r)).for_each(|(y, &a)| *y = alpha * a + gamma),
            Some((beta, b)) => {
                for ((y, &a), &b) in y.row(r).iter_mut().zip(a.row(r)).zip(b.row(r)) {
                    *y = alpha * a + beta * b + gamma;
                }
            }
        }
    }
}
