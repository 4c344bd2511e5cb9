use proptest::prelude::*;

use super::*;
use crate::testing::{
    Poisoned, Random, Terms, bits, central_difference, error_of_terms, fault, terms, wide, with_threads,
};
use crate::{Rows, RowsMut};

#[test]
fn naive_gradients_are_difference_quotients() {
    let mut random = Random::new(1);
    let (m, n, k) = (3, 4, 5);
    let (x, w, bias) = (wide(&random.normal(m * k)), wide(&random.normal(n * k)), wide(&random.normal(n)));
    let dy = wide(&random.normal(m * n));
    let loss = |x: &[f64], w: &[f64], bias: &[f64]| -> f64 {
        let mut y = vec![0.0; m * n];
        naive::forward(Rows::new(x, k), Rows::new(w, k), Some(bias), RowsMut::new(&mut y, n));
        y.iter().zip(&dy).map(|(y, g)| y * g).sum()
    };
    let (mut dx, mut dw, mut db) = (vec![0.0; m * k], vec![0.0; n * k], vec![0.0; n]);
    naive::backward_input(Rows::new(&dy, n), Rows::new(&w, k), RowsMut::new(&mut dx, k));
    naive::backward_weight(Rows::new(&dy, n), Rows::new(&x, k), RowsMut::new(&mut dw, k));
    naive::backward_bias(Rows::new(&dy, n), &mut db);
    assert!(central_difference(|x| loss(x, &w, &bias), &x, &dx) < 1e-7);
    assert!(central_difference(|w| loss(&x, w, &bias), &w, &dw) < 1e-7);
    assert!(central_difference(|b| loss(&x, &w, b), &bias, &db) < 1e-7);
}

/// A matrix of `rows` by `cols` with `gap` elements between rows.
fn strided(data: &[f32], rows: usize, cols: usize, gap: usize) -> Rows<'_> {
    Rows::strided(data, rows, cols, cols + gap).unwrap()
}

/// The four products.
struct Products {
    y: Vec<Terms>,
    dx: Vec<Terms>,
    dw: Vec<Terms>,
    db: Vec<Terms>,
}

impl Products {
    /// `dw` and `db` are added to.
    fn new([m, n, k]: [usize; 3], inputs: [&[f32]; 6], with_bias: bool) -> Self {
        let [x, w, dy, bias, dw, db] = inputs.map(terms);
        let rows = |x, rows, cols| Rows::strided(x, rows, cols, cols).unwrap();
        let (x, w, dy) = (rows(&x, m, k), rows(&w, n, k), rows(&dy, m, n));
        let zeros = |n: usize| terms(&vec![0.0; n]);
        let mut all = Self { y: zeros(m * n), dx: zeros(m * k), dw, db };
        let bias = with_bias.then_some(&bias[..]);
        naive::forward(x, w, bias, RowsMut::strided(&mut all.y, m, n, n).unwrap());
        naive::backward_input(dy, w, RowsMut::strided(&mut all.dx, m, k, k).unwrap());
        if n > 0 && k > 0 {
            naive::backward_weight(dy, x, RowsMut::new(&mut all.dw, k));
            naive::backward_bias(dy, &mut all.db);
        }
        all
    }
}

proptest! {
    #[test]
    fn fast_is_naive(
        m in 0usize..100, n in 0usize..40, k in 0usize..90, gap in 0usize..3, with_bias: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let (x, w, dy) = (random.normal(m * (k + gap)), random.normal(n * (k + gap)), random.normal(m * (n + gap)));
        let (bias, dw_start, db_start) = (random.normal(n), random.normal(n * k), random.normal(n));
        let (x, w, dy) = (strided(&x, m, k, gap), strided(&w, n, k, gap), strided(&dy, m, n, gap));
        let packed = [&x.to_vec()[..], &w.to_vec(), &dy.to_vec(), &bias, &dw_start, &db_start];
        let want = Products::new([m, n, k], packed, with_bias);
        let bias = with_bias.then_some(&bias[..]);

        let mut y = Poisoned::new(m, n, gap);
        forward(x, w, bias.map(View::from), y.rows_mut()).unwrap();
        prop_assert!(error_of_terms(&want.y, &y.values()) < 1e-6);
        for isa in Isa::available() {
            let mut y = Poisoned::new(m, n, gap);
            invariant::forward(isa, x, w, bias, y.rows_mut());
            prop_assert!(error_of_terms(&want.y, &y.values()) < 1e-6);
        }

        let mut dx = Poisoned::new(m, k, gap);
        backward_input(dy, w, dx.rows_mut(), false).unwrap();
        prop_assert!(error_of_terms(&want.dx, &dx.values()) < 1e-6);
        backward_input(dy, w, dx.rows_mut(), true).unwrap();
        let doubled: Vec<Terms> = want.dx.iter().map(|&x| x + x).collect();
        prop_assert!(error_of_terms(&doubled, &dx.values()) < 1e-6);

        if n > 0 && k > 0 {
            let mut dw = Poisoned::with(&dw_start, k, gap);
            backward_weight(dy, x, dw.rows_mut()).unwrap();
            prop_assert!(error_of_terms(&want.dw, &dw.values()) < 1e-6);
            for isa in Isa::available() {
                let mut db = Poisoned::with(&db_start, n, 1);
                cpu::backward_bias(isa, dy, db.rows_mut().row(0));
                prop_assert!(error_of_terms(&want.db, &db.values()) < 1e-6);
            }
        }
    }
}

#[test]
fn invariant_rows_do_not_depend_on_the_batch_or_on_threads() {
    let mut random = Random::new(5);
    for (n, k) in [(37, 77), (128, 256), (515, 48), (9, 3), (1, 1), (300, 768)] {
        let most = 200;
        let (x, w, bias) = (random.normal(most * k), random.normal(n * k), random.normal(n));
        for isa in Isa::available() {
            let run = |threads, from: usize, m: usize| {
                with_threads(threads, || {
                    let mut y = vec![0.0; m * n];
                    let x = Rows::new(&x, k).slice(from, m);
                    invariant::forward(isa, x, Rows::new(&w, k), Some(&bias), RowsMut::new(&mut y, n));
                    bits(&y)
                })
            };
            let all = run(1, 0, most);
            assert_eq!(all, run(2, 0, most), "{} threads", isa.name());
            for (from, m) in [(0, 1), (5, 1), (199, 1), (3, 7), (64, 64), (1, 2), (90, 100)] {
                for threads in [1, 2] {
                    assert_eq!(run(threads, from, m), all[from * n..][..m * n], "{} {from} {m} {n} {k}", isa.name());
                }
            }
        }
    }
}

#[test]
fn products_do_not_depend_on_threads() {
    let mut random = Random::new(6);
    for (m, n, k) in [(256, 130, 700), (1, 500, 3000), (300, 80, 1536), (40, 1536, 48), (2048, 48, 64)] {
        let (x, w, dy) = (random.normal(m * k), random.normal(n * k), random.normal(m * n));
        let (x, w, dy) = (Rows::new(&x, k), Rows::new(&w, k), Rows::new(&dy, n));
        let run = |threads| {
            with_threads(threads, || {
                let (mut y, mut dx, mut dw, mut db) =
                    (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k], vec![0.0; n]);
                forward(x, w, None, RowsMut::new(&mut y, n)).unwrap();
                backward_input(dy, w, RowsMut::new(&mut dx, k), false).unwrap();
                backward_weight(dy, x, RowsMut::new(&mut dw, k)).unwrap();
                backward_bias(dy, &mut db).unwrap();
                [bits(&y), bits(&dx), bits(&dw), bits(&db)]
            })
        };
        let one = run(1);
        assert_eq!(one, run(1), "{m} {n} {k}");
        assert_eq!(one, run(2), "{m} {n} {k}");
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let (x, w) = ([0.0; 6], [0.0; 12]);
    let (x, w) = (Rows::new(&x, 3), Rows::new(&w, 3));
    let mut y = [0.0; 8];
    assert!(forward(x, w, None, RowsMut::new(&mut y, 4)).is_ok());
    assert_eq!(fault(forward(x, w, None, RowsMut::new(&mut y, 2))).argument, "y");
    let bias = [0.0; 3];
    assert_eq!(fault(forward_invariant(x, w, Some(bias.as_slice().into()), RowsMut::new(&mut y, 4))).argument, "bias");
    assert_eq!(fault(forward_invariant(x, Rows::new(&[0.0; 4], 2), None, RowsMut::new(&mut y, 4))).argument, "w");
    let dy = Rows::new(&[0.0; 8], 4);
    assert!(backward_input(dy, x, RowsMut::new(&mut y[..6], 3), false).is_err());
    assert!(backward_input(dy, w, RowsMut::new(&mut y[..6], 2), false).is_err());
    assert!(backward_weight(dy, x, RowsMut::new(&mut y, 2)).is_err());
    assert!(backward_weight(dy, Rows::new(&[0.0; 9], 3), RowsMut::new(&mut [0.0; 12], 3)).is_err());
    assert!(backward_bias(dy, &mut y[..3]).is_err());
}
