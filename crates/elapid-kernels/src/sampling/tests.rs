use proptest::prelude::*;

use super::*;
use crate::testing::{Random, wide};

proptest! {
    /// The share of an even grid of `uniform` that falls on each id is the naive probability.
    #[test]
    fn shares_are_naive(
        v in 1usize..60,
        (temperature, top_k, top_p, min_p) in (0.3f32..2.0, 0usize..12, 0.1f32..1.3, -0.3f32..0.6),
        (penalty, presence, frequency) in (0.8f32..1.5, -0.5f32..1.0, -0.2f32..0.5),
        ties: bool,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut logits = random.normal(v);
        if ties {
            logits.iter_mut().for_each(|z| *z = z.round());
        }
        let recent: Vec<u32> = (0..8).map(|_| random.below(v) as u32).collect();
        let past = Past { recent: &recent, counts: &cuda::counts(&recent[3..], v) };
        let params = Params {
            temperature,
            top_k,
            top_p: top_p.min(1.0),
            min_p: min_p.max(0.0),
            repetition_penalty: penalty,
            presence_penalty: presence,
            frequency_penalty: frequency,
        };
        let want = naive::distribution(&params, &wide(&logits), past);
        let (grid, mut scratch, mut counts) = (2000, Scratch::default(), vec![0.0; v]);
        for i in 0..grid {
            let uniform = (i as f64 + 0.5) / grid as f64;
            counts[sample(&params, &logits, past, uniform, &mut scratch).unwrap() as usize] += 1.0 / grid as f64;
        }
        for (id, count) in (0..).zip(counts) {
            let want = want.iter().find(|w| w.0 == id).map_or(0.0, |w| w.1);
            prop_assert!((count - want).abs() < 2.0 / grid as f64, "{id}: {count}, wanted {want}");
        }
    }
}

#[test]
fn a_long_nucleus_is_naive() {
    let mut random = Random::new(3);
    let logits: Vec<f32> = random.normal(20_000).iter().map(|z| (8.0 * z).round() / 16.0).collect();
    for top_p in [0.01, 0.5, 0.999] {
        for min_p in [0.0, 0.1] {
            let params = Params { top_p, min_p, ..Params::default() };
            let want = naive::distribution(&params, &wide(&logits), Past::default());
            let mut at = 0.0;
            for &(id, share) in want.iter() {
                let uniform: f64 = at + share / 2.0;
                assert_eq!(sample(&params, &logits, Past::default(), uniform, &mut Scratch::default()).unwrap(), id);
                at += share;
                if at > 0.02 {
                    break;
                }
            }
            let last = sample(&params, &logits, Past::default(), 1.0 - 1e-12, &mut Scratch::default()).unwrap();
            assert_eq!(last, want[want.len() - 1].0);
        }
    }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    assert_eq!(greedy(&[1.0, 3.0, 3.0]).unwrap(), 1);
    let cold = Params { temperature: 0.0, repetition_penalty: 2.0, ..Params::default() };
    assert_eq!(sample(&cold, &[1.0, 3.0, 2.0], Past::recent(&[1, 1]), 0.9, &mut Scratch::default()).unwrap(), 2);
    assert_eq!(sample(&cold, &[-1.0, -3.0, -2.0], Past::recent(&[0, 0]), 0.9, &mut Scratch::default()).unwrap(), 0);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut scratch = Scratch::default();
    assert_eq!(greedy(&[0.0, f32::NAN]).unwrap_err().got, "NaN for id 1");
    assert!(greedy(&[]).is_err());
    let mut argument = |params: Params, recent: &[u32], uniform| {
        sample(&params, &[0.0, 1.0], Past::recent(recent), uniform, &mut scratch).unwrap_err().argument
    };
    let default = Params::default();
    assert_eq!(argument(default, &[2], 0.0), "recent");
    assert_eq!(argument(default, &[], 1.0), "uniform");
    assert_eq!(argument(Params { temperature: f32::NAN, ..default }, &[], 0.0), "temperature");
    assert_eq!(argument(Params { top_p: 0.0, ..default }, &[], 0.0), "top_p");
    assert_eq!(argument(Params { min_p: 1.5, ..default }, &[], 0.0), "min_p");
    assert_eq!(argument(Params { repetition_penalty: 0.0, ..default }, &[], 0.0), "repetition_penalty");
    assert_eq!(argument(Params { presence_penalty: f32::NAN, ..default }, &[], 0.0), "presence_penalty");
    assert_eq!(argument(Params { frequency_penalty: f32::INFINITY, ..default }, &[], 0.0), "frequency_penalty");
    let past = Past { recent: &[], counts: &[1] };
    assert_eq!(sample(&default, &[0.0, 1.0], past, 0.0, &mut scratch).unwrap_err().argument, "counts");
}

#[test]
fn presence_counts_once_and_frequency_each_time() {
    // Token 0 was generated three times, token 1 once; token 2 is of the prompt and not counted.
    let past = Past { recent: &[2, 0, 0, 0, 1], counts: &[3, 1, 0] };
    let choose = |logits: &[f32], presence_penalty, frequency_penalty| {
        let params = Params { temperature: 0.0, presence_penalty, frequency_penalty, ..Params::default() };
        sample(&params, logits, past, 0.0, &mut Scratch::default()).unwrap()
    };
    assert_eq!(choose(&[2.0, 1.5, 1.25], 0.0, 0.0), 0);
    // 1, 0.5, 1.25
    assert_eq!(choose(&[2.0, 1.5, 1.25], 1.0, 0.0), 2);
    // 1.25, 1.25, 1.0
    assert_eq!(choose(&[2.0, 1.5, 1.0], 0.0, 0.25), 0);
    // 1.1, 1.2, 1.0
    assert_eq!(choose(&[2.0, 1.5, 1.0], 0.0, 0.3), 1);
    // Below 0 they are encouraged.
    assert_eq!(choose(&[-2.0, -1.0, 0.0], -1.0, -0.5), 0);
}

#[test]
fn extreme_logits_are_safe() {
    let mut scratch = Scratch::default();
    let sharp = Params { temperature: 1e-30, repetition_penalty: 1e-30, ..Params::default() };
    assert_eq!(sample(&sharp, &[f32::MAX, f32::MIN, 0.0], Past::recent(&[0, 1]), 0.5, &mut scratch).unwrap(), 0);
}

#[test]
fn philox_has_the_published_numbers() {
    use philox::philox4x32_10;
    // Random123's known answers.
    assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = u32::MAX;
    assert_eq!(philox4x32_10([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let got = philox4x32_10(pi, [0xa409_3822, 0x299f_31d0]);
    assert_eq!(got, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    let mean = (0..10_000).map(|position| philox::uniform(9, 2, position)).sum::<f64>() / 1e4;
    assert!((mean - 0.5).abs() < 0.01, "{mean}");
    assert_ne!(philox::uniform(9, 2, 1), philox::uniform(9, 3, 1));
    assert_ne!(philox::uniform(9, 2, 1), philox::uniform(9 + (1 << 32), 2, 1));
    assert_ne!(philox::uniform(9, 2, 1), philox::uniform(9, 2, 1 + (1 << 32)));
}

#[test]
fn a_number_depends_on_seed_sample_and_position_alone() {
    let numbers: Vec<f64> = (0..8).map(|position| philox::uniform(5, 1 << 40, position)).collect();
    // In any order, and with others in between.
    for position in (0..8).rev() {
        philox::uniform(6, 0, position);
        assert_eq!(philox::uniform(5, 1 << 40, position), numbers[position as usize]);
    }
    assert_ne!(philox::uniform(5, 1 << 40, 3), philox::uniform(5, 0, 3));
}

#[test]
fn a_line_has_a_token_where_its_position_says() {
    let line = cuda::line(RECENT as u64 + 2, &[7, 8, 9]);
    assert_eq!((line[RECENT - 1], line[0], line[1], line[2]), (7, 8, 9, u32::MAX));
    assert!(cuda::line(4, &[]).iter().all(|&id| id == u32::MAX));
    let long: Vec<u32> = (0..300).collect();
    let full = cuda::line(300, &long);
    assert_eq!((full[299 % RECENT], full[300 % RECENT]), (299, 44));
}
