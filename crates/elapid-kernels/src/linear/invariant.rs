//! The product whose order of summation depends only on `k`.
//!
//! ```text
//! for each thread's rows of x and of W          (any cut)
//!   for each block of rows of W that stays in the second-level cache
//!     for each tile of M rows of x and N rows of W:
//!       sums[M][N] = 0, vectors
//!       for each vector q along k:  sums[a][b] += x[a][q] * W[b][q]
//!       sums[a][b] += the last, partly filled vector (missing lanes are zeros)
//!       y[a][b] = sum of lanes (sums[a][b]) + bias[b]
//! ```
//!
//! Lanes run along k, the contiguous dimension of both x and W. So W needs no packing, one row of x streams W once, and an
//! element's sum is the same in every tile. `k` is never split: a sum of `k / lanes` terms stays in its register.

#![expect(clippy::needless_range_loop, reason = "small arrays are registers, named by row")]

use pulp::{Simd, WithSimd};

use crate::parallel::{self, Columns};
use crate::{Isa, Rows, RowsMut};

/// Minimum number of multiplications for using several threads.
const LEAST: usize = 1 << 17;
/// Elements per block of W: half a mebibyte, half of a typical L2 cache.
const BLOCK: usize = 1 << 17;
/// Minimum rows of x for which threads split rows of x instead of rows of W.
const TALL: usize = 96;

pub(crate) fn forward(isa: Isa, x: Rows<'_>, w: Rows<'_>, bias: Option<&[f32]>, y: RowsMut<'_>) {
    let ((m, k), n) = (x.shape(), w.rows());
    if m >= TALL {
        let grain = parallel::grain(m, n * k, LEAST, 24);
        parallel::split(m, grain, y, &|from, count, y| {
            isa.run(Product { x: x.slice(from, count), w, bias, y });
        });
    } else {
        let grain = parallel::grain(n, m * k, LEAST, 16);
        parallel::split(n, grain, Columns(y), &|from, count, Columns(y)| {
            let bias = bias.map(|bias| &bias[from..][..count]);
            isa.run(Product { x, w: w.slice(from, count), bias, y });
        });
    }
}

struct Product<'a> {
    x: Rows<'a>,
    w: Rows<'a>,
    bias: Option<&'a [f32]>,
    y: RowsMut<'a>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let n = self.w.rows();
        let block = (BLOCK / self.x.cols().max(1)).max(16).next_multiple_of(4);
        for from in (0..n).step_by(block) {
            let to = n.min(from + block);
            // Tiles are as large as the registers allow: M * N sums, N vectors of W and one of x.
            if S::REGISTER_COUNT >= 32 {
                let i = self.tiles::<S, 6>(simd, 0, from, to);
                match self.x.rows() - i {
                    0 => i,
                    1 => self.tiles::<S, 1>(simd, i, from, to),
                    2 => self.tiles::<S, 2>(simd, i, from, to),
                    3 => self.tiles::<S, 3>(simd, i, from, to),
                    4 => self.tiles::<S, 4>(simd, i, from, to),
                    _ => self.tiles::<S, 5>(simd, i, from, to),
                };
            } else {
                let i = self.tiles::<S, 2>(simd, 0, from, to);
                self.tiles::<S, 1>(simd, i, from, to);
            }
        }
    }
}

impl Product<'_> {
    /// All whole tiles of `M` rows of x from row `i` on, by rows `from..to` of W; returns the row after them.
    #[inline(always)]
    fn tiles<S: Simd, const M: usize>(&mut self, simd: S, mut i: usize, from: usize, to: usize) -> usize {
        while i + M <= self.x.rows() {
            let mut j = from;
            while M == 1 && j + 8 <= to {
                self.tile::<S, M, 8>(simd, i, j);
                j += 8;
            }
            while j + 4 <= to {
                self.tile::<S, M, 4>(simd, i, j);
                j += 4;
            }
            while j < to {
                self.tile::<S, M, 1>(simd, i, j);
                j += 1;
            }
            i += M;
        }
        i
    }

    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, i: usize, j: usize) {
        let zero = simd.splat_f32s(0.0);
        let vectors = self.x.cols() / S::F32_LANES;
        let (mut x, mut x_tail): ([&[S::f32s]; M], [&[f32]; M]) = ([&[]; M], [&[]; M]);
        let (mut w, mut w_tail): ([&[S::f32s]; N], [&[f32]; N]) = ([&[]; N], [&[]; N]);
        for a in 0..M {
            (x[a], x_tail[a]) = S::as_simd_f32s(self.x.row(i + a));
            assert_eq!(x[a].len(), vectors);
        }
        for b in 0..N {
            (w[b], w_tail[b]) = S::as_simd_f32s(self.w.row(j + b));
            assert_eq!(w[b].len(), vectors);
        }
        let mut sums = [[zero; N]; M];
        for q in 0..vectors {
            let mut w_q = [zero; N];
            for b in 0..N {
                // SAFETY: every w[b] has `vectors` elements, asserted above.
                w_q[b] = unsafe { *w[b].get_unchecked(q) };
            }
            for a in 0..M {
                // SAFETY: every x[a] has `vectors` elements, asserted above.
                let x_q = unsafe { *x[a].get_unchecked(q) };
                for b in 0..N {
                    sums[a][b] = simd.mul_add_e_f32s(x_q, w_q[b], sums[a][b]);
                }
            }
        }
        if !x_tail[0].is_empty() {
            let mut w_q = [zero; N];
            for b in 0..N {
                w_q[b] = simd.partial_load_f32s(w_tail[b]);
            }
            for a in 0..M {
                let x_q = simd.partial_load_f32s(x_tail[a]);
                for b in 0..N {
                    sums[a][b] = simd.mul_add_e_f32s(x_q, w_q[b], sums[a][b]);
                }
            }
        }
        let mut bias = [0.0; N];
        if let Some(all) = self.bias {
            bias.copy_from_slice(&all[j..j + N]);
        }
        for a in 0..M {
            let y = &mut self.y.row(i + a)[j..j + N];
            for b in 0..N {
                y[b] = simd.reduce_sum_f32s(sums[a][b]) + bias[b];
            }
        }
    }
}
