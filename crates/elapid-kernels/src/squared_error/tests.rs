use super::*;
use crate::testing::{Random, central_difference, err_ratio, fault, wide};
use crate::{Rows, RowsMut};

/// y and targets, every third of which is missing.
pub(super) fn values(m: usize, n: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random::new(seed);
    let (y, mut targets) = (random.normal(m * n), random.normal(m * n));
    targets.iter_mut().step_by(3).for_each(|t| *t = f32::NAN);
    (y, targets)
}

#[test]
fn the_naive_gradient_is_a_difference_quotient() {
    let (y, targets) = values(4, 5, 1);
    let (y, targets) = (wide(&y), wide(&targets));
    let (_, count) = naive::forward(Rows::new(&y, 5), &targets);
    assert_eq!(count, 13.0);
    let mut dy = vec![f64::NAN; 20];
    naive::backward(Rows::new(&y, 5), &targets, count, 1.5, RowsMut::new(&mut dy, 5));
    let loss = |y: &[f64]| 1.5 * naive::forward(Rows::new(y, 5), &targets).0;
    assert!(central_difference(loss, &y, &dy) < 1e-7);
}

#[test]
fn f32_is_f64() {
    for (m, n) in [(0, 2), (1, 1), (300, 7)] {
        let (y, targets) = values(m, n, 2);
        let (want, wanted) = naive::forward(Rows::new(&wide(&y), n), &wide(&targets));
        let (mut mean, mut count, mut dy) = ([f32::NAN], [f32::NAN], vec![f32::NAN; m * n]);
        forward(Rows::new(&y, n), &targets, &mut mean, &mut count).unwrap();
        assert!(err_ratio(&[want], &mean) < 1e-6 && f64::from(count[0]) == wanted, "{mean:?} {count:?}");
        backward(Rows::new(&y, n), &targets, &count, 0.5, RowsMut::new(&mut dy, n)).unwrap();
        let mut want = vec![0.0; m * n];
        naive::backward(Rows::new(&wide(&y), n), &wide(&targets), wanted, 0.5, RowsMut::new(&mut want, n));
        assert!(err_ratio(&want, &dy) < 1e-6);
    }
    let (mut mean, mut count) = ([1.0], [1.0]);
    forward(&[2.0, 3.0], &[f32::NAN; 2], &mut mean, &mut count).unwrap();
    assert_eq!((mean, count), ([0.0], [1.0]));
    assert_eq!(fault(forward(&[2.0, 3.0], &[0.0; 3], &mut mean, &mut count)).argument, "targets");
}
