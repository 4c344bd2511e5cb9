use proptest::prelude::*;

use super::*;
use crate::testing::{Poisoned, Random, bits, central_difference, error_of_terms, fault, terms, wide, with_threads};
use crate::{Rows, RowsMut};

#[test]
fn naive_gradient_is_the_difference_quotient() {
    let mut random = Random::new(1);
    let (v, d, ids) = (5, 3, [4, 0, 4, 2]);
    let (table, dy) = (wide(&random.normal(v * d)), wide(&random.normal(ids.len() * d)));
    let mut dtable = vec![0.0; v * d];
    naive::backward(&ids, Rows::new(&dy, d), RowsMut::new(&mut dtable, d));
    let loss = |table: &[f64]| {
        let mut y = vec![0.0; ids.len() * d];
        naive::forward(&ids, Rows::new(table, d), RowsMut::new(&mut y, d));
        y.iter().zip(&dy).map(|(y, g)| y * g).sum()
    };
    assert!(central_difference(loss, &table, &dtable) < 1e-7);
}

proptest! {
    #[test]
    fn fast_is_naive(m in 0usize..40, v in 1usize..20, d in 1usize..70, gap in 0usize..3, seed: u64) {
        let mut random = Random::new(seed);
        let ids: Vec<u32> = (0..m).map(|_| random.below(v) as u32).collect();
        let (table, dy, start) = (random.normal(v * d), random.normal(m * d), random.normal(v * d));
        let mut y = Poisoned::new(m, d, gap);
        forward(&ids, Rows::new(&table, d), y.rows_mut()).unwrap();
        let mut want = vec![0.0; m * d];
        naive::forward(&ids, Rows::new(&table, d), RowsMut::new(&mut want, d));
        prop_assert_eq!(bits(&y.values()), bits(&want));

        let mut want = terms(&start);
        naive::backward(&ids, Rows::new(&terms(&dy), d), RowsMut::new(&mut want, d));
        for isa in Isa::available() {
            let mut got = Poisoned::with(&start, d, gap);
            cpu::backward(isa, &ids, Rows::new(&dy, d), got.rows_mut());
            prop_assert!(error_of_terms(&want, &got.values()) < 1e-6);
        }
    }
}

#[test]
fn threads_change_nothing() {
    let mut random = Random::new(2);
    let (m, v, d) = (1000, 30, 300);
    let ids: Vec<u32> = (0..m).map(|_| random.below(v) as u32).collect();
    let dy = random.normal(m * d);
    let run = |threads| {
        with_threads(threads, || {
            let mut g = vec![0.0; v * d];
            backward(&ids, Rows::new(&dy, d), RowsMut::new(&mut g, d)).unwrap();
            bits(&g)
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn an_unknown_id_is_named() {
    let (table, mut y) = ([0.0; 6], [0.0; 4]);
    let error = fault(forward(&[1, 7], Rows::new(&table, 2), RowsMut::new(&mut y, 2)));
    assert_eq!((error.argument, error.got.as_str()), ("ids", "7 at position 1"));
    assert!(backward(&[3], Rows::new(&table[..2], 2), RowsMut::new(&mut y, 2)).is_err());
    assert!(forward(&[1], Rows::new(&table, 2), RowsMut::new(&mut y, 2)).is_err());
}
