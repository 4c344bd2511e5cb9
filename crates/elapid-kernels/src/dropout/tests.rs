use super::*;
use crate::testing::{Poisoned, Random, argument_of, bits, central_difference, wide, with_threads};
use crate::{Rows, RowsMut};

/// Rows, columns, rows of a sample.
pub(super) const SHAPES: [(usize, usize, usize); 8] =
    [(0, 3, 1), (1, 1, 1), (6, 5, 3), (7, 8, 2), (12, 33, 4), (40, 64, 8), (3, 1000, 3), (700, 24, 100)];

pub(super) fn mask(l: usize, unit: Unit) -> Mask {
    Mask { key: key(17, 5), rate: 0.3, l, unit }
}

/// A number whose sums need all of its bits.
pub(super) const FIRST: u64 = u64::MAX / 3;

fn run(isa: Isa, mask: &Mask, first: u64, x: &[f32], d: usize) -> Vec<f32> {
    let mut y = Poisoned::new(x.len() / d, d, 2);
    cpu::forward(isa, mask, first, Rows::new(x, d), y.rows_mut());
    y.values()
}

#[test]
fn words_are_those_of_the_generator() {
    // The first known answer of Random123: counter and key 0.
    assert_eq!([0, 1, 2, 3].map(|at| naive::word(0, 0, at)), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
}

#[test]
fn every_isa_is_naive_bit_for_bit() {
    for (m, d, l) in SHAPES {
        let x = Random::new(m as u64).normal(m * d);
        for unit in [Unit::Element, Unit::Sample] {
            let mask = mask(l, unit);
            let mut want = vec![f32::NAN; m * d];
            naive::forward(&mask, FIRST, Rows::new(&x, d), RowsMut::new(&mut want, d));
            for isa in Isa::available() {
                assert_eq!(bits(&want), bits(&run(isa, &mask, FIRST, &x, d)), "{} {unit:?} {m} {d} {l}", isa.name());
            }
        }
    }
}

#[test]
fn naive_gradient_is_a_difference_quotient() {
    let mut random = Random::new(1);
    let (x, dy) = (wide(&random.normal(6 * 5)), wide(&random.normal(6 * 5)));
    for unit in [Unit::Element, Unit::Sample] {
        let mask = mask(2, unit);
        let run = |x: &[f64]| {
            let mut y = vec![f64::NAN; x.len()];
            naive::forward(&mask, 3, Rows::new(x, 5), RowsMut::new(&mut y, 5));
            y
        };
        let loss = |x: &[f64]| run(x).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        assert!(central_difference(loss, &x, &run(&dy)) < 1e-7, "{unit:?}");
    }
}

/// A sample's draws do not depend on the batch that it is in, nor on threads.
#[test]
fn a_sample_is_the_sample_alone() {
    let (d, l) = (24, 50);
    let x = Random::new(2).normal(20 * l * d);
    for unit in [Unit::Element, Unit::Sample] {
        let mask = mask(l, unit);
        let whole = with_threads(1, || run(Isa::best(), &mask, FIRST, &x, d));
        assert_eq!(bits(&whole), bits(&with_threads(5, || run(Isa::best(), &mask, FIRST, &x, d))));
        for sample in [0, 7, 19] {
            let part = |x: &[f32]| x[sample * l * d..][..l * d].to_vec();
            let alone = run(Isa::best(), &mask, FIRST + sample as u64, &part(&x), d);
            assert_eq!(bits(&part(&whole)), bits(&alone), "{unit:?} {sample}");
        }
    }
}

#[test]
fn the_share_that_is_kept() {
    let (m, d) = (2000, 100);
    let x = vec![1.0; m * d];
    for rate in [0.0, 0.1, 0.5, 0.9] {
        for unit in [Unit::Element, Unit::Sample] {
            let y = run(Isa::best(), &Mask { rate, ..mask(1, unit) }, 0, &x, d);
            let kept = y.iter().filter(|&&y| y != 0.0).count() as f64 / y.len() as f64;
            let draws = if unit == Unit::Element { m * d } else { m };
            let p = 1.0 - f64::from(rate);
            let deviation = (p * (1.0 - p) / draws as f64).sqrt();
            assert!((kept - p).abs() <= 4.0 * deviation, "{unit:?} {rate}: {kept}");
            let factor = 1.0 / (1.0 - rate);
            assert!(y.iter().all(|&y| y == 0.0 || y == factor));
        }
    }
}

/// Keys, samples and neighbouring places draw apart: they agree no more often than chance.
#[test]
fn places_draw_apart() {
    let (d, rate) = (4000, 0.5);
    let x = vec![1.0; 2 * d];
    let of = |key: u64, first: u64| {
        let mask = Mask { key, rate, l: 2, unit: Unit::Element };
        run(Isa::best(), &mask, first, &x, d)
    };
    let all = [of(key(1, 0), 0), of(key(1, 1), 0), of(key(2, 0), 0), of(key(1, 0), 1), of(key(1, 0), 1 << 32)];
    let mut sets: Vec<&[f32]> = all.iter().map(|y| &y[..d]).collect();
    sets.push(&all[0][d..]);
    for (i, a) in sets.iter().enumerate() {
        for b in &sets[i + 1..] {
            let same = a.iter().zip(*b).filter(|(a, b)| a == b).count() as f64 / d as f64;
            assert!((same - 0.5).abs() < 4.0 * 0.5 / (d as f64).sqrt(), "{i}: {same}");
        }
    }
}

#[test]
fn impossible_arguments_are_errors() {
    let (x, mut y, first) = ([0.0; 6], [0.0; 6], [0u64]);
    let mut of = |mask: Mask, x: &[f32], first: &[u64]| {
        argument_of(forward(&mask, first.into(), Rows::new(x, 3), RowsMut::new(&mut y, 3)))
    };
    let good = mask(2, Unit::Element);
    assert_eq!(of(good, &x, &first), None);
    assert_eq!(of(Mask { rate: 1.0, ..good }, &x, &first), Some("rate"));
    assert_eq!(of(Mask { rate: f32::NAN, ..good }, &x, &first), Some("rate"));
    assert_eq!(of(Mask { l: 0, ..good }, &x, &first), Some("l"));
    assert_eq!(of(good, &x[..3], &first), Some("y"));
    assert_eq!(of(good, &x, &[]), Some("first"));
}
