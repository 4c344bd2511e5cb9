//! Products by `gemm-f32`, the part of the `gemm` crate for this type, except for the forward of a few rows, where [`invariant`] is faster: at least 1.4 times
//! with 64 rows, at least 2 times with 8 (n 1536 and 3072, k 768, one thread of a Zen 4).
//!
//! `gemm` splits the work by rows and columns of the result, never along the sum, so results do not depend on the number of
//! threads.

use gemm_common::Parallelism;
use pulp::{Simd, WithSimd};

use super::invariant;
use crate::parallel;
use crate::{Isa, Rows, RowsMut};

/// Minimum number of multiplications for using several threads.
const LEAST: usize = 1 << 19;

/// Maximum rows of x for which [`invariant`] computes the forward.
const FEW: usize = 64;

/// A matrix in the form of `gemm`: a pointer, and the strides of columns and rows.
#[derive(Clone, Copy)]
pub(crate) struct Factor {
    at: *const f32,
    columns: isize,
    rows: isize,
}

impl Factor {
    pub(crate) fn new(at: *const f32, columns: isize, rows: isize) -> Self {
        Self { at, columns, rows }
    }

    fn of(x: Rows<'_>) -> Self {
        Self { at: x.as_ptr(), columns: 1, rows: x.stride() as isize }
    }

    fn transposed(self) -> Self {
        Self { columns: self.rows, rows: self.columns, ..self }
    }
}

/// c = a b, or c += a b; a is `[c.rows, k]`, b is `[k, c.cols]`.
///
/// # Safety
/// `a` and `b` are readable in those shapes.
unsafe fn product(mut c: RowsMut<'_>, add: bool, a: Factor, b: Factor, k: usize) {
    let (m, n) = c.shape();
    if m == 0 || n == 0 || k == 0 {
        if !add {
            c.fill(0.0);
        }
        return;
    }
    let work = m.saturating_mul(n).saturating_mul(k);
    let threads = if work < LEAST { Parallelism::None } else { Parallelism::Rayon(0) };
    // SAFETY: the caller vouches for a and b.
    unsafe { multiply(c, add, a, b, k, threads) };
}

/// c = a b, or c += a b, for sizes above 0; a is `[c.rows, k]`, b is `[k, c.cols]`.
///
/// # Safety
/// `a` and `b` are readable in those shapes.
pub(crate) unsafe fn multiply(mut c: RowsMut<'_>, add: bool, a: Factor, b: Factor, k: usize, threads: Parallelism) {
    let ((m, n), stride) = (c.shape(), c.stride() as isize);
    let (at, one) = (c.as_mut_ptr(), 1.0);
    // cᵀ = bᵀ aᵀ: the kernels write columns.
    // SAFETY: c is exclusively borrowed in its shape; the caller vouches for a and b.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            n, m, k, at, stride, 1, add, b.at, b.rows, b.columns, a.at, a.rows, a.columns, one, one, false, false,
            false, threads,
        );
    }
}

pub(crate) fn forward(x: Rows<'_>, w: Rows<'_>, bias: Option<&[f32]>, mut y: RowsMut<'_>) {
    debug_assert_eq!((x.cols(), y.shape()), (w.cols(), (x.rows(), w.rows())));
    if x.rows() <= FEW {
        return invariant::forward(Isa::best(), x, w, bias, y);
    }
    if let Some(bias) = bias {
        for r in 0..y.rows() {
            y.row(r).copy_from_slice(bias);
        }
    }
    // SAFETY: `super::check_forward` has made x [m k] and w [n k] fit y [m n].
    unsafe { product(y, bias.is_some(), Factor::of(x), Factor::of(w).transposed(), x.cols()) }
}

pub(crate) fn backward_input(dy: Rows<'_>, w: Rows<'_>, dx: RowsMut<'_>, adds: bool) {
    debug_assert_eq!((dy.cols(), dx.shape()), (w.rows(), (dy.rows(), w.cols())));
    // SAFETY: `super::backward_input` has made dy [m n] and w [n k] fit dx [m k].
    unsafe { product(dx, adds, Factor::of(dy), Factor::of(w), dy.cols()) }
}

pub(crate) fn backward_weight(dy: Rows<'_>, x: Rows<'_>, dw: RowsMut<'_>) {
    debug_assert_eq!((dy.rows(), dw.shape()), (x.rows(), (dy.cols(), x.cols())));
    // SAFETY: `super::backward_weight` has made dy [m n] and x [m k] fit dw [n k].
    unsafe { product(dw, true, Factor::of(dy).transposed(), Factor::of(x), dy.rows()) }
}

pub(crate) fn backward_bias(isa: Isa, dy: Rows<'_>, db: &mut [f32]) {
    let grain = parallel::grain(dy.cols(), dy.rows(), 1 << 16, 64);
    parallel::split(dy.cols(), grain, db, &|from, count, db| isa.run(Sum { dy: dy.columns(from, count), db }));
}

struct Sum<'a> {
    dy: Rows<'a>,
    db: &'a mut [f32],
}

impl WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for r in 0..self.dy.rows() {
            for (db, &dy) in self.db.iter_mut().zip(self.dy.row(r)) {
                *db += dy;
            }
        }
    }
}
