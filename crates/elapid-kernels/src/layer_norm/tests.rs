use super::*;
use crate::testing::{Random, central_difference, err_ratio, fault, wide};
use crate::{Rows, RowsMut};

/// Random inputs of `m` rows of `d`.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) m: usize,
    pub(super) d: usize,
    pub(super) x: Vec<f32>,
    pub(super) r: Vec<f32>,
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) dy: Vec<f32>,
    pub(super) dsum: Vec<f32>,
    /// Whether there is a residual, a weight, a bias, and a gradient of the sum.
    pub(super) with: [bool; 4],
    pub(super) factors: (f32, f32),
}

pub(super) const EPS: f32 = 1e-5;

impl Case {
    pub(super) fn new(m: usize, d: usize, with: [bool; 4], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let [x, r, dy, dsum] = [(); 4].map(|()| random.normal(m * d));
        let [weight, bias] = [(); 2].map(|()| random.normal(d));
        let factors = if with[0] { (0.5, -1.5) } else { (1.0, 1.0) };
        Self { m, d, x, r, weight, bias, dy, dsum, with, factors }
    }
}

/// What the oracle gives: y, the sum, the statistics.
pub(super) fn forward_of(case: &Case, [x, r, weight, bias]: [&[f64]; 4]) -> [Vec<f64>; 3] {
    let (m, d, [residual, weighted, biased, _]) = (case.m, case.d, case.with);
    let [mut y, mut sum, mut statistics] = [m * d, m * d, 2 * m].map(|len| vec![0.0; len]);
    let args = Args {
        x: Rows::new(x, d),
        residual: residual.then(|| Residual { r: Rows::new(r, d), keep: case.factors.0, scale: case.factors.1 }),
        weight: weighted.then_some(weight),
        bias: biased.then_some(bias),
        eps: EPS,
    };
    naive::forward(&args, RowsMut::new(&mut y, d), Some(RowsMut::new(&mut sum, d)), &mut statistics);
    [y, sum, statistics]
}

/// What the oracle gives: dx, dr, dweight, dbias, the last two added to `base`.
pub(super) fn backward_of(case: &Case, base: f64) -> [Vec<f64>; 4] {
    let (m, d, [_, weighted, _, arrives]) = (case.m, case.d, case.with);
    let [x, r, weight, bias, dy, dsum] =
        [&case.x, &case.r, &case.weight, &case.bias, &case.dy, &case.dsum].map(|x| wide(x));
    let [_, s, statistics] = forward_of(case, [&x, &r, &weight, &bias]);
    let [mut dx, mut dr] = [(); 2].map(|()| vec![0.0; m * d]);
    let [mut dweight, mut dbias] = [(); 2].map(|()| vec![base; d]);
    let saved = Saved {
        s: Rows::new(&s, d),
        weight: weighted.then_some(&weight[..]),
        statistics: &statistics[..],
        factors: case.factors,
    };
    let grads = Grads {
        dx: RowsMut::new(&mut dx, d),
        dresidual: Some(RowsMut::new(&mut dr, d)),
        dweight: Some(&mut dweight[..]),
        dbias: Some(&mut dbias[..]),
    };
    naive::backward(&saved, Rows::new(&dy, d), arrives.then(|| Rows::new(&dsum, d)), grads);
    [dx, dr, dweight, dbias]
}

#[test]
fn naive_gradients_are_difference_quotients() {
    for bits in 0..16 {
        let case = Case::new(3, 5, [0, 1, 2, 3].map(|bit| bits >> bit & 1 == 0), 1);
        let all = [&case.x, &case.r, &case.weight, &case.bias].map(|x| wide(x));
        let (dy, dsum) = (wide(&case.dy), wide(&case.dsum));
        let loss = |at: usize| {
            let (case, all, dy, dsum) = (&case, &all, &dy, &dsum);
            move |x: &[f64]| {
                let mut inputs = all.each_ref().map(|x| &x[..]);
                inputs[at] = x;
                let [y, sum, _] = forward_of(case, inputs);
                let dot = |x: &[f64], g: &[f64]| x.iter().zip(g).map(|(x, g)| x * g).sum::<f64>();
                dot(&y, dy) + if case.with[3] { dot(&sum, dsum) } else { 0.0 }
            }
        };
        let grads = backward_of(&case, 0.0);
        let wanted = [true, case.with[0], case.with[1], case.with[2]];
        for (at, gradient) in grads.iter().enumerate().filter(|(at, _)| wanted[*at]) {
            assert!(central_difference(loss(at), &all[at], gradient) < 1e-7, "input {at} of {:?}", case.with);
        }
    }
}

#[test]
fn f32_is_f64() {
    for (m, d) in [(0, 3), (1, 7), (300, 129)] {
        for with in [[true; 4], [false, true, false, false]] {
            let case = Case::new(m, d, with, 2);
            let [x, r, weight, bias] = [&case.x, &case.r, &case.weight, &case.bias].map(|x| wide(x));
            let [want, want_sum, _] = forward_of(&case, [&x, &r, &weight, &bias]);
            let [mut y, mut sum] = [(); 2].map(|()| vec![f32::NAN; m * d]);
            let mut statistics = vec![f32::NAN; 2 * m];
            let (keep, scale) = case.factors;
            let args = Args {
                x: Rows::new(&case.x, d).into(),
                residual: with[0].then(|| Residual { r: Rows::new(&case.r, d).into(), keep, scale }),
                weight: with[1].then(|| (&case.weight).into()),
                bias: with[2].then(|| (&case.bias).into()),
                eps: EPS,
            };
            let sum_out = with[0].then(|| RowsMut::new(&mut sum, d).into());
            forward(args, RowsMut::new(&mut y, d), sum_out, &mut statistics).unwrap();
            assert!(err_ratio(&want, &y) < 1e-6);
            assert!(!with[0] || err_ratio(&want_sum, &sum) < 1e-6);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, mut y, mut statistics) = ([0.0; 6], [0.0; 6], [0.0; 4]);
    let args = Args {
        x: View::from(Rows::new(&x, 3)),
        residual: None,
        weight: Some((&[1.0; 2]).into()),
        bias: None,
        eps: EPS,
    };
    let refused = fault(forward(args, RowsMut::new(&mut y, 3), None, &mut statistics));
    assert_eq!(refused.argument, "weight");
    let mut sum = [0.0; 6];
    let args = Args { weight: None, ..args };
    let sum = Some(RowsMut::new(&mut sum, 3).into());
    assert_eq!(fault(forward(args, RowsMut::new(&mut y, 3), sum, &mut statistics)).argument, "sum");
    assert_eq!(fault(forward(args, RowsMut::new(&mut y, 3), None, &mut [0.0; 3])).argument, "statistics");
}
