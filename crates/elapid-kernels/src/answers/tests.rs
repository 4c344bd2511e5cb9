use super::*;
use crate::Rows;
use crate::testing::{Random, err_ratio, wide};

/// Rows of logits `[m v]` as a processor or a GPU may meet them, and a target each.
pub(super) fn rows(m: usize, v: usize, seed: u64) -> (Vec<f32>, Vec<i32>) {
    let mut random = Random::new(seed);
    let mut logits: Vec<f32> = random.normal(m * v).iter().map(|z| 3.0 * z).collect();
    for (r, z) in logits.chunks_mut(v).enumerate() {
        match r % 4 {
            // Equals, of which the first counts.
            1 => z.iter_mut().for_each(|z| *z = z.round()),
            // One that is nearly certain, one that cannot be.
            2 => (z[r % v], z[(r + 1) % v]) = (40.0, f32::NEG_INFINITY),
            _ => (),
        }
    }
    let targets = (0..m).map(|r| if r % 4 == 2 { r % v } else { random.below(v) } as i32).collect();
    (logits, targets)
}

/// Compares answers with the oracle's.
pub(super) fn compare(name: &str, (logits, targets): (&[f32], &[i32]), v: usize, got: &[Answer]) {
    let wide = wide(logits);
    let want = naive::forward(Rows::new(&wide, v), targets);
    assert_eq!(got.len(), want.len(), "{name}");
    for (r, (want, got)) in want.iter().zip(got).enumerate() {
        assert_eq!(got.likeliest, want.0, "{name}: row {r}");
        let close =
            |want: f64, got: f32| want == f64::from(got) || (want - f64::from(got)).abs() <= 1e-5 * (1.0 + want.abs());
        assert!(close(want.1, got.nll), "{name}: row {r}: {want:?} {got:?}");
        assert!(close(want.2, got.lead), "{name}: row {r}: {want:?} {got:?}");
    }
    // A small loss keeps its digits, too.
    let small = |r: &usize| r % 4 == 2;
    let want: Vec<f64> =
        (0..want.len()).filter(small).map(|r| naive_small(&wide[r * v..][..v], targets[r] as usize)).collect();
    let got: Vec<f32> = (0..got.len()).filter(small).map(|r| got[r].nll).collect();
    assert!(want.is_empty() || err_ratio(&want, &got) < 1e-4, "{name}: {want:?} {got:?}");
}

/// The loss of the largest logit, without 1 in a sum.
fn naive_small(z: &[f64], target: usize) -> f64 {
    let others: f64 = (0..z.len()).filter(|&j| j != target).map(|j| (z[j] - z[target]).exp()).sum();
    others.ln_1p()
}

#[test]
fn every_instruction_set_is_the_oracle() {
    for (i, (m, v)) in [(1, 1), (9, 2), (40, 7), (23, 33), (17, 256), (8, 8192), (5, 50_281)].into_iter().enumerate() {
        let (logits, targets) = rows(m, v, i as u64);
        for isa in Isa::available() {
            compare(
                &format!("{isa:?} {m} {v}"),
                (&logits, &targets),
                v,
                &cpu::forward(isa, Rows::new(&logits, v), &targets),
            );
        }
    }
}

#[test]
fn a_nan_is_never_the_answer_and_makes_the_loss_one() {
    for v in [5, 100] {
        let mut logits = vec![1.0; v];
        (logits[0], logits[3]) = (f32::NAN, 2.0);
        for isa in Isa::available() {
            let answer = cpu::forward(isa, Rows::new(&logits, v), &[3])[0];
            assert!(answer.likeliest == 3 && answer.nll.is_nan() && answer.lead.is_nan(), "{isa:?}: {answer:?}");
        }
    }
}

#[test]
fn targets_that_do_not_fit_are_named() {
    let logits = [0.0f32; 6];
    let fault = |targets: &[i32]| forward(Rows::new(&logits, 3), targets).unwrap_err().to_string();
    assert!(fault(&[0]).contains("targets"));
    assert!(fault(&[0, 3]).contains("3 at position 1"));
    assert!(fault(&[-1, 2]).contains("-1 at position 0"));
}
