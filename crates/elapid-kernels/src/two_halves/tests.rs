use super::*;
use crate::testing::{
    OnDevice, Poisoned, Random, argument_of, bits, central_difference, gpu, rounded, wide, with_threads,
};
use crate::{DType, Rows, RowsMut};

const BORDER: u64 = 3;

fn positions(m: usize) -> Vec<u64> {
    let mut random = Random::new(m as u64);
    (0..m).map(|_| random.below(7) as u64).collect()
}

#[test]
fn naive_gradients_are_difference_quotients() {
    let (m, heads, c, mut random) = (5, 2, 3, Random::new(1));
    let mut draw = |n: usize| wide(&random.normal(n));
    let (a, b, dy) = (draw(m * heads * c), draw(m * heads * c), draw(m * heads * 2 * c));
    let all = positions(m);
    for positions in [None, Some(&all[..])] {
        let loss = |a: &[f64], b: &[f64]| {
            let mut y = vec![f64::NAN; dy.len()];
            let (a, b) = (Rows::new(a, heads * c), Rows::new(b, heads * c));
            naive::forward(c, positions, BORDER, a, b, RowsMut::new(&mut y, heads * 2 * c));
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let (mut da, mut db) = (vec![f64::NAN; a.len()], vec![f64::NAN; b.len()]);
        let (da_rows, db_rows) = (RowsMut::new(&mut da, heads * c), RowsMut::new(&mut db, heads * c));
        naive::backward(c, positions, BORDER, Rows::new(&dy, heads * 2 * c), da_rows, db_rows);
        assert!(central_difference(|a| loss(a, &b), &a, &da) < 1e-7);
        assert!(central_difference(|b| loss(&a, b), &b, &db) < 1e-7);
    }
}

#[test]
fn threads_and_gaps_change_nothing() {
    let (m, heads, c) = (3000, 3, 8);
    let (a, b, all) = (Random::new(2).normal(m * heads * c), Random::new(3).normal(m * heads * c), positions(m));
    let mut want = vec![f32::NAN; m * heads * 2 * c];
    let (rows_a, rows_b) = (Rows::new(&a, heads * c), Rows::new(&b, heads * c));
    naive::forward(c, Some(&all), BORDER, rows_a, rows_b, RowsMut::new(&mut want, heads * 2 * c));
    let halves = Halves { c, positions: Some((&all).into()), border: BORDER };
    for threads in [1, 5] {
        let mut y = Poisoned::new(m, heads * 2 * c, 3);
        with_threads(threads, || forward(&halves, rows_a, rows_b, y.rows_mut())).unwrap();
        assert_eq!(bits(&want), bits(&y.values()));
    }
    let few = Halves { positions: Some((&all[1..]).into()), ..halves };
    assert_eq!(argument_of(forward(&few, rows_a, rows_b, RowsMut::new(&mut want, heads * 2 * c))), Some("positions"));
    let odd = Halves { c: 7, ..halves };
    assert_eq!(argument_of(forward(&odd, rows_a, rows_b, RowsMut::new(&mut want, heads * 2 * c))), Some("a"));
}

#[test]
fn a_gpu_moves_alike() {
    let Some(gpu) = gpu() else { return };
    for (m, heads, c) in [(0, 1, 4), (1, 1, 1), (37, 3, 5), (300, 4, 64)] {
        let all = positions(m);
        let on_gpu = gpu.upload(&all).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let mut random = Random::new((m + c) as u64);
            let [a, b] = [(); 2].map(|()| rounded(&random.normal(m * heads * c), dtype));
            let dy = rounded(&random.normal(m * heads * 2 * c), dtype);
            for with in [false, true] {
                let host = with.then_some(&all[..]);
                let (mut y, [mut da, mut db]) = (vec![0.0; dy.len()], [(); 2].map(|()| vec![0.0; a.len()]));
                let (rows_a, rows_b) = (Rows::new(&a, heads * c), Rows::new(&b, heads * c));
                naive::forward(c, host, BORDER, rows_a, rows_b, RowsMut::new(&mut y, heads * 2 * c));
                let (to_a, to_b) = (RowsMut::new(&mut da, heads * c), RowsMut::new(&mut db, heads * c));
                naive::backward(c, host, BORDER, Rows::new(&dy, heads * 2 * c), to_a, to_b);
                let halves = Halves { c, positions: with.then(|| (&on_gpu).into()), border: BORDER };
                let [ga, gb] = [&a, &b].map(|x| OnDevice::of(gpu, x, heads * c, 3, dtype));
                let gdy = OnDevice::of(gpu, &dy, heads * 2 * c, 1, dtype);
                let gy = OnDevice::poisoned(gpu, m, heads * 2 * c, 5, dtype);
                let [gda, gdb] = [(); 2].map(|()| OnDevice::poisoned(gpu, m, heads * c, 2, dtype));
                forward(&halves, ga.mat(), gb.mat(), gy.mat_mut()).unwrap();
                backward(&halves, gdy.mat(), gda.mat_mut(), gdb.mat_mut()).unwrap();
                for (name, want, got) in [("y", &y, gy), ("da", &da, gda), ("db", &db, gdb)] {
                    assert_eq!(bits(want), bits(&got.values()), "{name} {dtype} {m} {heads} {c} {with}");
                }
            }
        }
    }
}
