//! Elementwise, so the compiler vectorises the loops for the set they are inlined into. Blocks have a fixed size.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Hyper;
use crate::{Isa, parallel};

/// Elements per block of the norm, and the minimum work for waking a thread.
const BLOCK: usize = 1 << 15;

pub(super) fn step(isa: Isa, hyper: &Hyper, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let correction = |b: f32| 1.0 - f64::from(b).powf(hyper.step as f64);
    let rate = (f64::from(hyper.lr) / correction(hyper.beta1)) as f32;
    let root = (1.0 / correction(hyper.beta2).sqrt()) as f32;
    let grain = parallel::grain(p.len(), 1, BLOCK, 16);
    parallel::split(p.len(), grain, (p, m, v), &|from, count, (p, m, v)| {
        isa.run(Step { hyper, rate, root, p, g: &g[from..][..count], m, v });
    });
}

struct Step<'a> {
    hyper: &'a Hyper,
    rate: f32,
    root: f32,
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { rate, root, .. } = self;
        let Hyper { lr, beta1, beta2, eps, weight_decay, grad_scale, .. } = *self.hyper;
        let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
        let decay = lr * weight_decay;
        for (((p, &g), m), v) in self.p.iter_mut().zip(self.g).zip(self.m).zip(self.v) {
            let g = g * grad_scale;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * g * g;
            *p = *p - decay * *p - rate * *m / (v.sqrt() * root + eps);
        }
    }
}

pub(super) fn norm_sq(isa: Isa, g: &[f32]) -> f64 {
    if g.len() <= 4 * BLOCK {
        return g.chunks(BLOCK).map(|g| isa.run(Squares { g })).sum();
    }
    let blocks: Vec<f64> = g.par_chunks(BLOCK).map(|g| isa.run(Squares { g })).collect();
    blocks.iter().sum()
}

struct Squares<'a> {
    g: &'a [f32],
}

impl WithSimd for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut sums = [0.0f64; 32];
        let (whole, tail) = self.g.as_chunks::<32>();
        for g in whole {
            for (sum, &g) in sums.iter_mut().zip(g) {
                *sum += f64::from(g) * f64::from(g);
            }
        }
        for (sum, &g) in sums.iter_mut().zip(tail) {
            *sum += f64::from(g) * f64::from(g);
        }
        sums.iter().sum()
    }
}

pub(super) fn first_non_finite(isa: Isa, g: &[f32]) -> Option<usize> {
    let blocks = g.len().div_ceil(BLOCK);
    let bad = |i: usize| isa.run(NonFinite { g: &g[i * BLOCK..g.len().min((i + 1) * BLOCK)] });
    let block =
        if blocks <= 4 { (0..blocks).find(|&i| bad(i)) } else { (0..blocks).into_par_iter().find_first(|&i| bad(i)) };
    block.and_then(|i| g[i * BLOCK..].iter().position(|g| !g.is_finite()).map(|at| i * BLOCK + at))
}

struct NonFinite<'a> {
    g: &'a [f32],
}

impl WithSimd for NonFinite<'_> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> bool {
        const EXPONENT: u32 = 0x7f80_0000;
        self.g.iter().fold(false, |bad, g| bad | (g.to_bits() & EXPONENT == EXPONENT))
    }
}
