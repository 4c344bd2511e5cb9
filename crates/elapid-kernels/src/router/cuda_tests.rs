//! On a GPU, against the oracle.

use super::*;
use crate::testing::{OnDevice, Random, err_ratio, gpu, rounded, wide};
use crate::{Rows, RowsMut};

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (m, experts) in [(1, 6), (37, 6), (1000, 60), (333, 1020)] {
        for (i, router) in super::tests::all().into_iter().enumerate() {
            for dtype in [DType::F32, DType::Bf16] {
                let (k, mut random) = (router.top_k, Random::new(i as u64));
                let logits = rounded(&random.normal(m * experts), dtype);
                let (dweights, dspread) = (random.normal(m * k), random.normal(2 * experts));
                // With ties broken apart, as scores near each other differ in f32 and f64.
                let correction: Vec<f32> = (0..experts).map(|e| e as f32 * 1e-3).collect();
                let corrected = (i % 2 == 1).then_some(&correction);
                let on_logits = OnDevice::of(gpu, &logits, experts, i % 2, dtype);
                let weights = OnDevice::poisoned(gpu, m, k, 1, DType::F32);
                let on_correction = OnDevice::of(gpu, &correction, experts, 0, DType::F32);
                let flat = corrected.map(|_| on_correction.mat().into());
                let picked = forward(&router, on_logits.mat(), flat, weights.mat_mut()).unwrap();
                let Indices::Device(on_picked) = &picked else { unreachable!("on a GPU") };
                let got: Vec<u32> = gpu.download(on_picked, 0, m * k).unwrap();

                let (wide_logits, mut want) = (wide(&logits), vec![0.0; m * k]);
                let rows = Rows::new(&wide_logits, experts);
                let wide_correction = corrected.map(|c| wide(c));
                let picks = naive::forward(&router, rows, wide_correction.as_deref(), RowsMut::new(&mut want, k));
                let same = picks.iter().zip(&got).filter(|(a, b)| a == b).count();
                assert!(same as f64 >= 0.999 * picks.len() as f64, "{same} of {}", picks.len());
                if same < picks.len() {
                    continue;
                }
                assert!(err_ratio(&want, &weights.values()) < 1e-5, "{m} {experts} {router:?}");

                let on_dweights = OnDevice::of(gpu, &dweights, k, 2, DType::F32);
                let dlogits = OnDevice::poisoned(gpu, m, experts, 1, dtype);
                backward(&router, on_logits.mat(), picked.view(), on_dweights.mat(), dlogits.mat_mut()).unwrap();
                let mut want = vec![0.0; m * experts];
                let d = RowsMut::new(&mut want, experts);
                naive::backward(&router, rows, &picks, Rows::new(&wide(&dweights), k), d);
                let tolerance = if dtype == DType::Bf16 { 5e-3 } else { 1e-5 };
                // The weight of a single expert that is divided by itself has no gradient.
                match router.renormalise && k == 1 {
                    true => assert!(dlogits.values().iter().all(|d| d.abs() < 1e-6), "{m} {experts} {router:?}"),
                    false => assert!(err_ratio(&want, &dlogits.values()) < tolerance, "{m} {experts} {router:?}"),
                }

                let spreads = OnDevice::poisoned(gpu, 2, experts, 0, DType::F32);
                spread(on_logits.mat(), picked.view(), spreads.mat_mut()).unwrap();
                let mut want = vec![0.0; 2 * experts];
                naive::spread(rows, &picks, RowsMut::new(&mut want, experts));
                assert!(err_ratio(&want, &spreads.values()) < 1e-5, "{m} {experts} {router:?}");
                let on_dspread = OnDevice::of(gpu, &dspread, experts, 0, DType::F32);
                spread_backward(on_logits.mat(), on_dspread.mat(), dlogits.mat_mut()).unwrap();
                let mut want = vec![0.0; m * experts];
                let dp = wide(&dspread[experts..]);
                naive::spread_backward(rows, &dp, RowsMut::new(&mut want, experts));
                assert!(err_ratio(&want, &dlogits.values()) < tolerance, "{m} {experts} {router:?}");
            }
        }
    }
}

#[test]
fn z_losses() {
    let Some(gpu) = gpu() else { return };
    for (m, experts) in [(0, 4), (1, 1), (37, 6), (3000, 60), (333, 1020)] {
        for dtype in [DType::F32, DType::Bf16] {
            let logits = rounded(&Random::new(m as u64).normal(m * experts), dtype);
            let (wide_logits, mut want_logs) = (wide(&logits), vec![0.0; m]);
            let rows = Rows::new(&wide_logits, experts);
            let want_mean = naive::z_loss(rows, &mut want_logs);
            let mut want = vec![0.0; m * experts];
            naive::z_loss_backward(rows, &want_logs, 0.7, RowsMut::new(&mut want, experts));
            let run = || {
                let on_logits = OnDevice::of(gpu, &logits, experts, 3, dtype);
                let (logs, mean) =
                    (OnDevice::poisoned(gpu, m, 1, 0, DType::F32), OnDevice::poisoned(gpu, 1, 1, 0, DType::F32));
                let dlogits = OnDevice::poisoned(gpu, m, experts, 1, dtype);
                z_loss(on_logits.mat(), logs.mat_mut(), mean.mat_mut()).unwrap();
                let dmean = OnDevice::of(gpu, &[0.7], 1, 0, DType::F32);
                z_loss_backward(on_logits.mat(), logs.mat(), dmean.mat(), dlogits.mat_mut()).unwrap();
                [logs.values(), mean.values(), dlogits.values()]
            };
            let [logs, mean, dlogits] = run();
            let tolerance = if dtype == DType::Bf16 { 5e-3 } else { 1e-5 };
            assert!(err_ratio(&want_logs, &logs) < 1e-5 && err_ratio(&[want_mean], &mean) < 1e-5, "{m} {experts}");
            assert!(err_ratio(&want, &dlogits) < tolerance, "{m} {experts} {dtype}");
            assert!(run() == [logs, mean, dlogits], "twice is the same bits");
        }
    }
}

#[test]
fn sinkhorns() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        for (logits, experts) in [
            (super::tests::uneven(3000), 8),
            (Random::new(5).normal(37 * 6), 6),
            (Random::new(6).normal(500 * 1020), 1020),
            (vec![1.0], 1),
        ] {
            let logits = rounded(&logits, dtype);
            let on_logits = OnDevice::of(gpu, &logits, experts, 1, dtype);
            let correction = OnDevice::poisoned(gpu, 1, experts, 0, DType::F32);
            sinkhorn(on_logits.mat(), correction.mat_mut()).unwrap();
            let mut want = vec![0.0; experts];
            naive::sinkhorn(Rows::new(&wide(&logits), experts), &mut want);
            // Where it ends a turn earlier or later.
            let error = want.iter().zip(correction.values()).map(|(a, b)| (a - f64::from(b)).abs()).fold(0.0, f64::max);
            assert!(error < 2e-3, "{experts} {dtype}: {error}");
        }
    }
}
