use super::*;
use crate::testing::{Random, central_difference, err_ratio, fault, wide};
use crate::{Rows, RowsMut};

#[test]
fn bounds_rise_from_zero_to_the_rest_of_the_first_row() {
    let p: Vec<f64> = wide(&Random::new(1).normal(5 * 3));
    let bound = |i| {
        let mut y = vec![f64::NAN; 3];
        naive::forward(i, Rows::new(&p, 3), &mut y);
        y
    };
    assert_eq!(bound(0), [0.0; 3]);
    for c in 0..3 {
        let sum: f64 = (0..5).map(|m| p[3 * m + c].exp()).sum();
        for i in 1..5 {
            let step = bound(i)[c] - bound(i - 1)[c];
            assert!((step - p[3 * i + c].exp() / sum).abs() < 1e-14, "{i} {c}: {step}");
        }
        assert!((bound(4)[c] - (1.0 - p[c].exp() / sum)).abs() < 1e-14);
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for (rows, i) in [(1, 0), (4, 0), (4, 1), (4, 3), (7, 5)] {
        let mut random = Random::new(rows as u64);
        let (p, dy) = (wide(&random.normal(rows * 3)), wide(&random.normal(3)));
        let loss = |p: &[f64]| {
            let mut y = vec![0.0; 3];
            naive::forward(i, Rows::new(p, 3), &mut y);
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let mut dp = vec![0.5; p.len()];
        naive::backward(i, Rows::new(&p, 3), &dy, RowsMut::new(&mut dp, 3));
        dp.iter_mut().for_each(|dp| *dp -= 0.5);
        assert!(central_difference(loss, &p, &dp) < 1e-7, "{rows} {i}");
    }
}

#[test]
fn every_instruction_set_is_the_equation() {
    for (rows, d, i) in [(1, 5, 0), (2, 16, 1), (24, 1, 23), (24, 67, 11), (5, 300, 2), (3, 0, 1)] {
        let p: Vec<f32> = Random::new(9).normal(rows * d).iter().map(|x| 6.0 * x).collect();
        let mut want = vec![f64::NAN; d];
        naive::forward(i, Rows::new(&wide(&p), d), &mut want);
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; d];
            cpu::forward(isa, i, Rows::new(&p, d), &mut y);
            assert!(err_ratio(&want, &y) < 1e-6, "{} {rows} {d} {i}", isa.name());
        }
    }
    let (p, mut y) = ([0.0; 6], [0.0; 3]);
    assert_eq!(fault(forward(2, Rows::new(&p, 3), &mut y)).argument, "i");
    assert_eq!(fault(forward(1, Rows::new(&p, 3), &mut y[..2])).argument, "y");
    assert_eq!(fault(backward(1, Rows::new(&p, 3), &y, RowsMut::new(&mut [0.0; 3], 3))).argument, "dp");
}
