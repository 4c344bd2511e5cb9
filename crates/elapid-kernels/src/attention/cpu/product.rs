//! Products of blocks that are held in registers.
//!
//! One vector of the right factor is read for all rows, and one value of the left factor is broadcast for all vectors: 12
//! multiply-adds from 8 loads with 16 registers, 24 from 10 with 32. Each sum is a chain in order, so its bits do not depend
//! on the shape of the block.

use std::ops::Range;

use pulp::Simd;

use super::sizes::TILE;

/// acc[r][n] += Σ_i a[i][r] b[i][n].
#[inline(always)]
pub(super) fn columns<S: Simd, const R: usize, const N: usize>(
    simd: S,
    a: &[[f32; R]],
    b: &[[S::f32s; N]],
    mut acc: [[S::f32s; N]; R],
) -> [[S::f32s; N]; R] {
    for (a, b) in a.iter().zip(b) {
        for r in 0..R {
            let a = simd.splat_f32s(a[r]);
            for n in 0..N {
                acc[r][n] = simd.mul_add_e_f32s(a, b[n], acc[r][n]);
            }
        }
    }
    acc
}

/// acc[r][n] += Σ_j a[r][j] b[j][n] over a range of j.
#[inline(always)]
pub(super) fn rows<S: Simd, const R: usize, const N: usize>(
    simd: S,
    a: &[[f32; TILE]; R],
    range: Range<usize>,
    b: &[[S::f32s; N]],
    mut acc: [[S::f32s; N]; R],
) -> [[S::f32s; N]; R] {
    for (j, b) in range.clone().zip(&b[range]) {
        for r in 0..R {
            let a = simd.splat_f32s(a[r][j % TILE]);
            for n in 0..N {
                acc[r][n] = simd.mul_add_e_f32s(a, b[n], acc[r][n]);
            }
        }
    }
    acc
}

/// acc[k][n] += Σ_r a[r][at + k] b[r][n].
#[inline(always)]
pub(super) fn transposed<S: Simd, const K: usize, const N: usize>(
    simd: S,
    a: &[[f32; TILE]],
    at: usize,
    b: &[[S::f32s; N]],
    mut acc: [[S::f32s; N]; K],
) -> [[S::f32s; N]; K] {
    for (a, b) in a.iter().zip(b) {
        let (a, _) = a.as_chunks::<K>();
        let a = &a[at / K % (TILE / K)];
        for k in 0..K {
            let a = simd.splat_f32s(a[k]);
            for n in 0..N {
                acc[k][n] = simd.mul_add_e_f32s(a, b[n], acc[k][n]);
            }
        }
    }
    acc
}
