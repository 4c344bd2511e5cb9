//! Tiles by AVX2: half of a panel's rows at a time, one in each lane.

#![expect(clippy::needless_range_loop, reason = "small arrays are registers, named by row or panel")]

use std::arch::x86_64::*;

use super::form::{Form, GROUP, PANEL};
use super::input::Row;
use super::tile::{Sums, Tile};

/// Lanes of a vector.
const LANES: usize = 8;

/// Halves of a panel.
const HALVES: usize = PANEL / LANES;

/// # Safety
/// AVX.
#[inline]
#[target_feature(enable = "avx")]
unsafe fn store<const M: usize, const N: usize>(from: [__m256; M], sums: &mut Sums<M, N>, b: usize, half: usize) {
    for a in 0..M {
        // SAFETY: half of a row of sums.
        unsafe { _mm256_storeu_ps(sums[a][b].as_mut_ptr().add(LANES * half), from[a]) };
    }
}

pub(super) struct F32;

impl Tile for F32 {
    const PANELS: usize = 2;

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        let x = x.map(|x| x.x);
        for b in 0..N {
            for half in 0..HALVES {
                let mut all = [_mm256_setzero_ps(); M];
                for q in 0..x[0].len() {
                    // SAFETY: a panel has 64 bytes for each value of a row.
                    let w = unsafe { _mm256_loadu_ps(w[b].as_ptr().add(64 * q + 32 * half).cast()) };
                    for a in 0..M {
                        // SAFETY: rows are equally long.
                        let x = _mm256_set1_ps(unsafe { *x[a].get_unchecked(q) });
                        all[a] = _mm256_fmadd_ps(w, x, all[a]);
                    }
                }
                // SAFETY: this function has the features.
                unsafe { store(all, sums, b, half) };
            }
        }
    }
}

/// The lower and the upper bf16 of each lane.
///
/// # Safety
/// AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn halves(pairs: __m256i) -> (__m256, __m256) {
    let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
    (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(upper))
}

pub(super) struct Bf16;

impl Tile for Bf16 {
    const PANELS: usize = 2;

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        let x = x.map(|x| x.words);
        for b in 0..N {
            for half in 0..HALVES {
                let mut all = [_mm256_setzero_ps(); M];
                for q in 0..x[0].len() {
                    // SAFETY: a panel has 64 bytes for each pair of a row.
                    let (low, high) =
                        unsafe { halves(_mm256_loadu_si256(w[b].as_ptr().add(64 * q + 32 * half).cast())) };
                    for a in 0..M {
                        // SAFETY: rows are equally long.
                        let (x_low, x_high) = unsafe { halves(_mm256_set1_epi32(*x[a].get_unchecked(q) as i32)) };
                        all[a] = _mm256_fmadd_ps(high, x_high, _mm256_fmadd_ps(low, x_low, all[a]));
                    }
                }
                // SAFETY: this function has the features.
                unsafe { store(all, sums, b, half) };
            }
        }
    }
}

/// The scales of group `g` of half a panel.
///
/// # Safety
/// AVX2; `scales` is of a group more.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn scales_of(scales: *const u8, g: usize, half: usize) -> __m256 {
    // SAFETY: the caller vouches for 16 bytes there.
    let bits = unsafe { _mm_loadu_si128(scales.add(2 * (PANEL * g + LANES * half)).cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

/// Four products of integers of 8 bits in each lane, added to `sum`: of the unsigned `u` and the signed `s`, pairs of whose
/// products fit in 16 bits.
///
/// # Safety
/// AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot(sum: __m256i, u: __m256i, s: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(u, s);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Adds a group's dots, times both scales.
///
/// # Safety
/// AVX2 and FMA; the group is in the panel and in the rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add<const M: usize>(
    all: &mut [__m256; M],
    dots: [__m256i; M],
    x: &[Row<'_>; M],
    scales: *const u8,
    g: usize,
    half: usize,
) {
    // SAFETY: the caller vouches for the group.
    let scales = unsafe { scales_of(scales, g, half) };
    for a in 0..M {
        // SAFETY: as above.
        let scale = _mm256_set1_ps(unsafe { *x[a].scales.get_unchecked(g) });
        all[a] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[a]), _mm256_mul_ps(scales, scale), all[a]);
    }
}

pub(super) struct Int8;

impl Tile for Int8 {
    const PANELS: usize = 2;

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        let values = Form::Int8.values_bytes(x[0].x.len());
        for b in 0..N {
            for half in 0..HALVES {
                let mut all = [_mm256_setzero_ps(); M];
                for g in 0..x[0].scales.len() {
                    let mut dots = [_mm256_setzero_si256(); M];
                    for q in 0..GROUP / 4 {
                        // SAFETY: a panel has 512 bytes for each group.
                        let w = unsafe { _mm256_loadu_si256(w[b].as_ptr().add(512 * g + 64 * q + 32 * half).cast()) };
                        // Without the 128; then the sign goes to x: -127 ..= 127 times as much, twice, fits in 16 bits.
                        let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                        let size = _mm256_abs_epi8(w);
                        for a in 0..M {
                            // SAFETY: rows have 8 words for each group.
                            let word = unsafe { *x[a].words.get_unchecked(GROUP / 4 * g + q) };
                            let signed = _mm256_sign_epi8(_mm256_set1_epi32(word as i32), w);
                            // SAFETY: this function has the features.
                            dots[a] = unsafe { dot(dots[a], size, signed) };
                        }
                    }
                    // SAFETY: the scales of all groups stand after the values.
                    unsafe { add(&mut all, dots, &x, w[b].as_ptr().add(values), g, half) };
                }
                // SAFETY: this function has the features.
                unsafe { store(all, sums, b, half) };
            }
        }
    }
}

pub(super) struct Int4;

impl Tile for Int4 {
    const PANELS: usize = 2;

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        let values = Form::Int4.values_bytes(x[0].x.len());
        for b in 0..N {
            for half in 0..HALVES {
                let mut all = [_mm256_setzero_ps(); M];
                for g in 0..x[0].scales.len() {
                    // SAFETY: rows have as many groups.
                    let mut dots = x.map(|x| _mm256_set1_epi32(-8 * unsafe { *x.sums.get_unchecked(g) }));
                    for q in 0..GROUP / 8 {
                        // SAFETY: a panel has 256 bytes for each group.
                        let w = unsafe { _mm256_loadu_si256(w[b].as_ptr().add(256 * g + 64 * q + 32 * half).cast()) };
                        let low = _mm256_and_si256(w, _mm256_set1_epi8(15));
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), _mm256_set1_epi8(15));
                        for a in 0..M {
                            // SAFETY: rows have 8 words for each group; this function has the features.
                            unsafe {
                                let words = x[a].words.as_ptr().add(GROUP / 4 * g + q);
                                dots[a] = dot(dots[a], low, _mm256_set1_epi32(*words as i32));
                                dots[a] = dot(dots[a], high, _mm256_set1_epi32(*words.add(4) as i32));
                            }
                        }
                    }
                    // SAFETY: the scales of all groups stand after the values.
                    unsafe { add(&mut all, dots, &x, w[b].as_ptr().add(values), g, half) };
                }
                // SAFETY: this function has the features.
                unsafe { store(all, sums, b, half) };
            }
        }
    }
}
