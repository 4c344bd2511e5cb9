use super::*;
use crate::testing::{Random, bits, central_difference, err_ratio, wide};

const ATTENTION: Attention = Attention { heads: 4, kv_heads: 2, scale: 0.6, window: 0 };
const DK: usize = 3;
const DV: usize = 2;

fn in_f64(attention: &Attention, q: &[f64], k: &[f64], v: &[f64], stretches: &[Stretch]) -> Vec<f64> {
    let (q, k, v) = (Rows::new(q, 4 * DK), Rows::new(k, 2 * DK), Rows::new(v, 2 * DV));
    let mut y = vec![f64::NAN; q.rows() * 4 * DV];
    naive::forward(attention, &Args { q, k, v, stretches }, RowsMut::new(&mut y, 4 * DV));
    y
}

/// Two documents: one that continues from 3 keys of earlier calls, and a new one; the last query is padding.
fn stretches() -> Vec<Stretch> {
    vec![Stretch { queries: 0..4, keys: 0..7, offset: 3 }, Stretch { queries: 4..6, keys: 7..9, offset: 0 }]
}

#[test]
fn naive_gradients_are_difference_quotients() {
    let mut random = Random::new(1);
    let mut draw = |n: usize| wide(&random.normal(n));
    let (q, k, v, dy) = (draw(7 * 4 * DK), draw(9 * 2 * DK), draw(9 * 2 * DV), draw(7 * 4 * DV));
    let stretches = stretches();
    for window in [0, 3] {
        let attention = Attention { window, ..ATTENTION };
        let loss = |q: &[f64], k: &[f64], v: &[f64]| {
            in_f64(&attention, q, k, v, &stretches).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let (mut dq, mut dk, mut dv) = (vec![f64::NAN; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let args = Args {
            q: Rows::new(&q, 4 * DK),
            k: Rows::new(&k, 2 * DK),
            v: Rows::new(&v, 2 * DV),
            stretches: &stretches,
        };
        let grads = Grads {
            dq: RowsMut::new(&mut dq, 4 * DK),
            dk: RowsMut::new(&mut dk, 2 * DK),
            dv: RowsMut::new(&mut dv, 2 * DV),
        };
        naive::backward(&attention, &args, Rows::new(&dy, 4 * DV), grads);
        assert!(central_difference(|q| loss(q, &k, &v), &q, &dq) < 1e-7);
        assert!(central_difference(|k| loss(&q, k, &v), &k, &dk) < 1e-7);
        assert!(central_difference(|v| loss(&q, &k, v), &v, &dv) < 1e-7);
    }
}

#[test]
fn splits_give_the_same_bits_and_padding_is_zero() {
    let mut random = Random::new(2);
    let (q, k, v) = (random.normal(9 * 4 * DK), random.normal(9 * 2 * DK), random.normal(9 * 2 * DV));
    let run = |stretches: &[Stretch]| {
        let args = Args { q: Rows::new(&q, 4 * DK), k: Rows::new(&k, 2 * DK), v: Rows::new(&v, 2 * DV), stretches };
        let mut y = vec![f32::NAN; 9 * 4 * DV];
        forward(&ATTENTION, &args, RowsMut::new(&mut y, 4 * DV)).unwrap();
        y
    };
    let whole = run(&[Stretch { queries: 0..8, keys: 0..8, offset: 0 }]);
    let parts: Vec<Stretch> = (0..8).map(|i| Stretch { queries: i..i + 1, keys: 0..i + 1, offset: i }).collect();
    assert_eq!(bits(&whole), bits(&run(&parts)));
    assert!(whole[8 * 4 * DV..].iter().all(|y| *y == 0.0));
    let want = in_f64(&ATTENTION, &wide(&q), &wide(&k), &wide(&v), &parts);
    assert!(err_ratio(&want, &whole) < 1e-6);
}

#[test]
fn a_window_sees_its_last_keys() {
    let q = vec![0.0; 4 * DK];
    let (k, v) = (vec![0.0; 5 * 2 * DK], (0..5 * 2 * DV).map(|i| (i / (2 * DV)) as f64).collect::<Vec<_>>());
    let y =
        in_f64(&Attention { window: 2, ..ATTENTION }, &q, &k, &v, &[Stretch { queries: 0..1, keys: 0..5, offset: 4 }]);
    assert!(y.iter().all(|y| (y - 3.5).abs() < 1e-12), "the mean of keys 3 and 4: {y:?}");
}

#[test]
fn wrong_shapes_are_errors() {
    let x = [0.0; 48];
    let args = Args { q: Rows::new(&x, 12), k: Rows::new(&x, 6), v: Rows::new(&x, 4), stretches: &[] };
    let mut y = [0.0; 32];
    assert_eq!(forward(&ATTENTION, &args, RowsMut::new(&mut y, 8)).unwrap_err().argument, "k");
    let args = Args { k: Rows::new(&x[..24], 6), v: Rows::new(&x[..16], 4), ..args };
    let outside = [Stretch { queries: 0..2, keys: 0..2, offset: 1 }];
    assert!(forward(&ATTENTION, &args, RowsMut::new(&mut y, 8)).is_ok());
    let args = Args { stretches: &outside, ..args };
    assert_eq!(forward(&ATTENTION, &args, RowsMut::new(&mut y, 8)).unwrap_err().argument, "stretches");
    let odd = Attention { kv_heads: 3, ..ATTENTION };
    assert_eq!(forward(&odd, &args, RowsMut::new(&mut y, 8)).unwrap_err().argument, "kv_heads");
}
