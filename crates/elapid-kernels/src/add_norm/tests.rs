use proptest::prelude::*;

use super::*;
use crate::testing::{Poisoned, Random, bits, central_difference, error_of_terms, fault, terms, wide, with_threads};
use crate::{Rows, RowsMut};

#[test]
fn naive_gradients_are_difference_quotients() {
    let mut random = Random::new(1);
    let (m, d, eps) = (3, 5, 1e-5);
    let (x, residual, weight) = (wide(&random.normal(m * d)), wide(&random.normal(m * d)), wide(&random.normal(d)));
    let (dy, dsum) = (wide(&random.normal(m * d)), wide(&random.normal(m * d)));
    let run = |x: &[f64], residual: &[f64], weight: &[f64]| {
        let (mut y, mut sum, mut rstd) = (vec![0.0; m * d], vec![0.0; m * d], vec![0.0; m]);
        let (y_rows, sum_rows) = (RowsMut::new(&mut y, d), RowsMut::new(&mut sum, d));
        naive::forward(Rows::new(x, d), Some(Rows::new(residual, d)), weight, eps, y_rows, sum_rows, &mut rstd);
        (y, sum, rstd)
    };
    let loss = |x: &[f64], residual: &[f64], weight: &[f64]| -> f64 {
        let (y, sum, _) = run(x, residual, weight);
        y.iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>() + sum.iter().zip(&dsum).map(|(a, b)| a * b).sum::<f64>()
    };
    let (_, sum, rstd) = run(&x, &residual, &weight);
    let (mut dx, mut dweight) = (vec![0.0; m * d], vec![0.0; d]);
    let (dy_rows, dsum_rows) = (Rows::new(&dy, d), Some(Rows::new(&dsum, d)));
    let dx_rows = RowsMut::new(&mut dx, d);
    naive::backward(Rows::new(&sum, d), &weight, &rstd, dy_rows, dsum_rows, dx_rows, &mut dweight);
    assert!(central_difference(|x| loss(x, &residual, &weight), &x, &dx) < 1e-7);
    assert!(central_difference(|r| loss(&x, r, &weight), &residual, &dx) < 1e-7);
    assert!(central_difference(|w| loss(&x, &residual, w), &weight, &dweight) < 1e-7);
}

proptest! {
    #[test]
    fn fast_is_naive(
        m in 0usize..90, d in 1usize..200, gap in 0usize..3, with_residual: bool, with_dsum: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let (x, r, weight) = (random.normal(m * d), random.normal(m * d), random.normal(d));
        let (dy, dsum, start) = (random.normal(m * d), random.normal(m * d), random.normal(d));
        let zeros = |n: usize| terms(&vec![0.0; n]);
        let (x_terms, r_terms, weight_terms) = (terms(&x), terms(&r), terms(&weight));
        let (mut want_y, mut want_sum, mut want_rstd) = (zeros(m * d), zeros(m * d), zeros(m));
        naive::forward(
            Rows::new(&x_terms, d), with_residual.then(|| Rows::new(&r_terms, d)), &weight_terms, 1e-5.into(),
            RowsMut::new(&mut want_y, d), RowsMut::new(&mut want_sum, d), &mut want_rstd,
        );
        let (mut want_dx, mut want_dweight) = (zeros(m * d), terms(&start));
        let dsum_terms = terms(&dsum);
        naive::backward(
            Rows::new(&want_sum, d), &weight_terms, &want_rstd, Rows::new(&terms(&dy), d),
            with_dsum.then(|| Rows::new(&dsum_terms, d)), RowsMut::new(&mut want_dx, d), &mut want_dweight,
        );
        for isa in Isa::available() {
            let (mut y, mut sum, mut rstd) = (Poisoned::new(m, d, gap), Poisoned::new(m, d, gap), Poisoned::new(1, m, 1));
            let residual = with_residual.then(|| Rows::new(&r, d));
            cpu::forward(isa, Rows::new(&x, d), residual, &weight, 1e-5, y.rows_mut(), sum.rows_mut(), rstd.rows_mut().row(0));
            prop_assert!(error_of_terms(&want_y, &y.values()) < 1e-6);
            prop_assert!(error_of_terms(&want_sum, &sum.values()) < 1e-6);
            prop_assert!(error_of_terms(&want_rstd, &rstd.values()) < 1e-6);
            let mut again = Poisoned::new(m, d, gap);
            cpu::scale(isa, Rows::new(&sum.values(), d), &weight, &rstd.values(), again.rows_mut());
            prop_assert_eq!(bits(&y.values()), bits(&again.values()));
            let (mut dx, mut dweight) = (Poisoned::new(m, d, gap), Poisoned::with(&start, d, 1));
            let mut dresidual = Poisoned::new(m, d, gap);
            cpu::backward(
                isa, Rows::new(&sum.values(), d), &weight, &rstd.values(), Rows::new(&dy, d),
                with_dsum.then(|| Rows::new(&dsum, d)), (dx.rows_mut(), with_residual.then(|| dresidual.rows_mut())),
                dweight.rows_mut().row(0),
            );
            let error = error_of_terms(&want_dx, &dx.values());
            prop_assert!(error < 1e-5, "{} {error}", isa.name());
            prop_assert!(error_of_terms(&want_dweight, &dweight.values()) < 1e-5);
            if with_residual {
                prop_assert_eq!(bits(&dx.values()), bits(&dresidual.values()));
            }
        }
    }
}

#[test]
fn a_row_alone_is_the_row_in_a_batch_and_threads_change_nothing() {
    let mut random = Random::new(3);
    let (m, d) = (700, 129);
    let (x, r, weight, dy) = (random.normal(m * d), random.normal(m * d), random.normal(d), random.normal(m * d));
    for isa in Isa::available() {
        let run = |threads, from: usize, rows: usize| {
            with_threads(threads, || {
                let (mut y, mut sum, mut rstd) = (vec![0.0; rows * d], vec![0.0; rows * d], vec![0.0; rows]);
                let (x, r) = (Rows::new(&x, d).slice(from, rows), Some(Rows::new(&r, d).slice(from, rows)));
                cpu::forward(isa, x, r, &weight, 1e-5, RowsMut::new(&mut y, d), RowsMut::new(&mut sum, d), &mut rstd);
                let (mut dx, mut dweight) = (vec![0.0; rows * d], vec![0.0; d]);
                let (sum, dy) = (Rows::new(&sum, d), Rows::new(&dy, d).slice(from, rows));
                cpu::backward(isa, sum, &weight, &rstd, dy, None, (RowsMut::new(&mut dx, d), None), &mut dweight);
                (bits(&y), bits(&dx), bits(&dweight))
            })
        };
        let all = run(1, 0, m);
        assert_eq!(all, run(2, 0, m));
        assert_eq!(all, run(3, 0, m));
        for r in [0, 1, 350, m - 1] {
            let alone = run(1, r, 1);
            assert_eq!(alone.0, all.0[r * d..][..d]);
            assert_eq!(alone.1, all.1[r * d..][..d]);
        }
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let x = [0.0; 6];
    let (mut y, mut sum, mut rstd) = ([0.0; 6], [0.0; 6], [0.0; 2]);
    let mut run = |weight: &[f32], residual: Option<Rows<'_>>, rows: usize| {
        let (y, sum) = (RowsMut::new(&mut y, 3), RowsMut::new(&mut sum, 3));
        forward(Rows::new(&x, 3), residual.map(View::from), weight, 1e-5, y, sum, &mut rstd[..rows])
    };
    assert!(run(&[1.0; 3], None, 2).is_ok());
    assert_eq!(fault(run(&[1.0; 2], None, 2)).argument, "weight");
    assert_eq!(fault(run(&[1.0; 3], None, 1)).argument, "rstd");
    assert_eq!(fault(run(&[1.0; 3], Some(Rows::new(&x, 2)), 2)).argument, "residual");
    let (mut dx, mut dweight) = ([0.0; 6], [0.0; 2]);
    let rows = Rows::new(&x, 3);
    assert!(scale(rows, &[1.0; 3], &[1.0; 2], RowsMut::new(&mut dx, 3)).is_ok());
    assert_eq!(fault(scale(rows, &[1.0; 3], &[1.0; 3], RowsMut::new(&mut dx, 3))).argument, "rstd");
    assert!(backward(rows, &[1.0; 3], &[1.0; 2], rows, None, RowsMut::new(&mut dx, 3), None, &mut dweight).is_err());
}
