//! Products of a chunk: blocks of 6 rows and 2 vectors (4 where there are 32 registers) of sums in registers. One vector of the right
//! factor is read for all rows, and a value of the left factor is broadcast for all vectors.

use gemm_common::Parallelism;
use pulp::Simd;

use crate::linear::cpu::{self as linear, Factor as Strided};
use crate::{Rows, RowsMut};

/// Rows of a block.
const ROWS: usize = 6;

const fn is_wide<S: Simd>() -> bool {
    S::REGISTER_COUNT >= 32 || S::IS_SCALAR
}

/// A matrix of whole vectors.
#[inline(always)]
fn vectors<S: Simd>(x: &[f32]) -> &[S::f32s] {
    S::as_simd_f32s(x).0
}

/// Elements from a row of a state or of values to the next: whole vectors, and an odd number of cache lines where it would be a multiple
/// of two, as rows would share few sets of the L1 cache.
pub(super) fn stride<S: Simd>(columns: usize) -> usize {
    let width = columns.next_multiple_of(S::F32_LANES);
    if width.is_multiple_of(32) { width + 16 } else { width }
}

/// out `[n columns]` = a `[n k]` s `[k columns]` + b `[n n]` v `[n columns]`; of b up to its diagonal.
#[inline(always)]
pub(super) fn read<S: Simd>(
    simd: S,
    (a, s): (Rows<'_>, &[f32]),
    (b, v): (Rows<'_>, &[f32]),
    columns: usize,
    out: &mut [f32],
) {
    let (across, stride) = (columns.div_ceil(S::F32_LANES), stride::<S>(columns) / S::F32_LANES);
    let (s, v, out) = (vectors::<S>(s), vectors::<S>(v), S::as_mut_simd_f32s(out).0);
    // Columns outside, so that a block of the state's columns stays in the L1 cache for all rows.
    let mut at = 0;
    while at < across {
        if is_wide::<S>() && across - at >= 4 {
            read_columns::<S, 4>(simd, (a, s), (b, v), stride, at, out);
            at += 4;
        } else if across - at >= 2 {
            read_columns::<S, 2>(simd, (a, s), (b, v), stride, at, out);
            at += 2;
        } else {
            read_columns::<S, 1>(simd, (a, s), (b, v), stride, at, out);
            at += 1;
        }
    }
}

#[inline(always)]
fn read_columns<S: Simd, const N: usize>(
    simd: S,
    of_state: (Rows<'_>, &[S::f32s]),
    of_values: (Rows<'_>, &[S::f32s]),
    stride: usize,
    at: usize,
    out: &mut [S::f32s],
) {
    let (mut t, n) = (0, of_state.0.rows());
    while t < n {
        if n - t >= ROWS {
            read_block::<S, ROWS, N>(simd, of_state, of_values, stride, (t, at), out);
            t += ROWS;
        } else {
            read_block::<S, 1, N>(simd, of_state, of_values, stride, (t, at), out);
            t += 1;
        }
    }
}

#[inline(always)]
fn read_block<S: Simd, const R: usize, const N: usize>(
    simd: S,
    (a, s): (Rows<'_>, &[S::f32s]),
    (b, v): (Rows<'_>, &[S::f32s]),
    stride: usize,
    (t, at): (usize, usize),
    out: &mut [S::f32s],
) {
    let (mut a_rows, mut b_rows): ([&[f32]; R], [&[f32]; R]) = ([&[]; R], [&[]; R]);
    for r in 0..R {
        (a_rows[r], b_rows[r]) = (a.row(t + r), &b.row(t + r)[..t + R]);
    }
    let acc = sums(simd, a_rows, s, stride, at, [[simd.splat_f32s(0.0); N]; R]);
    let acc = sums(simd, b_rows, v, stride, at, acc);
    for (r, acc) in acc.into_iter().enumerate() {
        put(&mut out[(t + r) * stride + at..], acc);
    }
}

/// acc[r][n] += Σ_i a[r][i] b[i][at + n].
#[inline(always)]
fn sums<S: Simd, const R: usize, const N: usize>(
    simd: S,
    a: [&[f32]; R],
    b: &[S::f32s],
    stride: usize,
    at: usize,
    mut acc: [[S::f32s; N]; R],
) -> [[S::f32s; N]; R] {
    let len = a[0].len();
    for a in a {
        assert!(a.len() == len);
    }
    for (i, b) in b.chunks_exact(stride).take(len).enumerate() {
        let b: &[S::f32s; N] = b[at..].first_chunk().expect("a block inside the row");
        for r in 0..R {
            let a = simd.splat_f32s(a[r][i]);
            for n in 0..N {
                acc[r][n] = simd.mul_add_e_f32s(a, b[n], acc[r][n]);
            }
        }
    }
    acc
}

/// s `[k columns]` = diag(total) s + aᵀ v, a `[n k]`, v `[n columns]`.
#[inline(always)]
pub(super) fn write<S: Simd>(simd: S, total: &[f32], a: Rows<'_>, v: &[f32], columns: usize, s: &mut [f32]) {
    let (sizes, k) = ((columns.div_ceil(S::F32_LANES), stride::<S>(columns) / S::F32_LANES), total.len());
    let (v, s) = (vectors::<S>(v), S::as_mut_simd_f32s(s).0);
    let mut i = 0;
    while i < k {
        if k - i >= ROWS {
            if is_wide::<S>() {
                write_rows::<S, ROWS, 4>(simd, total, a, v, sizes, i, s);
            } else {
                write_rows::<S, ROWS, 2>(simd, total, a, v, sizes, i, s);
            }
            i += ROWS;
        } else {
            write_rows::<S, 1, 4>(simd, total, a, v, sizes, i, s);
            i += 1;
        }
    }
}

#[inline(always)]
fn write_rows<S: Simd, const R: usize, const N: usize>(
    simd: S,
    total: &[f32],
    a: Rows<'_>,
    v: &[S::f32s],
    (across, stride): (usize, usize),
    i: usize,
    s: &mut [S::f32s],
) {
    let mut at = 0;
    while at < across {
        if across - at >= N {
            written::<S, R, N>(simd, total, a, v, stride, (i, at), s);
            at += N;
        } else {
            written::<S, R, 1>(simd, total, a, v, stride, (i, at), s);
            at += 1;
        }
    }
}

#[inline(always)]
fn written<S: Simd, const R: usize, const N: usize>(
    simd: S,
    total: &[f32],
    a: Rows<'_>,
    v: &[S::f32s],
    stride: usize,
    (i, at): (usize, usize),
    s: &mut [S::f32s],
) {
    // No closures: a function of its own would be compiled without the vector instructions.
    let mut acc = [[simd.splat_f32s(0.0); N]; R];
    for r in 0..R {
        let (total, s) = (simd.splat_f32s(total[i + r]), &s[(i + r) * stride + at..][..N]);
        for n in 0..N {
            acc[r][n] = simd.mul_f32s(total, s[n]);
        }
    }
    for (t, v) in v.chunks_exact(stride).take(a.rows()).enumerate() {
        let v: &[S::f32s; N] = v[at..].first_chunk().expect("a block inside the row");
        let a: &[f32; R] = a.row(t)[i..].first_chunk().expect("a block inside the row");
        for r in 0..R {
            let a = simd.splat_f32s(a[r]);
            for n in 0..N {
                acc[r][n] = simd.mul_add_e_f32s(a, v[n], acc[r][n]);
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        put(&mut s[(i + r) * stride + at..], acc);
    }
}

/// The first of `to`.
#[inline(always)]
fn put<V: Copy, const N: usize>(to: &mut [V], from: [V; N]) {
    *to.first_chunk_mut().expect("a block inside the row") = from;
}

/// Σ a b.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let mut sum = [simd.splat_f32s(0.0); 2];
    let (a_pairs, a_last) = a.as_chunks::<2>();
    let (b_pairs, b_last) = b.as_chunks::<2>();
    for (a, b) in a_pairs.iter().zip(b_pairs) {
        for i in 0..2 {
            sum[i] = simd.mul_add_e_f32s(a[i], b[i], sum[i]);
        }
    }
    for (a, b) in a_last.iter().zip(b_last) {
        sum[0] = simd.mul_add_e_f32s(*a, *b, sum[0]);
    }
    let mut tail = 0.0;
    for (a, b) in a_tail.iter().zip(b_tail) {
        tail += a * b;
    }
    simd.reduce_sum_f32s(simd.add_f32s(sum[0], sum[1])) + tail
}

/// Σ a b of two and four rows, 8 sums of vectors in registers.
#[inline(always)]
pub(super) fn dots<S: Simd>(simd: S, a: [&[f32]; 2], b: [&[f32]; 4]) -> [[f32; 4]; 2] {
    let len = a[0].len() / S::F32_LANES * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); 4]; 2];
    let [a0, a1] = [vectors::<S>(a[0]), vectors::<S>(a[1])];
    let [b0, b1, b2, b3] = [vectors::<S>(b[0]), vectors::<S>(b[1]), vectors::<S>(b[2]), vectors::<S>(b[3])];
    let n = a0.len();
    let (a1, b0, b1, b2, b3) = (&a1[..n], &b0[..n], &b1[..n], &b2[..n], &b3[..n]);
    for i in 0..n {
        let (b0, b1, b2, b3) = (b0[i], b1[i], b2[i], b3[i]);
        sums[0][0] = simd.mul_add_e_f32s(a0[i], b0, sums[0][0]);
        sums[0][1] = simd.mul_add_e_f32s(a0[i], b1, sums[0][1]);
        sums[0][2] = simd.mul_add_e_f32s(a0[i], b2, sums[0][2]);
        sums[0][3] = simd.mul_add_e_f32s(a0[i], b3, sums[0][3]);
        sums[1][0] = simd.mul_add_e_f32s(a1[i], b0, sums[1][0]);
        sums[1][1] = simd.mul_add_e_f32s(a1[i], b1, sums[1][1]);
        sums[1][2] = simd.mul_add_e_f32s(a1[i], b2, sums[1][2]);
        sums[1][3] = simd.mul_add_e_f32s(a1[i], b3, sums[1][3]);
    }
    let mut out = [[0.0; 4]; 2];
    for r in 0..2 {
        for c in 0..4 {
            out[r][c] = simd.reduce_sum_f32s(sums[r][c]);
            for (a, b) in a[r][len..].iter().zip(&b[c][len..]) {
                out[r][c] += a * b;
            }
        }
    }
    out
}

/// x *= by.
#[inline(always)]
pub(super) fn multiply<S: Simd>(simd: S, x: &mut [f32], by: &[f32]) {
    let ((x, x_tail), (by, by_tail)) = (S::as_mut_simd_f32s(x), S::as_simd_f32s(by));
    for (x, by) in x.iter_mut().zip(by) {
        *x = simd.mul_f32s(*x, *by);
    }
    for (x, by) in x_tail.iter_mut().zip(by_tail) {
        *x *= by;
    }
}

/// out = a x.
#[inline(always)]
pub(super) fn scale<S: Simd>(simd: S, a: f32, x: &[f32], out: &mut [f32]) {
    let ((x, x_tail), (out, out_tail)) = (S::as_simd_f32s(x), S::as_mut_simd_f32s(out));
    let each = simd.splat_f32s(a);
    for (out, x) in out.iter_mut().zip(x) {
        *out = simd.mul_f32s(each, *x);
    }
    for (out, x) in out_tail.iter_mut().zip(x_tail) {
        *out = a * x;
    }
}

/// x += a y.
#[inline(always)]
pub(super) fn add<S: Simd>(simd: S, x: &mut [f32], a: f32, y: &[f32]) {
    let ((x, x_tail), (y, y_tail)) = (S::as_mut_simd_f32s(x), S::as_simd_f32s(y));
    let each = simd.splat_f32s(a);
    for (x, y) in x.iter_mut().zip(y) {
        *x = simd.mul_add_e_f32s(each, *y, *x);
    }
    for (x, y) in x_tail.iter_mut().zip(y_tail) {
        *x += a * y;
    }
}

/// A factor of [`product`].
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    Plain(Rows<'a>),
    Transposed(Rows<'a>),
}

impl Factor<'_> {
    fn shape(self) -> (usize, usize) {
        match self {
            Self::Plain(x) => x.shape(),
            Self::Transposed(x) => (x.cols(), x.rows()),
        }
    }

    /// The first element, and the strides of columns and rows.
    fn raw(self) -> (*const f32, isize, isize) {
        match self {
            Self::Plain(x) => (x.as_ptr(), 1, x.stride() as isize),
            Self::Transposed(x) => (x.as_ptr(), x.stride() as isize, 1),
        }
    }
}

/// c = a b, or c += a b, on this thread.
pub(super) fn product(mut c: RowsMut<'_>, adds: bool, a: Factor<'_>, b: Factor<'_>) {
    let ((m, n), k) = (c.shape(), a.shape().1);
    assert_eq!((a.shape(), b.shape()), ((m, k), (k, n)), "shapes of a product");
    let ((a, a_columns, a_rows), (b, b_columns, b_rows)) = (a.raw(), b.raw());
    // SAFETY: the assertion has made the shapes fit, and a and b are readable in theirs.
    unsafe {
        let (a, b) = (Strided::new(a, a_columns, a_rows), Strided::new(b, b_columns, b_rows));
        linear::multiply(c.reborrow(), adds, a, b, k, Parallelism::None);
    }
}
