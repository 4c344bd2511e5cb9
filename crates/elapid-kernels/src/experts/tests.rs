use super::*;
use crate::testing::{Poisoned, Random, bits, central_difference, err_ratio, fault, wide};
use crate::{Array, Rows, RowsMut};

/// Picks of which some are no expert's.
pub(super) fn picks(m: usize, k: usize, experts: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..m * k).map(|at| if at % 11 == 5 { u32::MAX } else { random.below(experts) as u32 }).collect()
}

fn order(picked: &[u32], k: usize, experts: usize, room: usize) -> Order {
    sort(Array::Host(picked), k, experts, room).unwrap()
}

#[test]
fn uses_are_sorted_and_limited() {
    let picked = [2, 0, 0, 2, 9, 0, 2, 1];
    let all = order(&picked, 2, 3, usize::MAX);
    let host = all.host().unwrap();
    assert_eq!(host.starts, [0, 3, 4, 7]);
    assert_eq!(host.uses, [1, 2, 5, 7, 0, 3, 6, NOWHERE]);
    assert_eq!(host.places, [4, 0, 1, 5, NOWHERE, 2, 6, 3]);
    let limited = order(&picked, 2, 3, 2);
    let host = limited.host().unwrap();
    assert_eq!((&host.starts[..], &host.uses[..5]), (&[0, 2, 3, 5][..], &[1, 2, 7, 0, 3][..]));
    assert_eq!(host.places, [3, 0, 1, 4, NOWHERE, NOWHERE, NOWHERE, 2]);
    assert_eq!(fault(sort(Array::Host(&picked), 3, 3, 1)).argument, "picked");
    assert_eq!(fault(sort(Array::Host(&picked), 2, 0, 1)).argument, "experts");
    let (x, mut xs) = ([0.0; 12], [0.0; 24]);
    assert_eq!(fault(gather(&all, Rows::new(&x, 4), RowsMut::new(&mut xs, 3))).argument, "x");
}

#[test]
fn gradients_are_difference_quotients() {
    let (m, k, experts, d, rows) = (4, 2, 3, 3, 2);
    let order = order(&picks(m, k, experts, 1), k, experts, 2);
    let order = order.host().unwrap();
    let mut random = Random::new(2);
    let [x, w, weights, dy] = [m * d, experts * rows * d, m * k, m * rows].map(|n| wide(&random.normal(n)));
    let n = m * k;
    let run = |x: &[f64], w: &[f64], weights: &[f64]| {
        let (mut xs, mut o, mut y) = (vec![0.0; n * d], vec![0.0; n * rows], vec![0.0; m * rows]);
        naive::gather(order, Rows::new(x, d), RowsMut::new(&mut xs, d));
        naive::forward(order, Rows::new(&xs, d), Rows::new(w, d), RowsMut::new(&mut o, rows));
        naive::combine(order, Rows::new(weights, k), Rows::new(&o, rows), RowsMut::new(&mut y, rows));
        (xs, o, y)
    };
    let loss = |x: &[f64], w: &[f64], weights: &[f64]| -> f64 {
        run(x, w, weights).2.iter().zip(&dy).map(|(y, d)| y * d).sum()
    };
    let (xs, o, _) = run(&x, &w, &weights);
    let (mut dweights, mut d_o) = (vec![f64::NAN; n], vec![f64::NAN; n * rows]);
    let (mut dxs, mut dx, mut dw) = (vec![0.0; n * d], vec![f64::NAN; m * d], vec![0.0; experts * rows * d]);
    let to = (RowsMut::new(&mut dweights, k), RowsMut::new(&mut d_o, rows));
    naive::combine_backward(order, (Rows::new(&weights, k), Rows::new(&o, rows)), Rows::new(&dy, rows), to);
    naive::backward_input(order, Rows::new(&d_o, rows), Rows::new(&w, d), RowsMut::new(&mut dxs, d));
    naive::backward_weight(order, Rows::new(&d_o, rows), Rows::new(&xs, d), RowsMut::new(&mut dw, d));
    naive::gather_backward(order, Rows::new(&dxs, d), RowsMut::new(&mut dx, d));
    assert!(central_difference(|x| loss(x, &w, &weights), &x, &dx) < 1e-7);
    assert!(central_difference(|w| loss(&x, w, &weights), &w, &dw) < 1e-7);
    assert!(central_difference(|weights| loss(&x, &w, weights), &weights, &dweights) < 1e-7);
}

#[test]
fn products_of_the_cpu() {
    for (m, k, experts, d, rows) in [(1, 1, 1, 1, 1), (37, 2, 5, 19, 33), (300, 1, 4, 64, 40), (9, 3, 70, 16, 8)] {
        let order = order(&picks(m, k, experts, 3), k, experts, m);
        let (host, n) = (order.host().unwrap(), m * k);
        let used = host.starts[experts] as usize;
        let mut random = Random::new(4);
        let [x, w, dy, before] = [n * d, experts * rows * d, n * rows, experts * rows * d].map(|n| random.normal(n));
        let mut want = vec![0.0; n * rows];
        naive::forward(host, Rows::new(&wide(&x), d), Rows::new(&wide(&w), d), RowsMut::new(&mut want, rows));
        for invariant in [false, true] {
            let mut y = Poisoned::new(n, rows, 2);
            forward(&order, Rows::new(&x, d), Rows::new(&w, d), y.rows_mut(), invariant).unwrap();
            assert!(err_ratio(&want[..used * rows], &y.values()[..used * rows]) < 1e-5);
        }
        let mut want = vec![0.0; n * d];
        naive::backward_input(host, Rows::new(&wide(&dy), rows), Rows::new(&wide(&w), d), RowsMut::new(&mut want, d));
        let mut dx = Poisoned::new(n, d, 1);
        backward_input(&order, Rows::new(&dy, rows), Rows::new(&w, d), dx.rows_mut()).unwrap();
        assert!(err_ratio(&want[..used * d], &dx.values()[..used * d]) < 1e-5);
        let mut want = wide(&before);
        naive::backward_weight(host, Rows::new(&wide(&dy), rows), Rows::new(&wide(&x), d), RowsMut::new(&mut want, d));
        let mut dw = Poisoned::with(&before, d, 1);
        backward_weight(&order, Rows::new(&dy, rows), Rows::new(&x, d), dw.rows_mut()).unwrap();
        assert!(err_ratio(&want, &dw.values()) < 1e-5);
    }
}

/// An invariant product of a position is the same whatever other positions there are.
#[test]
fn a_position_alone_has_the_same_bits() {
    let (m, experts, d, rows) = (50, 3, 40, 24);
    let (picked, mut random) = (picks(m, 1, experts, 7), Random::new(8));
    let (x, w) = (random.normal(m * d), random.normal(experts * rows * d));
    let run = |picked: &[u32], x: &[f32]| {
        let order = order(picked, 1, experts, usize::MAX);
        let n = picked.len();
        let (mut xs, mut o, mut y) = (vec![0.0; n * d], vec![0.0; n * rows], vec![0.0; n * rows]);
        gather(&order, Rows::new(x, d), RowsMut::new(&mut xs, d)).unwrap();
        forward(&order, Rows::new(&xs, d), Rows::new(&w, d), RowsMut::new(&mut o, rows), true).unwrap();
        let ones = vec![1.0; n];
        combine(&order, Rows::new(&ones, 1), Rows::new(&o, rows), RowsMut::new(&mut y, rows)).unwrap();
        y
    };
    let whole = run(&picked, &x);
    for i in 0..m {
        assert_eq!(bits(&run(&picked[i..=i], &x[i * d..][..d])), bits(&whole[i * rows..][..rows]));
    }
}
