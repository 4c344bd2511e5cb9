use super::*;
use crate::testing::{Random, central_difference, err_ratio, fault, wide};
use crate::{Rows, RowsMut};

#[test]
fn products_of_features_are_the_expansion() {
    for f in [1, 2, 5, 16] {
        let mut random = Random::new(f as u64);
        let [q, k] = [(); 2].map(|()| wide(&random.normal(2 * f)));
        let map = |x: &[f64]| {
            let mut y = vec![f64::NAN; 2 * features(f)];
            naive::forward(f, Rows::new(x, 2 * f), RowsMut::new(&mut y, 2 * features(f)));
            y
        };
        let (a, b) = (map(&q), map(&k));
        for head in 0..2 {
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            let (own, all) = (head * f..(head + 1) * f, head * features(f)..(head + 1) * features(f));
            let s = dot(&q[own.clone()], &k[own]) / (f as f64).sqrt();
            let got = dot(&a[all.clone()], &b[all]);
            assert!((got - (1.0 + s + s * s / 2.0)).abs() < 1e-12, "{f}: {got}");
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for f in [1, 3, 6] {
        let (m, heads) = (2, 3);
        let mut random = Random::new(7);
        let x = wide(&random.normal(m * heads * f));
        let dy = wide(&random.normal(m * heads * features(f)));
        let cols = heads * features(f);
        let loss = |x: &[f64]| {
            let mut y = vec![0.0; dy.len()];
            naive::forward(f, Rows::new(x, heads * f), RowsMut::new(&mut y, cols));
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let mut dx = vec![f64::NAN; x.len()];
        naive::backward(f, Rows::new(&x, heads * f), Rows::new(&dy, cols), RowsMut::new(&mut dx, heads * f));
        assert!(central_difference(loss, &x, &dx) < 1e-7, "{f}");
    }
}

#[test]
fn f32_is_f64_on_any_number_of_rows() {
    for (m, f) in [(0, 3), (1, 1), (300, 16)] {
        let (cols, d) = (2 * features(f), 2 * f);
        let mut random = Random::new(3);
        let (x, dy) = (random.normal(m * d), random.normal(m * cols));
        let (mut y, mut dx) = (vec![f32::NAN; m * cols], vec![f32::NAN; m * d]);
        forward(f, Rows::new(&x, d), RowsMut::new(&mut y, cols)).unwrap();
        backward(f, Rows::new(&x, d), Rows::new(&dy, cols), RowsMut::new(&mut dx, d)).unwrap();
        let (mut want_y, mut want_dx) = (vec![0.0; m * cols], vec![0.0; m * d]);
        let x = wide(&x);
        naive::forward(f, Rows::new(&x, d), RowsMut::new(&mut want_y, cols));
        naive::backward(f, Rows::new(&x, d), Rows::new(&wide(&dy), cols), RowsMut::new(&mut want_dx, d));
        assert!(err_ratio(&want_y, &y) < 1e-6 && err_ratio(&want_dx, &dx) < 1e-6, "{m} {f}");
    }
    let mut y = [0.0; 6];
    assert_eq!(fault(forward(4, Rows::new(&[0.0; 6], 6), RowsMut::new(&mut y, 6))).argument, "x");
    assert_eq!(fault(forward(2, Rows::new(&[0.0; 2], 2), RowsMut::new(&mut y[..5], 5))).argument, "y");
}
