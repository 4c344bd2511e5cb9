//! The discretisations as vector code. With x = ΔA: Ā = α(x) and B̄ = Δ κ(x) B, so that h_t = α h_{t-1} + κ v with v = Δ u
//! B. A rule is a type, so the simplest one has no overhead from the others.

use pulp::Simd;

use crate::math;

pub(super) trait Rule: Send + Sync + 'static {
    /// Factor of A before the loop over time.
    const SCALE: f32;
    /// Its inverse.
    const UNSCALE: f32;

    /// The values of α and κ that the backward needs at one x.
    type Coef<S: Simd>: Copy + Send;

    /// From x · `SCALE`.
    fn coef<S: Simd>(simd: S, x: S::f32s) -> Self::Coef<S>;

    /// α.
    fn decay<S: Simd>(simd: S, coef: Self::Coef<S>) -> S::f32s;

    /// κ v.
    fn drive<S: Simd>(simd: S, coef: Self::Coef<S>, v: S::f32s) -> S::f32s;

    /// The gradient of x: dh (α' `before` + κ' v), given `carry` = α dh.
    fn dx<S: Simd>(simd: S, coef: Self::Coef<S>, dh: S::f32s, carry: S::f32s, before: S::f32s, v: S::f32s) -> S::f32s;
}

/// α = e^x, κ = 1. A is premultiplied by log2 e, which saves a product per exponential.
pub(super) struct ExpEuler;

impl Rule for ExpEuler {
    const SCALE: f32 = std::f32::consts::LOG2_E;
    const UNSCALE: f32 = std::f32::consts::LN_2;
    type Coef<S: Simd> = S::f32s;

    #[inline(always)]
    fn coef<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        math::exp2(simd, x)
    }

    #[inline(always)]
    fn decay<S: Simd>(_: S, coef: S::f32s) -> S::f32s {
        coef
    }

    #[inline(always)]
    fn drive<S: Simd>(_: S, _: S::f32s, v: S::f32s) -> S::f32s {
        v
    }

    #[inline(always)]
    fn dx<S: Simd>(simd: S, _: S::f32s, _: S::f32s, carry: S::f32s, before: S::f32s, _: S::f32s) -> S::f32s {
        simd.mul_f32s(carry, before)
    }
}

/// A polynomial of x, the highest power's coefficient first.
#[inline(always)]
fn horner<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: [f32; N]) -> S::f32s {
    let mut p = simd.splat_f32s(coefficients[0]);
    for next in &coefficients[1..] {
        p = simd.mul_add_e_f32s(p, x, simd.splat_f32s(*next));
    }
    p
}

/// α = e^x, κ = (e^x - 1) / x. Holds α, κ and κ'.
pub(super) struct Zoh;

impl Rule for Zoh {
    const SCALE: f32 = 1.0;
    const UNSCALE: f32 = 1.0;
    type Coef<S: Simd> = [S::f32s; 3];

    /// Within ±1/2 the series Σ x^j / (j+1)! up to j = 7 (its rest is below 2e-8), elsewhere the quotients, which lose
    /// at most two bits there: κ' = (α - κ) / x.
    #[inline(always)]
    fn coef<S: Simd>(simd: S, x: S::f32s) -> [S::f32s; 3] {
        let c = |v: f32| simd.splat_f32s(v);
        let near = simd.less_than_f32s(simd.abs_f32s(x), c(0.5));
        let alpha = math::exp(simd, x);
        let over_x = simd.div_f32s(c(1.0), simd.select_f32s(near, c(1.0), x));
        let kappa = simd.select_f32s(
            near,
            horner(simd, x, [1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0]),
            simd.mul_f32s(simd.sub_f32s(alpha, c(1.0)), over_x),
        );
        let dkappa = simd.select_f32s(
            near,
            horner(
                simd,
                x,
                [1.0 / 45360.0, 1.0 / 5760.0, 1.0 / 840.0, 1.0 / 144.0, 1.0 / 30.0, 1.0 / 8.0, 1.0 / 3.0, 0.5],
            ),
            simd.mul_f32s(simd.sub_f32s(alpha, kappa), over_x),
        );
        [alpha, kappa, dkappa]
    }

    #[inline(always)]
    fn decay<S: Simd>(_: S, coef: [S::f32s; 3]) -> S::f32s {
        coef[0]
    }

    #[inline(always)]
    fn drive<S: Simd>(simd: S, coef: [S::f32s; 3], v: S::f32s) -> S::f32s {
        simd.mul_f32s(coef[1], v)
    }

    #[inline(always)]
    fn dx<S: Simd>(simd: S, coef: [S::f32s; 3], dh: S::f32s, carry: S::f32s, before: S::f32s, v: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(carry, before, simd.mul_f32s(simd.mul_f32s(dh, coef[2]), v))
    }
}

/// α = 2r - 1, κ = r with r = 1 / (1 - x/2), so α' = r² and κ' = r²/2. Holds r.
pub(super) struct Bilinear;

impl Rule for Bilinear {
    const SCALE: f32 = 0.5;
    const UNSCALE: f32 = 2.0;
    type Coef<S: Simd> = S::f32s;

    #[inline(always)]
    fn coef<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let one = simd.splat_f32s(1.0);
        simd.div_f32s(one, simd.sub_f32s(one, x))
    }

    #[inline(always)]
    fn decay<S: Simd>(simd: S, r: S::f32s) -> S::f32s {
        simd.sub_f32s(simd.add_f32s(r, r), simd.splat_f32s(1.0))
    }

    #[inline(always)]
    fn drive<S: Simd>(simd: S, r: S::f32s, v: S::f32s) -> S::f32s {
        simd.mul_f32s(r, v)
    }

    #[inline(always)]
    fn dx<S: Simd>(simd: S, r: S::f32s, dh: S::f32s, _: S::f32s, before: S::f32s, v: S::f32s) -> S::f32s {
        let inner = simd.mul_add_e_f32s(simd.splat_f32s(0.5), v, before);
        simd.mul_f32s(simd.mul_f32s(dh, simd.mul_f32s(r, r)), inner)
    }
}
