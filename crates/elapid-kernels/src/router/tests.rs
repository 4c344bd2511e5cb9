use super::*;
use crate::testing::{Random, central_difference, fault, wide};
use crate::{Rows, RowsMut};

/// Routers of all kinds, for six experts.
pub(super) fn all() -> Vec<Router> {
    let plain = Router::top(2);
    vec![
        plain,
        Router { top_k: 1, renormalise: true, ..plain },
        Router { sigmoid: true, scale: 2.5, renormalise: true, ..plain },
        Router { sigmoid: true, top_k: 3, groups: 3, top_groups: 2, ..plain },
        Router { groups: 2, top_groups: 1, top_k: 3, ..plain },
        Router { top_k: 1, sigmoid: true, correct_logits: true, ..plain },
    ]
}

#[test]
fn gradients_are_difference_quotients() {
    let (m, experts) = (5, 6);
    let mut random = Random::new(1);
    let logits = wide(&random.normal(m * experts));
    for router in all() {
        let k = router.top_k;
        let dweights = wide(&random.normal(m * k));
        let mut weights = vec![0.0; m * k];
        let picked = naive::forward(&router, Rows::new(&logits, experts), None, RowsMut::new(&mut weights, k));
        let loss = |z: &[f64]| -> f64 {
            let mut weights = vec![0.0; m * k];
            naive::forward(&router, Rows::new(z, experts), None, RowsMut::new(&mut weights, k));
            weights.iter().zip(&dweights).map(|(w, d)| w * d).sum()
        };
        let mut dlogits = vec![f64::NAN; m * experts];
        let d = RowsMut::new(&mut dlogits, experts);
        naive::backward(&router, Rows::new(&logits, experts), &picked, Rows::new(&dweights, k), d);
        assert!(central_difference(loss, &logits, &dlogits) < 1e-7, "{router:?}");
    }
    let dp = wide(&random.normal(experts));
    let loss = |z: &[f64]| -> f64 {
        let mut spread = vec![0.0; 2 * experts];
        naive::spread(Rows::new(z, experts), &[0; 5], RowsMut::new(&mut spread, experts));
        assert_eq!(spread[..2], [1.0, 0.0]);
        spread[experts..].iter().zip(&dp).map(|(p, d)| p * d).sum()
    };
    let mut dlogits = vec![f64::NAN; m * experts];
    naive::spread_backward(Rows::new(&logits, experts), &dp, RowsMut::new(&mut dlogits, experts));
    assert!(central_difference(loss, &logits, &dlogits) < 1e-7);
}

#[test]
fn picks() {
    let logits = [0.0_f32, 3.0, 3.0, -1.0, 2.0, 2.5];
    let pick = |router: Router, correction: Option<&[f32]>| {
        let mut weights = vec![0.0; router.top_k];
        let to = RowsMut::new(&mut weights, router.top_k);
        let picked = forward(&router, Rows::new(&logits, 6), correction.map(Into::into), to).unwrap();
        let Indices::Host(picked) = picked else { unreachable!("on the CPU") };
        (picked, weights)
    };
    let (picked, weights) = pick(Router { renormalise: true, ..Router::top(3) }, None);
    assert_eq!(picked, [1, 2, 5], "of equal ones the first");
    assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6 && weights[0] == weights[1] && weights[1] > weights[2]);
    // Groups (0 1) (2 3) (4 5): the best are in the first two; with a correction the sums of two count.
    let grouped = Router { groups: 3, top_groups: 2, sigmoid: true, ..Router::top(3) };
    assert_eq!(pick(grouped, None).0, [1, 2, 0]);
    assert_eq!(pick(grouped, Some(&[0.0; 6])).0, [1, 5, 4]);
    assert_eq!(pick(Router::top(1), Some(&[0.0, 0.0, 0.0, 5.0, 0.0, 0.0])).0, [3]);
    let wrong =
        |router| fault(forward(&router, Rows::new(&logits, 6), None, &mut [0.0_f32; 7][..router.top_k])).argument;
    assert_eq!(wrong(Router::top(7)), "top_k");
    assert_eq!(wrong(Router { groups: 4, ..Router::top(1) }), "groups");
    assert_eq!(wrong(Router { groups: 3, top_groups: 1, ..Router::top(3) }), "top_k");
}

#[test]
fn z_loss_is_its_equation_and_its_gradient_a_difference_quotient() {
    let (m, experts) = (5, 6);
    let logits = wide(&Random::new(3).normal(m * experts));
    let loss = |z: &[f64]| naive::z_loss(Rows::new(z, experts), &mut [0.0; 5]);
    let log = |row: &[f64]| row.iter().map(|z| z.exp()).sum::<f64>().ln();
    let want = logits.chunks(experts).map(|row| log(row).powi(2)).sum::<f64>() / m as f64;
    assert!((loss(&logits) - want).abs() < 1e-12);
    let (mut logs, mut dlogits) = (vec![0.0; m], vec![f64::NAN; m * experts]);
    naive::z_loss(Rows::new(&logits, experts), &mut logs);
    naive::z_loss_backward(Rows::new(&logits, experts), &logs, 1.0, RowsMut::new(&mut dlogits, experts));
    assert!(central_difference(loss, &logits, &dlogits) < 1e-7);
}

/// Logits that most positions would use for two experts of eight.
pub(super) fn uneven(m: usize) -> Vec<f32> {
    let mut logits = Random::new(4).normal(m * 8);
    logits.chunks_mut(8).for_each(|row| (row[2] += 2.0, row[5] += 1.5).0);
    logits
}

#[test]
fn sinkhorn_spreads_picks() {
    let m = 4000;
    let logits = uneven(m);
    let counts = |correction: &[f32]| {
        let (mut weights, router) = (vec![0.0; m], Router { correct_logits: true, ..Router::top(1) });
        let picked = naive::forward(&router, Rows::new(&logits, 8), Some(correction), RowsMut::new(&mut weights, 1));
        (0..8).map(|e| picked.iter().filter(|&&p| p == e).count()).collect::<Vec<_>>()
    };
    let mut correction = [0.0_f32; 8];
    assert!(counts(&correction)[2] > 2 * m / 8 && counts(&correction)[0] < m / 16);
    sinkhorn(Rows::new(&logits, 8), &mut correction).unwrap();
    let counts = counts(&correction);
    assert!(counts.iter().all(|&count| count > m / 12 && count < m / 6), "{counts:?}");
    // The sums that it is defined by, with d0 from them.
    let d1: Vec<f64> = correction.iter().map(|&x| (2.0 * f64::from(x)).exp()).collect();
    let mut sums = [0.0; 8];
    for row in wide(&logits).chunks(8) {
        let terms: Vec<f64> = row.iter().zip(&d1).map(|(z, d)| (2.0 * z).exp() * d).collect();
        let all: f64 = terms.iter().sum();
        sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term / all);
    }
    assert!(sums.iter().all(|sum| (sum / (m as f64 / 8.0) - 1.0).abs() < 0.01), "{sums:?}");
    // Logits that differ by more than exp holds, and no position.
    let mut far = [0.0_f32; 2];
    sinkhorn(Rows::new(&[0.0, 200.0, 0.0, 190.0], 2), &mut far).unwrap();
    assert!(far.iter().all(|x| x.is_finite()), "{far:?}");
    sinkhorn(Rows::new(&[], 2), &mut far).unwrap();
    assert!(far.iter().all(|x| x.is_finite()), "{far:?}");
}
