//! How fast this CPU's instructions for the products of a form are.

use std::hint::black_box;

use super::form::Form;
use crate::ceiling;

/// Independent sums: more than the latency of an instruction times its rate.
const SUMS: usize = 12;
const ROUNDS: usize = 20_000;
const RUNS: usize = 40;

/// Operations per second of all threads together, two for each product that is added, of the instructions that products of
/// a form use, on registers. Where a form has no vector instructions of its own it is the rate of f32.
pub fn product_ceiling(form: Form) -> f64 {
    let Some((of_run, per_round)) = instructions(form) else { return ceiling::fma_ceiling() };
    ceiling::best_of_threads(RUNS, || {
        move || {
            // SAFETY: `instructions` has looked for the instruction set.
            black_box(unsafe { of_run(black_box(1)) });
            SUMS * ROUNDS * per_round
        }
    })
}

/// A loop of [`ROUNDS`] over [`SUMS`], and the operations of an instruction.
type Loop = (unsafe fn(i32) -> i32, usize);

#[cfg(not(target_arch = "x86_64"))]
fn instructions(_: Form) -> Option<Loop> {
    None
}

#[cfg(target_arch = "x86_64")]
fn instructions(form: Form) -> Option<Loop> {
    use std::arch::x86_64::*;

    use crate::Isa;

    /// # Safety
    /// AVX-512 with bf16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16(x: i32) -> i32 {
        // SAFETY: both are 64 bytes, in which every pattern is a value.
        let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(x)) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, x, x));
        }
        sums.iter().map(|&sum| _mm512_reduce_add_ps(sum) as i32).fold(0, i32::wrapping_add)
    }

    /// # Safety
    /// AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn vnni(x: i32) -> i32 {
        let (x, mut sums) = (_mm512_set1_epi32(x), [_mm512_setzero_si512(); SUMS]);
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, x, x));
        }
        sums.iter().map(|&sum| _mm512_reduce_add_epi32(sum)).fold(0, i32::wrapping_add)
    }

    /// # Safety
    /// AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn maddubs(x: i32) -> i32 {
        let (x, ones, mut sums) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1), [_mm256_setzero_si256(); SUMS]);
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                // What is multiplied changes, or the product would be made once.
                let pairs = _mm256_maddubs_epi16(*sum, x);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        let sum = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi32(a, b));
        _mm256_extract_epi32::<0>(sum)
    }

    // The same choice as that of a product's tiles (`forward`).
    match (Isa::best(), form) {
        (_, Form::F32) | (Isa::Portable, _) => None,
        (Isa::Avx512(_), Form::Bf16) if is_x86_feature_detected!("avx512bf16") => Some((bf16, 64)),
        (_, Form::Bf16) => None,
        (Isa::Avx512(_), _) if is_x86_feature_detected!("avx512vnni") => Some((vnni, 128)),
        (_, Form::Int8 | Form::Int4) => Some((maddubs, 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_rates() {
        for form in Form::ALL {
            assert!(product_ceiling(form) > 1e7, "{form}");
        }
    }
}
