use super::*;
use crate::testing::{Random, central_difference, err_ratio, wide};

#[test]
fn naive_gradients_are_difference_quotients() {
    let mut random = Random::new(1);
    let (m, d) = (3, 5);
    let (x, w, b) = (wide(&random.normal(m * d)), wide(&random.normal(d)), wide(&random.normal(d)));
    let dy = wide(&random.normal(m * d));
    let run = |x: &[f64], w: &[f64], b: &[f64]| {
        let (mut y, mut statistics) = (vec![0.0; m * d], vec![0.0; m * 2]);
        let (y_rows, statistics_rows) = (RowsMut::new(&mut y, d), RowsMut::new(&mut statistics, 2));
        naive::forward(Rows::new(x, d), Some(w), Some(b), 1e-5, y_rows, statistics_rows);
        (y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>(), statistics)
    };
    let (_, statistics) = run(&x, &w, &b);
    let (mut dx, mut dw, mut db) = (vec![0.0; m * d], vec![0.0; d], vec![0.0; d]);
    let (x_rows, dy_rows, dx_rows) = (Rows::new(&x, d), Rows::new(&dy, d), RowsMut::new(&mut dx, d));
    naive::backward(x_rows, Some(&w), Rows::new(&statistics, 2), dy_rows, dx_rows, Some(&mut dw), Some(&mut db));
    assert!(central_difference(|x| run(x, &w, &b).0, &x, &dx) < 1e-7);
    assert!(central_difference(|w| run(&x, w, &b).0, &w, &dw) < 1e-7);
    assert!(central_difference(|b| run(&x, &w, b).0, &b, &db) < 1e-7);
}

#[test]
fn f32_is_f64() {
    let mut random = Random::new(2);
    for (m, d) in [(0, 3), (1, 7), (300, 129)] {
        let (x, w) = (random.normal(m * d), random.normal(d));
        let (mut y, mut statistics) = (vec![f32::NAN; m * d], vec![f32::NAN; m * 2]);
        let (y_rows, statistics_rows) = (RowsMut::new(&mut y, d), RowsMut::new(&mut statistics, 2));
        forward(Rows::new(&x, d), Some(&w), None, 1e-5, y_rows, statistics_rows).unwrap();
        let (mut want, mut wide_statistics) = (vec![0.0; m * d], vec![0.0; m * 2]);
        let (want_rows, wide_rows) = (RowsMut::new(&mut want, d), RowsMut::new(&mut wide_statistics, 2));
        naive::forward(Rows::new(&wide(&x), d), Some(&wide(&w)), None, 1e-5, want_rows, wide_rows);
        assert!(err_ratio(&want, &y) < 1e-6);
    }
    let (x, mut y, mut s) = ([0.0; 6], [0.0; 6], [0.0; 4]);
    let error =
        forward(Rows::new(&x, 3), Some(&[1.0; 2]), None, 1e-5, RowsMut::new(&mut y, 3), RowsMut::new(&mut s, 2));
    assert_eq!(error.unwrap_err().argument, "weight");
}
