//! What this machine could do at most: the limits that benchmarks print their results against.

use std::hint::black_box;
use std::time::Instant;

use pulp::{Simd, WithSimd};

use crate::{Isa, math};

/// Exponentials a second of all threads of the current pool together, on numbers that stay in first-level cache.
///
/// A selective scan needs `b l d n` of them. The sum of each thread's best of a hundred
/// short runs, taken at the same time; about a tenth of a second.
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
    let rates = rayon::broadcast(|_| {
        let mut x: Vec<f32> = (0..COUNT).map(|i| i as f32 * 0.01).collect();
        let mut rate = || {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                isa.run(Exps(black_box(&mut x)));
            }
            (COUNT * ROUNDS) as f64 / start.elapsed().as_secs_f64()
        };
        // A run is shorter than a time slice, so that the best one was not interrupted.
        (0..RUNS).map(|_| rate()).fold(0.0, f64::max)
    });
    rates.iter().sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn ceilings_are_rates() {
        assert!(super::fma_ceiling() > 1e7);
        assert!(super::read_ceiling() > 1e7);
    }

    #[test]
    fn exp_ceiling_is_a_rate() {
        assert!(super::exp_ceiling() > 1e6);
    }
}
