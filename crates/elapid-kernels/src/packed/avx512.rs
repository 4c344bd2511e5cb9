//! Tiles by AVX-512: a vector has one row of a panel in each lane.

use std::arch::x86_64::*;

use super::form::{Form, GROUP, PANEL};
use super::input::Row;
use super::tile::{Sums, Tile};

/// Lets a tile's loops be over registers: `[[v; N]; M]`.
type Vectors<V, const M: usize, const N: usize> = [[V; N]; M];

/// # Safety
/// AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const M: usize, const N: usize>(from: &Vectors<__m512, M, N>, sums: &mut Sums<M, N>) {
    for a in 0..M {
        for b in 0..N {
            // SAFETY: a row of sums is 16 values.
            unsafe { _mm512_storeu_ps(sums[a][b].as_mut_ptr(), from[a][b]) };
        }
    }
}

/// Asks for what one row reads next: with eight panels side by side the hardware asks too late.
#[inline(always)]
fn ahead(at: *const u8) {
    /// Bytes.
    const DISTANCE: usize = 1024;
    // SAFETY: a prefetch touches nothing, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(DISTANCE).cast()) };
}

pub(super) struct F32;

impl Tile for F32 {
    const PANELS: usize = 4;

    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        let mut all = [[_mm512_setzero_ps(); N]; M];
        let x = x.map(|x| x.x);
        for q in 0..x[0].len() {
            for w in w.iter().filter(|_| M == 1) {
                ahead(w.as_ptr().wrapping_add(64 * q));
            }
            // SAFETY: a panel has 64 bytes for each value of a row.
            let w: [__m512; N] = std::array::from_fn(|b| unsafe { _mm512_loadu_ps(w[b].as_ptr().add(64 * q).cast()) });
            for a in 0..M {
                // SAFETY: rows are equally long.
                let x = _mm512_set1_ps(unsafe { *x[a].get_unchecked(q) });
                for b in 0..N {
                    all[a][b] = _mm512_fmadd_ps(w[b], x, all[a][b]);
                }
            }
        }
        // SAFETY: this function has the features.
        unsafe { store(&all, sums) };
    }
}

pub(super) struct Bf16;

impl Tile for Bf16 {
    const PANELS: usize = 4;

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        let mut all = [[_mm512_setzero_ps(); N]; M];
        let x = x.map(|x| x.words);
        for q in 0..x[0].len() {
            for w in w.iter().filter(|_| M == 1) {
                ahead(w.as_ptr().wrapping_add(64 * q));
            }
            // SAFETY: a panel has 64 bytes for each pair of a row; a pair of bf16 is a lane of both types.
            let w: [__m512bh; N] = std::array::from_fn(|b| unsafe {
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w[b].as_ptr().add(64 * q).cast()))
            });
            for a in 0..M {
                // SAFETY: rows are equally long; any bits are bf16.
                let x = unsafe {
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x[a].get_unchecked(q) as i32))
                };
                for b in 0..N {
                    all[a][b] = _mm512_dpbf16_ps(all[a][b], w[b], x);
                }
            }
        }
        // SAFETY: this function has the features.
        unsafe { store(&all, sums) };
    }
}

/// The scales of group `g` of a panel.
///
/// # Safety
/// AVX-512 F and BW; `scales` is of a group more.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn scales_of(scales: *const u8, g: usize) -> __m512 {
    // SAFETY: the caller vouches for 32 bytes there.
    let bits = unsafe { _mm256_loadu_si256(scales.add(2 * PANEL * g).cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// A form of integers: its bias, and how a vector of integers comes from one that is read. A macro, since a closure would not
/// have the features of the function that it is in.
macro_rules! integers {
    ($name:ident, $form:expr, $bias:literal, |$w:ident, $at:ident| $load:block) => {
        pub(super) struct $name;

        impl Tile for $name {
            const PANELS: usize = 2;

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
                let mut all = [[_mm512_setzero_ps(); N]; M];
                let (values, stride) = ($form.values_bytes(x[0].x.len()), $form.values_bytes(GROUP));
                let groups = x[0].scales.len();
                for g in 0..groups {
                    let mut dots: Vectors<__m512i, M, N> = [[_mm512_setzero_si512(); N]; M];
                    for a in 0..M {
                        // SAFETY: rows have as many groups.
                        let sum = unsafe { *x[a].sums.get_unchecked(g) };
                        dots[a] = [_mm512_set1_epi32(-$bias * sum); N];
                    }
                    for half in 0..GROUP / 4 / Self::VECTORS {
                        for q in 0..Self::VECTORS {
                            let mut vectors = [_mm512_setzero_si512(); N];
                            for b in 0..N {
                                if M == 1 && half == 0 {
                                    ahead(w[b].as_ptr().wrapping_add(stride * g + 64 * q));
                                }
                                // SAFETY: a panel has `stride` bytes for each group.
                                let $w = unsafe { _mm512_loadu_si512(w[b].as_ptr().add(stride * g + 64 * q).cast()) };
                                let $at = half;
                                vectors[b] = $load;
                            }
                            for a in 0..M {
                                let at = GROUP / 4 * g + Self::VECTORS * half + q;
                                // SAFETY: rows have 8 words for each group.
                                let word = _mm512_set1_epi32(unsafe { *x[a].words.get_unchecked(at) } as i32);
                                for b in 0..N {
                                    dots[a][b] = _mm512_dpbusd_epi32(dots[a][b], vectors[b], word);
                                }
                            }
                        }
                    }
                    for b in 0..N {
                        // SAFETY: the scales of all groups stand after the values.
                        let scales = unsafe { scales_of(w[b].as_ptr().add(values), g) };
                        for a in 0..M {
                            // SAFETY: rows have as many groups.
                            let scale = _mm512_set1_ps(unsafe { *x[a].scales.get_unchecked(g) });
                            let both = _mm512_mul_ps(scales, scale);
                            all[a][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[a][b]), both, all[a][b]);
                        }
                    }
                }
                // SAFETY: this function has the features.
                unsafe { store(&all, sums) };
            }
        }
    };
}

integers!(Int8, Form::Int8, 128, |w, _half| { w });
integers!(Int4, Form::Int4, 8, |w, half| {
    let shifted = if half == 0 { w } else { _mm512_srli_epi16::<4>(w) };
    _mm512_and_si512(shifted, _mm512_set1_epi8(15))
});

impl Int8 {
    /// Vectors of a group.
    const VECTORS: usize = 8;
}

impl Int4 {
    /// Vectors of a group, each read twice.
    const VECTORS: usize = 4;
}
