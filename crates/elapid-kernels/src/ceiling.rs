//! The limits of this machine, with which benchmarks compare their results.

use std::hint::black_box;
use std::time::Instant;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::{Isa, math};

/// Exponentials per second of all threads of the current pool together, on values that stay in the L1 cache.
///
/// A selective scan needs `b l d n` of them. Returns the sum of each thread's best of a hundred short runs, measured
/// simultaneously; takes about a tenth of a second.
pub fn exp_ceiling() -> f64 {
    const COUNT: usize = 2048;
    const ROUNDS: usize = 1000;
    const RUNS: usize = 100;
    struct Exps<'a>(&'a mut [f32]);
    impl WithSimd for Exps<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for x in S::as_mut_simd_f32s(self.0).0 {
                *x = math::exp2(simd, simd.neg_f32s(*x));
            }
        }
    }
    let isa = Isa::best();
    best_of_threads(RUNS, || {
        let mut x: Vec<f32> = (0..COUNT).map(|i| i as f32 * 0.01).collect();
        move || {
            for _ in 0..ROUNDS {
                isa.run(Exps(black_box(&mut x)));
            }
            COUNT * ROUNDS
        }
    })
}

/// The sum over all threads, which run at the same time, of the operations per second in each one's best of `runs`. `prepare`
/// makes what a thread runs, which returns its number of operations; a run is shorter than a time slice, so the best one was
/// not interrupted.
pub(crate) fn best_of_threads<R: FnMut() -> usize>(runs: usize, prepare: impl Fn() -> R + Sync) -> f64 {
    let rates = rayon::broadcast(|_| {
        let mut run = prepare();
        let rate = |_| {
            let start = Instant::now();
            let operations = run();
            operations as f64 / start.elapsed().as_secs_f64()
        };
        (0..runs).map(rate).fold(0.0, f64::max)
    });
    rates.iter().sum()
}

/// Floating-point operations per second of all threads together: fused multiply-adds on registers, two operations each.
pub fn fma_ceiling() -> f64 {
    /// Number of independent sums: more than the latency of a multiply-add times its rate.
    const SUMS: usize = 12;
    const ROUNDS: usize = 20_000;
    const RUNS: usize = 40;
    struct Fmas(f32);
    impl WithSimd for Fmas {
        type Output = (f32, usize);

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> (f32, usize) {
            let (x, mut sums) = (simd.splat_f32s(self.0), [simd.splat_f32s(0.5); SUMS]);
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = simd.mul_add_e_f32s(*sum, x, x);
                }
            }
            let total = sums.into_iter().fold(simd.splat_f32s(0.0), |a, b| simd.add_f32s(a, b));
            (simd.reduce_sum_f32s(total), 2 * SUMS * ROUNDS * S::F32_LANES)
        }
    }
    let isa = Isa::best();
    best_of_threads(RUNS, || {
        move || {
            let (sum, operations) = isa.run(Fmas(black_box(0.25)));
            black_box(sum);
            operations
        }
    })
}

/// Bytes per second that all threads together read a buffer of `bytes` again and again, at most 256 MiB: the best of several
/// passes. A CPU with a large cache reads smaller buffers faster than memory.
pub fn read_ceiling(bytes: usize) -> f64 {
    const MOST: usize = 256 << 20;
    const PASSES: usize = 9;
    let count = (bytes.min(MOST) / size_of::<f32>()).max(1);
    struct Sum<'a>(&'a [f32]);
    impl WithSimd for Sum<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let mut sums = [simd.splat_f32s(0.0); 8];
            for part in S::as_simd_f32s(self.0).0.chunks_exact(8) {
                for (sum, x) in sums.iter_mut().zip(part) {
                    *sum = simd.add_f32s(*sum, *x);
                }
            }
            simd.reduce_sum_f32s(sums.into_iter().fold(simd.splat_f32s(0.0), |a, b| simd.add_f32s(a, b)))
        }
    }
    let isa = Isa::best();
    let numbers = vec![1.0f32; count];
    crate::os::memory::use_huge_pages(&numbers);
    let part = count.div_ceil(rayon::current_num_threads());
    let pass = |_| {
        let start = Instant::now();
        let sum: f32 = numbers.par_chunks(part).map(|part| isa.run(Sum(part))).sum();
        black_box(sum);
        size_of_val(&numbers[..]) as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(pass).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ceilings_are_rates() {
        assert!(super::fma_ceiling() > 1e7);
        assert!(super::read_ceiling(1 << 24) > 1e7);
    }

    #[test]
    fn exp_ceiling_is_a_rate() {
        assert!(super::exp_ceiling() > 1e6);
    }
}
