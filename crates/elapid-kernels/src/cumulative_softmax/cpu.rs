//! A vector of columns at a time: its maximum over the rows, then the sum of all exponentials and of those that count. The exponentials
//! are not kept, as a decoder's step reads every row once.

use pulp::{Simd, WithSimd};

use crate::{Isa, Rows, math};

pub(super) fn forward(isa: Isa, i: usize, p: Rows<'_>, y: &mut [f32]) {
    isa.run(Forward { i, p, y });
}

struct Forward<'a> {
    i: usize,
    p: Rows<'a>,
    y: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { i, p, y } = self;
        let (whole, tail) = S::as_mut_simd_f32s(y);
        for (c, y) in whole.iter_mut().enumerate() {
            *y = columns(simd, i, p.rows(), |m| S::as_simd_f32s(p.row(m)).0[c]);
        }
        if !tail.is_empty() {
            let last = columns(simd, i, p.rows(), |m| simd.partial_load_f32s(S::as_simd_f32s(p.row(m)).1));
            simd.partial_store_f32s(tail, last);
        }
    }
}

#[inline(always)]
fn columns<S: Simd>(simd: S, i: usize, rows: usize, load: impl Fn(usize) -> S::f32s) -> S::f32s {
    let most = (1..rows).fold(load(0), |most, m| simd.max_f32s(most, load(m)));
    let zero = simd.splat_f32s(0.0);
    let (mut sum, mut part) = (zero, zero);
    for m in 0..rows {
        let e = math::exp(simd, simd.sub_f32s(load(m), most));
        sum = simd.add_f32s(sum, e);
        if (1..=i).contains(&m) {
            part = simd.add_f32s(part, e);
        }
    }
    simd.div_f32s(part, sum)
}
