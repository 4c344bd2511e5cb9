use super::*;
use crate::RowsMut;
use crate::testing::{Random, central_difference, err_ratio, fault, wide};

const FREQUENCIES: [f64; 3] = [1.0, 0.1, 0.01];

fn rotated(x: &[f64], pairs: Pairs, positions: &[u64], inverse: bool) -> Vec<f64> {
    let args = Args {
        dim: 8,
        frequencies: &FREQUENCIES,
        pairs,
        factor: 1.0,
        growth: &[],
        centre: 0.0,
        last: u64::MAX,
        positions,
    };
    let mut y = vec![0.0; x.len()];
    naive::forward(&args, inverse, Rows::new(x, 16), RowsMut::new(&mut y, 16));
    y
}

#[test]
fn products_depend_on_the_distance_alone() {
    let mut random = Random::new(1);
    let (q, k) = (wide(&random.normal(16)), wide(&random.normal(16)));
    for pairs in [Pairs::Halves, Pairs::Interleaved] {
        let product = |at: u64, from: u64| -> f64 {
            let (q, k) = (rotated(&q, pairs, &[at], false), rotated(&k, pairs, &[from], false));
            q.iter().zip(&k).map(|(q, k)| q * k).sum()
        };
        assert!((product(7, 4) - product(1003, 1000)).abs() < 1e-9);
        assert!((product(7, 4) - product(8, 4)).abs() > 1e-3);
        assert_eq!(rotated(&q, pairs, &[9], false)[6..8], q[6..8], "columns beyond the frequencies");
    }
}

#[test]
fn the_gradient_is_the_inverse() {
    let mut random = Random::new(2);
    let (x, dy) = (wide(&random.normal(32)), wide(&random.normal(32)));
    for pairs in [Pairs::Halves, Pairs::Interleaved] {
        let loss = |x: &[f64]| rotated(x, pairs, &[3, 70], false).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        assert!(central_difference(loss, &x, &rotated(&dy, pairs, &[3, 70], true)) < 1e-7);
    }
}

#[test]
fn f32_is_f64_far_out() {
    let mut random = Random::new(3);
    let x = random.normal(16 * 500);
    let positions: Vec<u64> = (0..500).map(|i| i * 4001).collect();
    let args: Args<'_, Rows<'_>> = Args {
        dim: 8,
        frequencies: &FREQUENCIES,
        pairs: Pairs::Halves,
        factor: 1.0,
        growth: &[],
        centre: 0.0,
        last: u64::MAX,
        positions: &positions,
    };
    let mut y = vec![f32::NAN; x.len()];
    forward(args, false, Rows::new(&x, 16), RowsMut::new(&mut y, 16)).unwrap();
    assert!(err_ratio(&rotated(&wide(&x), Pairs::Halves, &positions, false), &y) < 1e-6);
    let mut again = x.clone();
    in_place(args, false, RowsMut::new(&mut again, 16)).unwrap();
    assert_eq!(again, y);
    let wrong = Args { dim: 5, ..args };
    assert_eq!(fault(forward(wrong, false, Rows::new(&x, 16), RowsMut::new(&mut y, 16))).argument, "dim");
    let short = Args { positions: &positions[1..], ..args };
    assert_eq!(fault(in_place(short, false, RowsMut::new(&mut y, 16))).argument, "positions");
}

#[test]
fn growth_falls_with_the_distance_and_has_the_transposed_gradient() {
    const GROWTH: [f64; 3] = [-0.02, -0.01, 0.0];
    let mut random = Random::new(4);
    let (q, k, dy) = (wide(&random.normal(16)), wide(&random.normal(16)), wide(&random.normal(16)));
    let run = |x: &[f64], at: u64, growth: &[f64], inverse: bool| {
        let args = Args {
            dim: 8,
            frequencies: &FREQUENCIES,
            pairs: Pairs::Interleaved,
            factor: 1.0,
            growth,
            centre: 50.0,
            last: u64::MAX,
            positions: &[at][..],
        };
        let mut y = vec![0.0; x.len()];
        naive::forward(&args, inverse, Rows::new(x, 16), RowsMut::new(&mut y, 16));
        y
    };
    let product = |at: u64, from: u64| -> f64 {
        let (q, k) = (run(&q, at, &GROWTH, false), run(&k, from, &GROWTH.map(|growth| -growth), false));
        q.iter().zip(&k).map(|(q, k)| q * k).sum()
    };
    assert!((product(7, 4) - product(103, 100)).abs() < 1e-9);
    let (near, far) = (run(&q, 50, &GROWTH, false), run(&q, 150, &GROWTH, false));
    let size = |y: &[f64]| y[0].hypot(y[1]);
    assert!((size(&far) / size(&near) - (-2f64).exp()).abs() < 1e-9);
    let loss = |x: &[f64]| run(x, 70, &GROWTH, false).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
    assert!(central_difference(loss, &q, &run(&dy, 70, &GROWTH, true)) < 1e-7);
}
