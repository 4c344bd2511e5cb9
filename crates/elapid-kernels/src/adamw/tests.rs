use proptest::prelude::*;

use super::*;
use crate::testing::{Poisoned, Random, Terms, bits, error_of_terms, wide, with_threads};

const HYPER: Hyper =
    Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

#[test]
fn first_steps_by_hand() {
    // With p = 1, g = 2 halved by grad_scale: both corrected means are 1, so p = 0.999 - 0.01.
    let (mut p, mut m, mut v) = (vec![1.0f64], vec![0.0], vec![0.0]);
    naive::step(&HYPER, &mut p, &[2.0], &mut m, &mut v);
    assert!(
        (p[0] - 0.989).abs() < 1e-7 && (m[0] - 0.1).abs() < 1e-7 && (v[0] - 0.05).abs() < 1e-7,
        "{p:?} {m:?} {v:?}"
    );
    // Without a gradient m = 0.09 and v = 0.0475: m / 0.19 over sqrt(v / 0.0975).
    naive::step(&Hyper { step: 2, ..HYPER }, &mut p, &[0.0], &mut m, &mut v);
    let want = 0.989 - 0.001 * 0.989 - 0.01 * (0.09 / 0.19) / (0.0475f64 / 0.0975).sqrt();
    assert!((p[0] - want).abs() < 1e-7, "{} {want}", p[0]);
}

proptest! {
    #[test]
    fn fast_is_naive(n in 0usize..300, steps in 1u64..4, seed: u64) {
        let mut random = Random::new(seed);
        let (p, g) = (random.normal(n), random.normal(n));
        let (mut p64, mut m64, mut v64) = (wide(&p), vec![0.0; n], vec![0.0; n]);
        for step in 1..=steps {
            naive::step(&Hyper { step, ..HYPER }, &mut p64, &wide(&g), &mut m64, &mut v64);
        }
        // A step is at most about lr, and may bring a parameter near 0.
        let moved = f64::from(HYPER.lr) * steps as f64;
        let want_p: Vec<Terms> =
            p64.iter().zip(&p).map(|(&value, p)| Terms { value, size: f64::from(p.abs()) + moved }).collect();
        let [want_m, want_v] = [m64, v64].map(|x| x.into_iter().map(Terms::new).collect::<Vec<_>>());
        for isa in Isa::available() {
            let zeros = vec![0.0; n];
            let [mut p, mut m, mut v] = [&p, &zeros, &zeros].map(|x| if n == 0 { Poisoned::new(1, 0, 1) } else { Poisoned::with(x, n, 1) });
            for s in 1..=steps {
                let (mut p, mut m, mut v) = (p.rows_mut(), m.rows_mut(), v.rows_mut());
                cpu::step(isa, &Hyper { step: s, ..HYPER }, p.row(0), &g, m.row(0), v.row(0));
            }
            for (want, got) in [(&want_p, &p), (&want_m, &m), (&want_v, &v)] {
                prop_assert!(error_of_terms(want, &got.values()) < 1e-6);
            }
        }
    }

    #[test]
    fn norm_is_naive(n in 0usize..70_000, seed: u64) {
        let g = Random::new(seed).uniform(n, -2.0, 1.0);
        let want: f64 = g.iter().map(|&g| f64::from(g).powi(2)).sum();
        for isa in Isa::available() {
            prop_assert!((cpu::norm_sq(isa, &g) - want).abs() <= 1e-12 * want);
            prop_assert_eq!(cpu::first_non_finite(isa, &g), None);
        }
    }
}

#[test]
fn the_first_non_finite_is_found() {
    for n in [1, 100, 40_000, 300_000] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, n / 2, n - 1] {
                let mut g = vec![f32::MAX; n];
                g[at] = bad;
                g[n - 1] = bad;
                for isa in Isa::available() {
                    assert_eq!(cpu::first_non_finite(isa, &g), Some(at));
                }
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let mut random = Random::new(7);
    let n = 300_001;
    let (p, g) = (random.normal(n), random.normal(n));
    let run = |threads| {
        with_threads(threads, || {
            let (mut p, mut m, mut v) = (p.clone(), vec![0.0; n], vec![0.0; n]);
            step(&HYPER, &mut p, &g, &mut m, &mut v).unwrap();
            (bits(&p), bits(&m), bits(&v), norm_sq(&g).to_bits())
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut x = [[0.0f32; 3]; 3];
    let [p, m, v] = &mut x;
    assert!(step(&HYPER, p, &[0.0; 3], m, v).is_ok());
    assert_eq!(step(&HYPER, p, &[0.0; 2], m, v).unwrap_err().argument, "g");
    assert_eq!(step(&HYPER, p, &[0.0; 3], m, &mut v[..1]).unwrap_err().argument, "v");
    assert_eq!(step(&Hyper { step: 0, ..HYPER }, p, &[0.0; 3], m, v).unwrap_err().argument, "step");
}
