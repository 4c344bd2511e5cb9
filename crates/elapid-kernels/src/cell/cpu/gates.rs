//! The nonlinearities of a position on vectors of channels; `naive.rs` has them in plain form.

use pulp::Simd;

use crate::cell::Kind;
use crate::math::{dtanh, exp, sigmoid, sigmoid_dsigmoid, softplus_sigmoid, tanh};

/// Values of one kind for a vector of channels: what is read, or the state. Unused entries are 0.
type Four<S> = [<S as Simd>::f32s; 4];

/// A kind as a type, so that its loops over gates and states unroll.
pub(super) trait Gates {
    const KIND: Kind;

    /// The state after a position, from what is read and the state before.
    fn advance<S: Simd>(simd: S, read: Four<S>, before: Four<S>) -> Four<S>;

    /// The gradients of what is read and of the state before, from the gradient of the state after.
    fn retreat<S: Simd>(simd: S, read: Four<S>, before: Four<S>, after: Four<S>, d: Four<S>) -> (Four<S>, Four<S>);
}

pub(super) struct Tanh;
pub(super) struct Relu;
pub(super) struct Lstm;
pub(super) struct Gru;
pub(super) struct Slstm;

impl Gates for Tanh {
    const KIND: Kind = Kind::Tanh;

    #[inline(always)]
    fn advance<S: Simd>(simd: S, [a, zero, ..]: Four<S>, _: Four<S>) -> Four<S> {
        [tanh(simd, a), zero, zero, zero]
    }

    #[inline(always)]
    fn retreat<S: Simd>(simd: S, [a, ..]: Four<S>, _: Four<S>, _: Four<S>, [dh, ..]: Four<S>) -> (Four<S>, Four<S>) {
        let zero = simd.splat_f32s(0.0);
        ([simd.mul_f32s(dh, dtanh(simd, a)), zero, zero, zero], [zero; 4])
    }
}

impl Gates for Relu {
    const KIND: Kind = Kind::Relu;

    #[inline(always)]
    fn advance<S: Simd>(simd: S, [a, zero, ..]: Four<S>, _: Four<S>) -> Four<S> {
        // A NaN stays one.
        [simd.select_f32s(simd.less_than_f32s(a, zero), zero, a), zero, zero, zero]
    }

    #[inline(always)]
    fn retreat<S: Simd>(simd: S, [a, ..]: Four<S>, _: Four<S>, _: Four<S>, [dh, ..]: Four<S>) -> (Four<S>, Four<S>) {
        let zero = simd.splat_f32s(0.0);
        ([simd.select_f32s(simd.greater_than_f32s(a, zero), dh, zero), zero, zero, zero], [zero; 4])
    }
}

impl Gates for Lstm {
    const KIND: Kind = Kind::Lstm;

    #[inline(always)]
    fn advance<S: Simd>(simd: S, [i, f, g, o]: Four<S>, [_, c, zero, _]: Four<S>) -> Four<S> {
        let drive = simd.mul_f32s(sigmoid(simd, i), tanh(simd, g));
        let c = simd.mul_add_e_f32s(sigmoid(simd, f), c, drive);
        [simd.mul_f32s(sigmoid(simd, o), tanh(simd, c)), c, zero, zero]
    }

    #[inline(always)]
    fn retreat<S: Simd>(simd: S, read: Four<S>, before: Four<S>, after: Four<S>, d: Four<S>) -> (Four<S>, Four<S>) {
        let mul = |a, b| simd.mul_f32s(a, b);
        let ([a_i, a_f, a_g, a_o], [_, c, zero, _], [_, c_new, ..], [dh, dc, ..]) = (read, before, after, d);
        let [(i, slope_i), (f, slope_f), (o, slope_o)] = [a_i, a_f, a_o].map(|a| sigmoid_dsigmoid(simd, a));
        let dc = simd.mul_add_e_f32s(mul(dh, o), dtanh(simd, c_new), dc);
        let di = mul(mul(dc, tanh(simd, a_g)), slope_i);
        let df = mul(mul(dc, c), slope_f);
        let dg = mul(mul(dc, i), dtanh(simd, a_g));
        let do_ = mul(mul(dh, tanh(simd, c_new)), slope_o);
        ([di, df, dg, do_], [zero, mul(dc, f), zero, zero])
    }
}

impl Gates for Gru {
    const KIND: Kind = Kind::Gru;

    #[inline(always)]
    fn advance<S: Simd>(simd: S, [r, z, x, q]: Four<S>, [h, zero, ..]: Four<S>) -> Four<S> {
        let z = sigmoid(simd, z);
        let n = tanh(simd, simd.mul_add_e_f32s(sigmoid(simd, r), q, x));
        // n + z (h - n)
        [simd.mul_add_e_f32s(z, simd.sub_f32s(h, n), n), zero, zero, zero]
    }

    #[inline(always)]
    fn retreat<S: Simd>(simd: S, read: Four<S>, before: Four<S>, _: Four<S>, [dh, ..]: Four<S>) -> (Four<S>, Four<S>) {
        let mul = |a, b| simd.mul_f32s(a, b);
        let ([r, z, x, q], [h, zero, ..]) = (read, before);
        let rest = sigmoid(simd, simd.neg_f32s(z)); // 1 - σ(z)
        let [(r, slope_r), (z, slope_z)] = [r, z].map(|a| sigmoid_dsigmoid(simd, a));
        let inner = simd.mul_add_e_f32s(r, q, x);
        let dz = mul(mul(dh, simd.sub_f32s(h, tanh(simd, inner))), slope_z);
        let dx = mul(mul(dh, rest), dtanh(simd, inner));
        let dr = mul(mul(dx, q), slope_r);
        ([dr, dz, dx, mul(dx, r)], [mul(dh, z), zero, zero, zero])
    }
}

/// The exponents of an sLSTM's gates i and f, and m: each i - m', log σ(f) + m - m' (at most 0), m'; whether m' is i, and
/// whether log σ(f) + m is above m'.
#[inline(always)]
fn stabilised<S: Simd>(simd: S, i: S::f32s, f: S::f32s, n: S::f32s, m: S::f32s) -> ([S::f32s; 3], [S::m32s; 2]) {
    let zero = simd.splat_f32s(0.0);
    let decayed = simd.sub_f32s(m, softplus_sigmoid(simd, simd.neg_f32s(f)).0);
    let starts = simd.equal_f32s(n, zero);
    let of_input = simd.or_m32s(starts, simd.greater_than_or_equal_f32s(i, decayed));
    let m = simd.select_f32s(of_input, i, decayed);
    let (above, rest) = (simd.greater_than_f32s(decayed, m), simd.sub_f32s(decayed, m));
    ([simd.sub_f32s(i, m), simd.select_f32s(above, zero, rest), m], [of_input, above])
}

impl Gates for Slstm {
    const KIND: Kind = Kind::Slstm;

    #[inline(always)]
    fn advance<S: Simd>(simd: S, [i, f, z, o]: Four<S>, [_, c, n, m]: Four<S>) -> Four<S> {
        let ([i, f, m], _) = stabilised(simd, i, f, n, m);
        let [i, f] = [i, f].map(|exponent| exp(simd, exponent));
        let c = simd.mul_add_e_f32s(f, c, simd.mul_f32s(i, tanh(simd, z)));
        let n = simd.mul_add_e_f32s(f, n, i);
        [simd.mul_f32s(sigmoid(simd, o), simd.div_f32s(c, n)), c, n, m]
    }

    #[inline(always)]
    fn retreat<S: Simd>(simd: S, read: Four<S>, before: Four<S>, after: Four<S>, d: Four<S>) -> (Four<S>, Four<S>) {
        let (mul, zero) = (|a, b| simd.mul_f32s(a, b), simd.splat_f32s(0.0));
        let ([a_i, a_f, a_z, a_o], [_, c, n, m]) = (read, before);
        let ([_, c_new, n_new, _], [dh, dc, dn, dm]) = (after, d);
        let ([i, f, _], [of_input, above]) = stabilised(simd, a_i, a_f, n, m);
        let [i, f] = [i, f].map(|exponent| exp(simd, exponent));
        let (z, (o, slope_o)) = (tanh(simd, a_z), sigmoid_dsigmoid(simd, a_o));
        // h = o ratio, ratio = c' / n'
        let ratio = simd.div_f32s(c_new, n_new);
        let dratio = simd.div_f32s(mul(dh, o), n_new);
        let do_ = mul(mul(dh, ratio), slope_o);
        let (dc, dn) = (simd.add_f32s(dc, dratio), simd.sub_f32s(dn, mul(dratio, ratio)));
        // Of the exponents, and of m', which is one of the two.
        let di = mul(simd.mul_add_e_f32s(dc, z, dn), i);
        let df = mul(simd.mul_add_e_f32s(dc, c, mul(dn, n)), f);
        let df = simd.select_f32s(above, zero, df);
        let dm = simd.sub_f32s(simd.sub_f32s(dm, di), df);
        let di = simd.add_f32s(di, simd.select_f32s(of_input, dm, zero));
        let df = simd.add_f32s(df, simd.select_f32s(of_input, zero, dm));
        let da_f = mul(df, sigmoid(simd, simd.neg_f32s(a_f)));
        let da_z = mul(mul(dc, i), dtanh(simd, a_z));
        ([di, da_f, da_z, do_], [zero, mul(dc, f), mul(dn, f), df])
    }
}
