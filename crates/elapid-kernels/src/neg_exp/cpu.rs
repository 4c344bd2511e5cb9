//! Vectors of exponentials, split among threads if there are many.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::{Isa, math};

/// Elements per thread.
const PART: usize = 1 << 14;

pub(super) fn forward(isa: Isa, x: &[f32], y: &mut [f32]) {
    if x.len() <= PART {
        isa.run(NegExp { x, y });
    } else {
        x.par_chunks(PART).zip(y.par_chunks_mut(PART)).for_each(|(x, y)| isa.run(NegExp { x, y }));
    }
}

struct NegExp<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for NegExp<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ((x, x_tail), (y, y_tail)) = (S::as_simd_f32s(self.x), S::as_mut_simd_f32s(self.y));
        for (x, y) in x.iter().zip(y) {
            *y = simd.neg_f32s(math::exp(simd, *x));
        }
        if !x_tail.is_empty() {
            let y = simd.neg_f32s(math::exp(simd, simd.partial_load_f32s(x_tail)));
            simd.partial_store_f32s(y_tail, y);
        }
    }
}
