//! For each row, one pass adds and sums squares, and a second one scales (the row is in the L1 cache by then).
//!
//! Departures from naive:
//! - sums run in four vectors, to hide the latency of additions: lane i of vector j adds elements 4 w q + w j + i;
//! - the weight's gradient is summed over blocks of rows that depend only on the number of rows, then over the blocks.

use pulp::{Simd, WithSimd};

use crate::parallel::{self, Cut, Each};
use crate::{Isa, Rows, RowsMut};

/// Minimum number of elements for waking a thread.
const LEAST: usize = 1 << 15;

pub(super) fn forward(
    isa: Isa,
    x: Rows<'_>,
    residual: Option<Rows<'_>>,
    weight: &[f32],
    eps: f32,
    y: RowsMut<'_>,
    sum: RowsMut<'_>,
    rstd: &mut [f32],
) {
    let grain = parallel::grain(x.rows(), x.cols(), LEAST, 1);
    parallel::split(x.rows(), grain, (y, sum, rstd), &|from, count, (y, sum, rstd)| {
        let (x, residual) = (x.slice(from, count), residual.map(|r| r.slice(from, count)));
        isa.run(Forward { x, residual, weight, eps, y, sum, rstd });
    });
}

struct Forward<'a> {
    x: Rows<'a>,
    residual: Option<Rows<'a>>,
    weight: &'a [f32],
    eps: f32,
    y: RowsMut<'a>,
    sum: RowsMut<'a>,
    rstd: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let d = self.x.cols().max(1) as f32;
        for r in 0..self.x.rows() {
            let sum = self.sum.row(r);
            match self.residual {
                None => sum.copy_from_slice(self.x.row(r)),
                Some(residual) => {
                    for ((s, &x), &y) in sum.iter_mut().zip(self.x.row(r)).zip(residual.row(r)) {
                        *s = x + y;
                    }
                }
            }
            let scale = 1.0 / (dot(simd, sum, sum) / d + self.eps).sqrt();
            self.rstd[r] = scale;
            scale_row(sum, self.weight, scale, self.y.row(r));
        }
    }
}

#[inline(always)]
fn scale_row(sum: &[f32], weight: &[f32], scale: f32, y: &mut [f32]) {
    for ((y, &s), &w) in y.iter_mut().zip(sum).zip(weight) {
        *y = s * scale * w;
    }
}

pub(super) fn scale(isa: Isa, sum: Rows<'_>, weight: &[f32], rstd: &[f32], y: RowsMut<'_>) {
    let grain = parallel::grain(sum.rows(), sum.cols(), LEAST, 1);
    parallel::split(sum.rows(), grain, y, &|from, count, y| {
        isa.run(Scale { sum: sum.slice(from, count), weight, rstd: &rstd[from..][..count], y });
    });
}

struct Scale<'a> {
    sum: Rows<'a>,
    weight: &'a [f32],
    rstd: &'a [f32],
    y: RowsMut<'a>,
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        for r in 0..self.sum.rows() {
            scale_row(self.sum.row(r), self.weight, self.rstd[r], self.y.row(r));
        }
    }
}

/// Σ a b, in an order that depends on the length only.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let mut sums = [simd.splat_f32s(0.0); 4];
    let ((a4, a1), (b4, b1)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    for (a, b) in a4.iter().zip(b4) {
        for j in 0..4 {
            sums[j] = simd.mul_add_e_f32s(a[j], b[j], sums[j]);
        }
    }
    for (j, (&a, &b)) in a1.iter().zip(b1).enumerate() {
        sums[j] = simd.mul_add_e_f32s(a, b, sums[j]);
    }
    if !a_tail.is_empty() {
        sums[3] = simd.mul_add_e_f32s(simd.partial_load_f32s(a_tail), simd.partial_load_f32s(b_tail), sums[3]);
    }
    let pairs = [simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3])];
    simd.reduce_sum_f32s(simd.add_f32s(pairs[0], pairs[1]))
}

/// Rows per block of the weight's gradient, for `m` rows: at most 64 blocks.
fn block(m: usize) -> usize {
    m.div_ceil(64).max(32)
}

pub(super) fn backward(
    isa: Isa,
    sum: Rows<'_>,
    weight: &[f32],
    rstd: &[f32],
    dy: Rows<'_>,
    dsum: Option<Rows<'_>>,
    (dx, dresidual): (RowsMut<'_>, Option<RowsMut<'_>>),
    dweight: &mut [f32],
) {
    let (m, d) = sum.shape();
    let block = block(m);
    let blocks = m.div_ceil(block);
    let mut partial = vec![0.0; blocks * d];
    let grain = if m * d <= LEAST { usize::MAX } else { block };
    let outputs = (dx, dresidual, Partial { sums: Each(&mut partial, d), block });
    parallel::split(m, grain, outputs, &|from, count, (dx, dresidual, partial)| {
        let mut rest = Some((dx, dresidual));
        // A part is whole blocks: one where threads share the work, all of them where one thread does it.
        for (i, dweight) in partial.sums.0.chunks_exact_mut(d.max(1)).enumerate() {
            let Some(all) = rest.take() else { break };
            let first = from + i * block;
            let rows = block.min(from + count - first);
            let ((dx, dresidual), below) = all.cut(rows);
            rest = Some(below);
            isa.run(Backward {
                sum: sum.slice(first, rows),
                weight,
                rstd: &rstd[first..][..rows],
                dy: dy.slice(first, rows),
                dsum: dsum.map(|d| d.slice(first, rows)),
                dx,
                dresidual,
                dweight,
            });
        }
    });
    for part in partial.chunks_exact(d.max(1)) {
        for (g, &p) in dweight.iter_mut().zip(part) {
            *g += p;
        }
    }
}

/// The weight's gradient of each block of rows, split where rows are.
struct Partial<'a> {
    sums: Each<'a>,
    block: usize,
}

impl Cut for Partial<'_> {
    fn cut(self, at: usize) -> (Self, Self) {
        let (left, right) = self.sums.cut(at / self.block);
        (Self { sums: left, ..self }, Self { sums: right, ..self })
    }
}

struct Backward<'a> {
    sum: Rows<'a>,
    weight: &'a [f32],
    rstd: &'a [f32],
    dy: Rows<'a>,
    dsum: Option<Rows<'a>>,
    dx: RowsMut<'a>,
    dresidual: Option<RowsMut<'a>>,
    dweight: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let d = self.sum.cols() as f32;
        for r in 0..self.sum.rows() {
            let (sum, dy, dx, rstd) = (self.sum.row(r), self.dy.row(r), self.dx.row(r), self.rstd[r]);
            for i in 0..sum.len() {
                dx[i] = dy[i] * self.weight[i];
                self.dweight[i] += dy[i] * (sum[i] * rstd);
            }
            let mean = rstd * dot(simd, dx, sum) / d;
            let back = rstd * mean;
            for (dx, &s) in dx.iter_mut().zip(sum) {
                *dx = rstd * *dx - rstd * (back * s);
            }
            if let Some(dsum) = self.dsum {
                for (dx, &d) in dx.iter_mut().zip(dsum.row(r)) {
                    *dx += d;
                }
            }
            if let Some(dresidual) = &mut self.dresidual {
                dresidual.row(r).copy_from_slice(dx);
            }
        }
    }
}
