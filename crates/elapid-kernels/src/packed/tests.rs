use proptest::prelude::*;

use super::*;
use crate::testing::{Poisoned, Random, bits, err_ratio, with_threads};

fn normal(random: &mut Random, rows: usize, cols: usize) -> Vec<f32> {
    random.normal(rows * cols)
}

fn matrix(data: &[f32], rows: usize, cols: usize) -> Rows<'_> {
    Rows::strided(data, rows, cols, cols).unwrap()
}

fn packed(form: Form, w: &[f32], n: usize, k: usize) -> Packed {
    Packed::new(form, matrix(w, n, k), Rounding::Least(None)).unwrap()
}

proptest! {
    #[test]
    fn fast_is_naive(m in 0usize..20, n in 0usize..90, k in 1usize..150, gap in 0usize..3, with_bias: bool, seed: u64) {
        let mut random = Random::new(seed);
        let (x, w, bias) = (normal(&mut random, m, k), normal(&mut random, n, k), random.normal(n));
        let bias = with_bias.then_some(&bias[..]);
        for form in Form::ALL {
            let w = packed(form, &w, n, k);
            let rounded = naive::rounded(form, matrix(&x, m, k));
            let mut want = vec![0.0; m * n];
            naive::forward(matrix(&rounded, m, k), &w, bias, RowsMut::strided(&mut want, m, n, n).unwrap());
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let mut y = Poisoned::new(m, n, gap);
                forward::forward(isa, matrix(&x, m, k), &w, bias, y.rows_mut());
                prop_assert!(err_ratio(&want, &y.values()) < 2e-6, "{form} by {}", isa.name());
                let got = bits(&y.values());
                if matches!(form, Form::Int8 | Form::Int4) {
                    prop_assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{} by {}", form, isa.name());
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch_and_on_any_threads() {
    let (m, n, k) = (131, 1000, 416);
    let mut random = Random::new(3);
    let (x, w) = (normal(&mut random, m, k), normal(&mut random, n, k));
    for form in Form::ALL {
        let w = packed(form, &w, n, k);
        for isa in Isa::available() {
            let product = |rows: usize| {
                let mut y = vec![f32::NAN; rows * n];
                forward::forward(isa, matrix(&x[..rows * k], rows, k), &w, None, RowsMut::new(&mut y, n));
                bits(&y)
            };
            let whole = with_threads(3, || product(m));
            for rows in [1, 2, 3, 5, 6, 7, 64, 96, 100] {
                for threads in [1, 2, 5] {
                    let part = with_threads(threads, || product(rows));
                    assert!(part == whole[..rows * n], "{rows} rows of {form} by {} on {threads}", isa.name());
                }
            }
        }
    }
}

#[test]
fn values_come_back_within_half_a_step() {
    let mut random = Random::new(4);
    let (n, k) = (21, 77);
    let w = normal(&mut random, n, k);
    for form in Form::ALL {
        let back = packed(form, &w, n, k).to_vec().unwrap();
        for (row, (want, got)) in w.chunks(k).zip(back.chunks(k)).enumerate() {
            for (want, got) in want.chunks(GROUP).zip(got.chunks(GROUP)) {
                let largest = want.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                let bound = match form {
                    Form::F32 => 0.0,
                    Form::Bf16 => largest / 256.0,
                    Form::Int8 => 0.51 * largest / 127.0,
                    // The searched scale may cut off the largest value.
                    Form::Int4 => largest / 3.0,
                };
                for (want, got) in want.iter().zip(got) {
                    assert!((want - got).abs() <= bound, "{form}, row {row}: {want} became {got}");
                }
            }
        }
    }
}

#[test]
fn a_searched_scale_has_less_error_than_the_largest_value_gives() {
    let mut random = Random::new(5);
    let (n, k) = (64, 256);
    let w = normal(&mut random, n, k);
    let weights: Vec<f32> = random.normal(k).iter().map(|x| x * x).collect();
    let error = |rounding, weigh: bool| -> f64 {
        let back = Packed::new(Form::Int4, matrix(&w, n, k), rounding).unwrap().to_vec().unwrap();
        let weight = |i: usize| if weigh { f64::from(weights[i % k]) } else { 1.0 };
        w.iter().zip(&back).enumerate().map(|(i, (a, b))| weight(i) * f64::from(a - b).powi(2)).sum()
    };
    let (largest, least) = (error(Rounding::Largest, false), error(Rounding::Least(None), false));
    assert!(least < 0.9 * largest, "{least} and {largest}");
    let weighed = error(Rounding::Least(Some(&weights)), true);
    assert!(weighed < 0.9 * error(Rounding::Least(None), true), "{weighed}");
}

#[test]
fn zeros_subnormals_and_large_values_keep_their_place() {
    let (n, k) = (3, 64);
    for form in Form::ALL {
        let mut w = vec![0.0; n * k];
        w[k + 5] = 1e-40;
        w[2 * k + 40] = -3e38;
        let back = packed(form, &w, n, k).to_vec().unwrap();
        assert!(back[..k].iter().all(|x| *x == 0.0));
        assert!(back.iter().all(|x| x.is_finite()), "{form}");
        assert!((back[2 * k + 40] / -3e38 - 1.0).abs() < 0.01, "{form}: {}", back[2 * k + 40]);
    }
}

#[test]
fn activations_that_are_not_finite_give_no_finite_sum() {
    let (n, k) = (40, 96);
    let mut random = Random::new(6);
    let w = normal(&mut random, n, k);
    for form in Form::ALL {
        let w = packed(form, &w, n, k);
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = normal(&mut random, 2, k);
                x[k + 33] = bad;
                let mut y = vec![0.0; 2 * n];
                forward::forward(isa, matrix(&x, 2, k), &w, None, RowsMut::new(&mut y, n));
                assert!(y[..n].iter().all(|y| y.is_finite()) && y[n..].iter().all(|y| !y.is_finite()), "{form} {bad}");
            }
        }
    }
}

#[test]
fn bytes_can_be_stored_and_read() {
    let (n, k) = (50, 70);
    let w = normal(&mut Random::new(7), n, k);
    for form in Form::ALL {
        let first = packed(form, &w, n, k);
        assert_eq!(Some(first.bytes().len()), Packed::size(form, (n, k)));
        let read = |bytes: &mut [u8]| {
            bytes.copy_from_slice(first.bytes());
            Ok::<_, crate::OutOfMemory>(())
        };
        let again = Packed::read_with(form, (n, k), read).unwrap();
        assert_eq!(bits(&again.to_vec().unwrap()), bits(&first.to_vec().unwrap()));
    }
    assert_eq!(Packed::size(Form::Int8, (usize::MAX, 7)), None);
    assert_eq!(Packed::size(Form::Int8, (7, usize::MAX)), None);
    // Of 768 columns: 8.5 and 4.5 bits a value.
    assert_eq!(Packed::size(Form::Int8, (16, 768)), Some(16 * 768 * 17 / 16));
    assert_eq!(Packed::size(Form::Int4, (16, 768)), Some(16 * 768 * 9 / 16));
}

#[test]
fn wrong_shapes_are_errors() {
    let w = packed(Form::Int8, &[0.0; 6], 2, 3);
    let (x, mut y) = ([0.0; 6], [0.0; 4]);
    assert!(forward(Rows::new(&x, 2), &w, None, RowsMut::new(&mut y, 2)).is_err());
    assert!(forward(Rows::new(&x, 3), &w, None, RowsMut::new(&mut y, 1)).is_err());
    assert!(forward(Rows::new(&x, 3), &w, Some(&[0.0]), RowsMut::new(&mut y, 2)).is_err());
    forward(Rows::new(&x, 3), &w, None, RowsMut::new(&mut y, 2)).unwrap();
}
