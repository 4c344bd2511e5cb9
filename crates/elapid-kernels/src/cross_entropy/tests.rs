use proptest::prelude::*;

use super::*;
use crate::testing::{
    Poisoned, Random, bits, central_difference, err_ratio, error_of_terms, fault, terms, wide, with_threads,
};
use crate::{Rows, RowsMut};

#[test]
fn naive_gradients_are_difference_quotients() {
    for softcap in [0.0, 1.5] {
        naive_gradients(softcap);
    }
}

fn naive_gradients(softcap: f32) {
    let mut random = Random::new(1);
    let (m, v, d, scale, smoothing) = (4, 6, 5, 0.25f32, 0.1);
    let (h, w, targets) = (wide(&random.normal(m * d)), wide(&random.normal(v * d)), [2, -1, 5, 0]);
    let loss = |h: &[f64], w: &[f64]| -> f64 {
        let mut nll = vec![0.0; m];
        let args = Args { h: Rows::new(h, d), w: Rows::new(w, d), targets: &targets[..], smoothing, softcap };
        naive::forward(&args, &mut nll, None);
        assert_eq!(nll[1], 0.0);
        // Three of the four count.
        nll.iter().sum::<f64>() / 3.0 * f64::from(scale)
    };
    let (mut nll, mut dh, mut dw) = (vec![0.0; m], vec![f64::NAN; m * d], vec![f64::NAN; v * d]);
    let grads = Grads { dh: RowsMut::new(&mut dh, d), dw: RowsMut::new(&mut dw, d), scale };
    let args = Args { h: Rows::new(&h, d), w: Rows::new(&w, d), targets: &targets[..], smoothing, softcap };
    naive::forward(&args, &mut nll, Some(grads));
    assert!(central_difference(|h| loss(h, &w), &h, &dh) < 1e-7);
    assert!(central_difference(|w| loss(&h, w), &w, &dw) < 1e-7);
}

fn compare(m: usize, v: usize, d: usize, gap: usize, size: f32, (smoothing, softcap): (f32, f32), seed: u64) {
    let mut random = Random::new(seed);
    let (mut h, w, before) = (random.normal(m * d), random.normal(v * d), random.normal(v * d));
    h.iter_mut().for_each(|h| *h *= size);
    let targets: Vec<i32> = (0..m).map(|_| random.below(v + 1) as i32 - 1).collect();
    let (h_terms, w_terms) = (terms(&h), terms(&w));
    let (mut want_nll, mut want_dh, mut want_dw) =
        (terms(&vec![0.0; m]), terms(&vec![0.0; m * d]), terms(&vec![0.0; v * d]));
    let (h_rows, w_rows) = (Rows::new(&h_terms, d), Rows::new(&w_terms, d));
    let args = Args { h: h_rows, w: w_rows, targets: &targets[..], smoothing, softcap };
    let (dh, dw) = (RowsMut::new(&mut want_dh, d), RowsMut::new(&mut want_dw, d));
    naive::forward(&args, &mut want_nll, Some(Grads { dh, dw, scale: 0.5 }));
    let want_nll: Vec<f64> = want_nll.iter().map(|nll| nll.value).collect();
    // A probability below the normal range of f32 may be the least normal value or 0; dw has it times h, and nothing else where
    // the word is far from likely.
    let least = 1e6 * f64::from(f32::MIN_POSITIVE) * h_terms.iter().map(|h| h.size).fold(0.0, f64::max);
    want_dw.iter_mut().for_each(|dw| dw.size += least);
    let args = Args { h: Rows::new(&h, d), w: Rows::new(&w, d), targets: &targets[..], smoothing, softcap };
    for isa in Isa::available() {
        // dw is stored, whatever was there.
        let (mut nll, mut dh, mut dw) =
            (Poisoned::new(1, m, 1), Poisoned::new(m, d, gap), Poisoned::with(&before, d, gap));
        let grads = Grads { dh: dh.rows_mut(), dw: dw.rows_mut(), scale: 0.5 };
        cpu::forward(isa, &args, nll.rows_mut().row(0), Some(grads));
        let [dh, dw] = [(&want_dh, &dh), (&want_dw, &dw)].map(|(want, got)| error_of_terms(want, &got.values()));
        let error = [err_ratio(&want_nll, &nll.values()), dh, dw];
        // An error of the logits, which grow with `size`, is an error of the logarithm of a gradient.
        let tolerance = 1e-5 * f64::from(size.max(1.0));
        assert!(error.iter().all(|&e| e < tolerance), "{} {m} {v} {d}: {error:?}", isa.name());
        let mut alone = Poisoned::new(1, m, 1);
        cpu::forward(isa, &args, alone.rows_mut().row(0), None);
        assert!(err_ratio(&want_nll, &alone.values()) < tolerance, "{} {m} {v} {d}", isa.name());
        // Without gradients, a row has the same bits whatever is beside it.
        for r in 0..m.min(3) {
            let mut nll = [f32::NAN];
            let args = Args { h: args.h.slice(r, 1), targets: &targets[r..=r], ..args };
            cpu::forward(isa, &args, &mut nll, None);
            assert_eq!(bits(&nll), bits(&alone.values()[r..=r]));
        }
    }
}

proptest! {
    #[test]
    fn fast_is_naive(m in 0usize..20, v in 1usize..90, d in 1usize..40, gap in 0usize..3, smooth: bool, cap: bool, seed: u64) {
        compare(m, v, d, gap, 0.3, (if smooth { 0.1 } else { 0.0 }, if cap { 0.7 } else { 0.0 }), seed);
    }
}

#[test]
fn gradients_that_cancel() {
    compare(2, 71, 1, 0, 0.3, (0.1, 0.0), 6796183924366959762);
}

#[test]
fn several_blocks() {
    compare(300, 9000, 8, 0, 1.0, (0.3, 0.0), 4);
}

#[test]
fn large_logits_stay_finite() {
    compare(5, 50, 16, 0, 30.0, (0.0, 0.0), 5);
    compare(5, 50, 16, 0, 30.0, (0.1, 0.0), 5);
}

#[test]
fn threads_change_nothing() {
    let mut random = Random::new(2);
    let (m, v, d) = (300, 700, 64);
    let (h, w) = (random.normal(m * d), random.normal(v * d));
    let targets: Vec<i32> = (0..m).map(|_| random.below(v) as i32).collect();
    let run = |threads| {
        with_threads(threads, || {
            let (mut nll, mut dh, mut dw) = (vec![0.0; m], vec![0.0; m * d], vec![0.0; v * d]);
            let grads = Grads { dh: RowsMut::new(&mut dh, d), dw: RowsMut::new(&mut dw, d), scale: 0.5 };
            let args =
                Args { h: Rows::new(&h, d), w: Rows::new(&w, d), targets: &targets[..], smoothing: 0.1, softcap: 0.0 };
            forward(args, &mut nll, &mut [0.0], Some(grads.into())).unwrap();
            [bits(&nll), bits(&dh), bits(&dw)]
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (h, w, mut nll) = ([0.0; 6], [0.0; 9], [0.0; 2]);
    let args = Args { h: Rows::new(&h, 3), w: Rows::new(&w, 3), targets: &[-1, 3][..], smoothing: 0.0, softcap: 0.0 };
    let error = fault(forward(args, &mut nll, &mut [0.0], None));
    assert_eq!((error.argument, error.got.as_str()), ("targets", "3 at position 1"));
    for smoothing in [-0.1, 1.0, f32::NAN] {
        let error = fault(forward(Args { targets: &[0, 1][..], smoothing, ..args }, &mut nll, &mut [0.0], None));
        assert_eq!(error.argument, "smoothing");
    }
    assert!(forward(Args { targets: &[0][..], ..args }, &mut nll, &mut [0.0], None).is_err());
    assert!(forward(Args { targets: &[0, 1][..], ..args }, &mut nll[..1], &mut [0.0], None).is_err());
    assert!(
        forward(Args { w: Rows::new(&w[..4], 2), targets: &[0, 1][..], ..args }, &mut nll, &mut [0.0], None).is_err()
    );
}

/// The mean is over the targets that count, and gradients are of `scale` times it, stored whatever was there.
#[test]
fn the_mean_counts_what_is_asked_for() {
    let (m, v, d) = (3, 4, 2);
    let (h, w) = (Random::new(1).normal(m * d), Random::new(2).normal(v * d));
    let run = |targets: &[i32], scale| {
        let (mut nll, mut mean) = (vec![f32::NAN; m], [f32::NAN]);
        let (mut dh, mut dw) = (vec![f32::NAN; m * d], vec![f32::NAN; v * d]);
        let grads = Grads { dh: RowsMut::new(&mut dh, d), dw: RowsMut::new(&mut dw, d), scale };
        let args = Args { h: Rows::new(&h, d), w: Rows::new(&w, d), targets, smoothing: 0.0, softcap: 0.0 };
        forward(args, &mut nll, &mut mean, Some(grads.into())).unwrap();
        (nll, mean[0], [dh, dw].concat())
    };
    let (nll, mean, once) = run(&[1, -1, 3], 1.0);
    assert_eq!(mean, (nll[0] + nll[2]) / 2.0);
    let twice: Vec<f32> = once.iter().map(|x| 2.0 * x).collect();
    assert!(err_ratio(&wide(&twice), &run(&[1, -1, 3], 2.0).2) < 1e-6);
    let (nll, mean, gradients) = run(&[-1; 3], 1.0);
    assert!(mean == 0.0 && nll.iter().chain(&gradients).all(|&x| x == 0.0));
}
