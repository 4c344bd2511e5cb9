//! The equations as a loop, one parameter after another.

use super::Hyper;
use crate::Float;

/// Shapes as in [`super::step`].
pub fn step<T: Float>(hyper: &Hyper, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
    let of = |x: f32| T::of(f64::from(x));
    let (b1, b2) = (of(hyper.beta1), of(hyper.beta2));
    let correction = |b: f32| T::of(1.0 - f64::from(b).powf(hyper.step as f64));
    let (c1, c2) = (correction(hyper.beta1), correction(hyper.beta2));
    for i in 0..p.len() {
        let g = g[i] * of(hyper.grad_scale);
        p[i] -= of(hyper.lr) * of(hyper.weight_decay) * p[i];
        m[i] = b1 * m[i] + (T::one() - b1) * g;
        v[i] = b2 * v[i] + (T::one() - b2) * g * g;
        p[i] -= of(hyper.lr) / c1 * m[i] / (v[i].sqrt() / c2.sqrt() + of(hyper.eps));
    }
}
