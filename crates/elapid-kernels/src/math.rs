//! exp, softplus, sigmoid, tanh and SiLU on vectors of f32, by polynomials.
//!
//! Largest relative errors against f64, measured by the tests below over every 509th float of the stated range, on
//! every instruction set (bound asserted; in brackets the worst seen with 16 or 8 lanes, and with one):
//!
//! | function   | from   | to     | relative error            |
//! |------------|--------|--------|---------------------------|
//! | `exp2`     | -126   | 127    | 1e-7 (6.5e-8, 8.6e-8)     |
//! | `exp`      | -87.33 | 88.02  | 1e-7 (7.5e-8, 9.3e-8)     |
//! | `softplus` | -87.33 | 3.4e38 | 2.5e-7 (2.0e-7, 2.1e-7)   |
//! | `sigmoid`  | -87.33 | 3.4e38 | 2e-7 (1.4e-7, 1.3e-7)     |
//! | `silu`     | -83    | 1e38   | 2e-7 (1.7e-7, 1.7e-7)     |
//! | `tanh`     | -3e38  | 3e38   | 2.5e-7 (1.4e-7, 1.3e-7)   |
//!
//! `dsilu` has a root: its error is at most 3e-7 of its two terms' magnitudes.
//!
//! Polynomials: least squares in the relative error at Chebyshev nodes. Coefficients are rounded to f32 one after another
//! from the lowest power up, refitting the rest each time. The error of the polynomial itself is at most 5e-9.

use std::f32::consts::LOG2_E;

use pulp::Simd;

/// 1.5 · 2^23: adding it to |x| < 2^22 rounds x to an integer, which is left in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// x between `low` and `high`; NaN stays NaN.
#[inline(always)]
fn clamp<S: Simd>(simd: S, x: S::f32s, low: f32, high: f32) -> S::f32s {
    let (low, high) = (simd.splat_f32s(low), simd.splat_f32s(high));
    if S::IS_SCALAR {
        // `f32::max` would drop a NaN; the vector instructions return their second operand.
        let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);
        simd.select_f32s(simd.greater_than_f32s(x, high), high, x)
    } else {
        simd.max_f32s(low, simd.min_f32s(high, x))
    }
}

/// p · 2^i, where i is in the low bits of `shifted` (an integer plus [`ROUND`]).
#[inline(always)]
fn scale<S: Simd>(simd: S, p: S::f32s, shifted: S::f32s) -> S::f32s {
    let i = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), i))
}

/// 2^x for x in [-126, 127]; smaller x give 2^-126, larger ones 2^127. NaN stays NaN.
///
/// x = i + f with i the nearest integer and |f| ≤ 1/2: a polynomial of degree 6 gives 2^f, and i goes into the exponent
/// bits. The first two coefficients are exactly those of the series, so that 2^x is correct to the last bit near x = 0,
/// because a scan raises decays close to 1 to high powers.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    exp2_within(simd, clamp(simd, x, -126.0, 127.0))
}

/// 2^x for x ≤ 0: exactly 0 below -127, at most 2^-126 between that and -126. NaN stays NaN.
///
/// At -127, where f = 0 and the polynomial is 1, the exponent bits become 0, and with them the value.
#[inline(always)]
pub(crate) fn exp2_not_above_0<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let low = simd.splat_f32s(-127.0);
    let x = match S::IS_SCALAR {
        // As in [`clamp`].
        true => simd.select_f32s(simd.less_than_f32s(x, low), low, x),
        false => simd.max_f32s(low, x),
    };
    exp2_within(simd, x)
}

#[inline(always)]
fn exp2_within<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let c = |v: f32| simd.splat_f32s(v);
    let shifted = simd.add_f32s(x, c(ROUND));
    let f = simd.sub_f32s(x, simd.sub_f32s(shifted, c(ROUND)));
    let p = c(1.523_800_6e-4);
    let p = simd.mul_add_e_f32s(p, f, c(1.339_113_7e-3));
    let p = simd.mul_add_e_f32s(p, f, c(9.618_841e-3));
    let p = simd.mul_add_e_f32s(p, f, c(5.550_359e-2));
    let p = simd.mul_add_e_f32s(p, f, c(2.402_264_5e-1));
    let p = simd.mul_add_e_f32s(p, f, c(std::f32::consts::LN_2));
    let p = simd.mul_add_e_f32s(p, f, c(1.0));
    scale(simd, p, shifted)
}

/// e^x for x in [-87.33, 88.02]; smaller x give about 2^-126, larger ones about 2^127. NaN stays NaN.
///
/// As [`exp2`], but i ln 2 is subtracted in two parts: multiplying by log2 e first would lose |x| / 2 units of the last
/// place.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let c = |v: f32| simd.splat_f32s(v);
    let x = clamp(simd, x, -87.336_54, 88.029_69);
    let shifted = simd.mul_add_e_f32s(x, c(LOG2_E), c(ROUND));
    let i = simd.sub_f32s(shifted, c(ROUND));
    // ln 2 with its last 9 bits 0, so that i times it is exact even without a fused multiply-add, and the rest.
    let r = simd.mul_add_e_f32s(i, c(-0.693_145_75), x);
    let r = simd.mul_add_e_f32s(i, c(-1.428_606_8e-6), r);
    let p = c(1.374_532_6e-3);
    let p = simd.mul_add_e_f32s(p, r, c(8.368_947e-3));
    let p = simd.mul_add_e_f32s(p, r, c(4.166_965e-2));
    let p = simd.mul_add_e_f32s(p, r, c(1.666_651_8e-1));
    let p = simd.mul_add_e_f32s(p, r, c(4.999_998_8e-1));
    let p = simd.mul_add_e_f32s(p, r, c(1.0));
    let p = simd.mul_add_e_f32s(p, r, c(1.0));
    scale(simd, p, shifted)
}

/// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), with small relative error also where it is close to 0.
///
/// From 20 on this is x to the last bit, PyTorch's threshold; below -87.33 it stays at 2^-126.
/// log(1 + t) = 2 artanh(s) with s = t / (2 + t) ≤ 1/3, an odd polynomial of s.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    softplus_sigmoid(simd, x).0
}

/// [`softplus`] and its derivative, the sigmoid, from one exponential.
#[inline(always)]
pub(crate) fn softplus_sigmoid<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let c = |v: f32| simd.splat_f32s(v);
    let t = exp(simd, simd.or_f32s(x, c(-0.0)));
    let s = simd.div_f32s(t, simd.add_f32s(t, c(2.0)));
    let y = simd.mul_f32s(s, s);
    let p = c(1.400_361_2e-1);
    let p = simd.mul_add_e_f32s(p, y, c(1.400_147_5e-1));
    let p = simd.mul_add_e_f32s(p, y, c(2.001_072e-1));
    let p = simd.mul_add_e_f32s(p, y, c(3.333_321e-1));
    let twice = simd.add_f32s(s, s);
    let log1p = simd.mul_add_e_f32s(simd.mul_f32s(twice, y), p, twice);
    let softplus = simd.add_f32s(simd.max_f32s(x, c(0.0)), log1p);
    let above = simd.select_f32s(simd.less_than_f32s(x, c(0.0)), t, c(1.0));
    (softplus, simd.div_f32s(above, simd.add_f32s(t, c(1.0))))
}

/// tanh(x): an odd polynomial up to 0.625 (Cephes); beyond it 1 - 2 / (e^2|x| + 1), which near 0 would cancel.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let c = |v: f32| simd.splat_f32s(v);
    let sign = simd.and_f32s(x, c(-0.0));
    let size = simd.xor_f32s(x, sign);
    let square = simd.mul_f32s(size, size);
    let p = c(-5.704_988_7e-3);
    let p = simd.mul_add_e_f32s(p, square, c(2.063_908_8e-2));
    let p = simd.mul_add_e_f32s(p, square, c(-5.373_971_6e-2));
    let p = simd.mul_add_e_f32s(p, square, c(1.333_144_2e-1));
    let p = simd.mul_add_e_f32s(p, square, c(-3.333_328e-1));
    let near = simd.mul_add_e_f32s(simd.mul_f32s(p, square), size, size);
    let far = simd.div_f32s(c(2.0), simd.add_f32s(exp(simd, simd.add_f32s(size, size)), c(1.0)));
    let far = simd.sub_f32s(c(1.0), far);
    simd.or_f32s(simd.select_f32s(simd.less_than_f32s(size, c(0.625)), near, far), sign)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// The derivative of tanh, 4 e / (1 + e)² with e = e^-2|x|: 1 - tanh² would cancel.
#[inline(always)]
pub(crate) fn dtanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let c = |v: f32| simd.splat_f32s(v);
    let size = simd.or_f32s(x, c(-0.0));
    let e = exp(simd, simd.add_f32s(size, size));
    let r = simd.div_f32s(c(2.0), simd.add_f32s(e, c(1.0)));
    simd.mul_f32s(simd.mul_f32s(e, r), r)
}

/// The sigmoid and its derivative, from one exponential.
#[inline(always)]
pub(crate) fn sigmoid_dsigmoid<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let one = simd.splat_f32s(1.0);
    let e = exp(simd, simd.neg_f32s(x));
    let s = simd.div_f32s(one, simd.add_f32s(one, e));
    (s, simd.mul_f32s(simd.mul_f32s(e, s), s))
}

/// x sigmoid(x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    simd.mul_f32s(x, sigmoid(simd, x))
}

/// The derivative of x sigmoid(x): σ (1 + x (1 - σ)).
#[inline(always)]
pub(crate) fn dsilu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    silu_dsilu(simd, x).1
}

/// x sigmoid(x) and its derivative, from one exponential.
#[inline(always)]
pub(crate) fn silu_dsilu<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let one = simd.splat_f32s(1.0);
    let e = exp(simd, simd.neg_f32s(x));
    let s = simd.div_f32s(one, simd.add_f32s(one, e));
    // 1 - σ as e^-x σ: no cancellation where σ is close to 1.
    let derivative = simd.mul_f32s(s, simd.mul_add_e_f32s(x, simd.mul_f32s(e, s), one));
    (simd.mul_f32s(x, s), derivative)
}

/// The largest of z; a NaN is never it.
#[inline(always)]
pub(crate) fn largest<S: Simd>(simd: S, z: &[f32]) -> f32 {
    let (vectors, tail) = S::as_simd_f32s(z);
    let mut best = [simd.splat_f32s(f32::NEG_INFINITY); 4];
    let (fours, rest) = vectors.as_chunks::<4>();
    // Of a NaN and a number the maximum is the second.
    for z in fours {
        for j in 0..4 {
            best[j] = simd.max_f32s(z[j], best[j]);
        }
    }
    for &z in rest {
        best[0] = simd.max_f32s(z, best[0]);
    }
    let best = simd.max_f32s(simd.max_f32s(best[0], best[1]), simd.max_f32s(best[2], best[3]));
    tail.iter().fold(simd.reduce_max_f32s(best), |a, &b| a.max(b))
}

/// The sum of z, in an order that depends on its length and the vectors alone.
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, z: &[f32]) -> f32 {
    let (vectors, tail) = S::as_simd_f32s(z);
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (j, &z) in vectors.iter().enumerate() {
        sums[j % 4] = simd.add_f32s(sums[j % 4], z);
    }
    total(simd, sums) + tail.iter().sum::<f32>()
}

/// The sum of all lanes.
#[inline(always)]
pub(crate) fn total<S: Simd>(simd: S, sums: [S::f32s; 4]) -> f32 {
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3])))
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::*;
    use crate::{Float, Isa};

    #[derive(Clone, Copy)]
    enum Function {
        Exp2,
        Exp,
        Softplus,
        Sigmoid,
        Tanh,
        Dtanh,
        Dsigmoid,
        Silu,
        Dsilu,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for part in self.1.chunks_mut(S::F32_LANES) {
                let x = simd.partial_load_f32s(part);
                let y = match self.0 {
                    Function::Exp2 => exp2(simd, x),
                    Function::Exp => exp(simd, x),
                    Function::Softplus => softplus(simd, x),
                    Function::Sigmoid => sigmoid(simd, x),
                    Function::Tanh => tanh(simd, x),
                    Function::Dtanh => dtanh(simd, x),
                    Function::Dsigmoid => sigmoid_dsigmoid(simd, x).1,
                    Function::Silu => silu(simd, x),
                    Function::Dsilu => dsilu(simd, x),
                };
                simd.partial_store_f32s(part, y);
            }
        }
    }

    fn map(isa: Isa, function: Function, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        isa.run(Map(function, &mut y));
        y
    }

    /// Every 509th float between the two, and both ends.
    fn floats(from: f32, to: f32) -> Vec<f32> {
        let every = |from: f32, to: f32| (from.to_bits()..=to.to_bits()).step_by(509).map(f32::from_bits);
        let tiny = 1e-37; // results below it lose bits
        let mut x: Vec<f32> = every(tiny, to).collect();
        x.extend(every(tiny, -from).map(|x| -x));
        x.extend([from, to]);
        x
    }

    /// The largest relative error of `function` between `from` and `to`.
    fn worst(isa: Isa, function: Function, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let x = floats(from, to);
        let y = map(isa, function, &x);
        let error = |(&x, &y): (&f32, &f32)| (f64::from(y) / exact(f64::from(x)) - 1.0).abs();
        let worst = x.iter().zip(&y).map(error).fold(0.0, f64::max);
        assert!(y.iter().all(|y| !y.is_nan()));
        worst
    }

    #[test]
    fn relative_errors_are_as_claimed() {
        let softplus = |x: f64| if x > 30.0 { x + (-x).exp() } else { x.exp().ln_1p() };
        for isa in Isa::available() {
            let check = |name, bound: f64, got: f64| {
                println!("{} {name}: {got:.2e}", isa.name());
                assert!(got <= bound, "{} {name}: {got:e}", isa.name());
            };
            check("exp2", 1e-7, worst(isa, Function::Exp2, f64::exp2, -126.0, 127.0));
            check("exp", 1e-7, worst(isa, Function::Exp, f64::exp, -87.33, 88.02));
            check("softplus", 2.5e-7, worst(isa, Function::Softplus, softplus, -87.33, f32::MAX));
            check("sigmoid", 2e-7, worst(isa, Function::Sigmoid, f64::sigmoid, -87.33, f32::MAX));
            check("tanh", 2.5e-7, worst(isa, Function::Tanh, f64::tanh, -3e38, 3e38));
            let slope = |e: f64| e / (1.0 + e).powi(2);
            let dtanh = |x: f64| 4.0 * slope((-2.0 * x.abs()).exp());
            check("dtanh", 5e-7, worst(isa, Function::Dtanh, dtanh, -43.0, 43.0));
            check("dsigmoid", 5e-7, worst(isa, Function::Dsigmoid, |x| slope((-x.abs()).exp()), -86.0, 86.0));
            check("silu", 2e-7, worst(isa, Function::Silu, f64::silu, -83.0, 1e38));
        }
    }

    #[test]
    fn dsilu_is_the_derivative() {
        for isa in Isa::available() {
            let x = floats(-80.0, 80.0);
            let y = map(isa, Function::Dsilu, &x);
            for (&x, &y) in x.iter().zip(&y) {
                let x = f64::from(x);
                let terms = x.sigmoid() * (1.0 + (x * (-x).sigmoid()).abs());
                assert!((f64::from(y) - x.dsilu()).abs() <= 3e-7 * terms, "{} {x}: {y}", isa.name());
            }
        }
    }

    #[test]
    fn ends_of_the_range() {
        for isa in Isa::available() {
            let at = |function, x: f32| map(isa, function, &[x])[0];
            use Function::{Dsilu, Exp, Exp2, Sigmoid, Silu, Softplus, Tanh};
            for function in [Exp2, Exp, Softplus, Sigmoid, Tanh, Silu, Dsilu] {
                assert!(at(function, f32::NAN).is_nan(), "{}", isa.name());
                assert!(at(function, -f32::NAN).is_nan(), "{}", isa.name());
            }
            assert_eq!(at(Function::Exp2, 0.0), 1.0);
            assert_eq!(at(Function::Exp, 0.0), 1.0);
            assert_eq!(at(Function::Exp2, f32::NEG_INFINITY), 2f32.powi(-126));
            assert_eq!(at(Function::Exp2, f32::INFINITY), 2f32.powi(127));
            assert!(at(Function::Exp, f32::NEG_INFINITY) <= 1.2e-38);
            assert!(at(Function::Exp, f32::INFINITY) >= 1.6e38);
            assert_eq!(at(Function::Softplus, f32::INFINITY), f32::INFINITY);
            assert_eq!(at(Function::Softplus, 20.5), 20.5);
            assert_eq!(at(Function::Sigmoid, 200.0), 1.0);
            assert!(at(Function::Sigmoid, -200.0) < 1e-37);
            assert_eq!((at(Function::Tanh, f32::INFINITY), at(Function::Tanh, f32::NEG_INFINITY)), (1.0, -1.0));
            assert_eq!(at(Function::Tanh, -0.0).to_bits(), (-0.0f32).to_bits());
        }
    }
}
