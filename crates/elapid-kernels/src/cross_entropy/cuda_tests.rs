//! On a GPU, against the f64 oracle.

use super::*;
use crate::testing::{OnDevice, Random, err_ratio, gpu, median, rounded, wide};
use crate::{DType, Rows, RowsMut};

fn compare(m: usize, v: usize, d: usize, size: f32, (smoothing, softcap): (f32, f32), dtype: DType, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(seed);
    let h: Vec<f32> = rounded(&random.normal(m * d), dtype);
    let w: Vec<f32> = rounded(&random.normal(v * d).iter().map(|x| x * size).collect::<Vec<_>>(), dtype);
    let targets: Vec<i32> = (0..m).map(|i| if i % 4 == 3 { -1 } else { random.below(v) as i32 }).collect();
    let count = targets.iter().filter(|&&t| t >= 0).count().max(1);
    let (wh, ww) = (wide(&h), wide(&w));
    let (mut nll, mut dh, mut dw) = (vec![0.0; m], vec![0.0; m * d], vec![0.0; v * d]);
    let args = Args { h: Rows::new(&wh, d), w: Rows::new(&ww, d), targets: &targets[..], smoothing, softcap };
    let (dh_rows, dw_rows) = (RowsMut::new(&mut dh, d), RowsMut::new(&mut dw, d));
    naive::forward(&args, &mut nll, Some(Grads { dh: dh_rows, dw: dw_rows, scale: 2.0 }));
    let mean = nll.iter().sum::<f64>() / count as f64;

    let (gh, gw) = (OnDevice::of(gpu, &h, d, 8, dtype), OnDevice::of(gpu, &w, d, 0, dtype));
    let (gnll, gmean) = (OnDevice::poisoned(gpu, 1, m, 1, DType::F32), OnDevice::poisoned(gpu, 1, 1, 1, DType::F32));
    let (gdh, gdw) = (OnDevice::poisoned(gpu, m, d, 8, dtype), OnDevice::poisoned(gpu, v, d, 0, DType::F32));
    let ids = gpu.upload(&targets).unwrap();
    let grads = Grads { dh: gdh.mat_mut(), dw: gdw.mat_mut(), scale: 2.0 };
    let args = Args { h: gh.mat(), w: gw.mat(), targets: &ids, smoothing, softcap };
    forward(args, gnll.mat_mut(), gmean.mat_mut(), Some(grads.into())).unwrap();
    let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
    for (name, want, got) in [("nll", nll, gnll), ("mean", vec![mean], gmean), ("dh", dh, gdh), ("dw", dw, gdw)] {
        let error = err_ratio(&want, &got.values());
        assert!(error <= tolerance, "{dtype} {name}: {error:e} for {m} {v} {d} {size} {smoothing} {softcap}");
    }
}

#[test]
fn sizes() {
    for (i, (m, v, d)) in
        [(1, 1, 1), (5, 7, 3), (40, 256, 64), (33, 1001, 20), (130, 50_280, 16)].into_iter().enumerate()
    {
        for with in [(0.0, 0.0), (0.1, 0.0), (0.0, 2.0), (0.1, 30.0)] {
            compare(m, v, d, 1.0, with, DType::F32, i as u64);
            compare(m, v, d, 0.3, with, DType::Bf16, i as u64);
        }
    }
    compare(20, 60_000, 8, 0.5, (0.0, 0.0), DType::F32, 8);
    compare(20, 60_000, 8, 0.5, (0.0, 3.0), DType::F32, 8);
}

#[test]
fn losses_near_zero_keep_their_digits() {
    let Some(gpu) = gpu() else { return };
    // The target's logit is 12 above all others: a loss of about v e^-12.
    let (v, d) = (64, 8);
    let mut w = vec![0.0f32; v * d];
    w[0] = 1.0;
    let h: Vec<f32> = (0..d).map(|i| if i == 0 { 12.0 } else { 0.0 }).collect();
    let (gh, gw) = (OnDevice::of(gpu, &h, d, 0, DType::F32), OnDevice::of(gpu, &w, d, 0, DType::F32));
    let (nll, mean) = (OnDevice::poisoned(gpu, 1, 1, 0, DType::F32), OnDevice::poisoned(gpu, 1, 1, 0, DType::F32));
    let targets = gpu.upload(&[0i32]).unwrap();
    let args = Args { h: gh.mat(), w: gw.mat(), targets: &targets, smoothing: 0.0, softcap: 0.0 };
    forward(args, nll.mat_mut(), mean.mat_mut(), None).unwrap();
    let want = (63.0 * (-12.0f64).exp()).ln_1p();
    assert!(err_ratio(&[want], &nll.values()) < 1e-5);
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (m, v, d, mut random) = (16_384, 50_280, 768, Random::new(1));
    let (h, w) = (
        OnDevice::of(gpu, &random.normal(m * d), d, 0, DType::Bf16),
        OnDevice::of(gpu, &random.normal(v * d), d, 0, DType::Bf16),
    );
    let targets = gpu.upload(&(0..m).map(|_| random.below(v) as i32).collect::<Vec<_>>()).unwrap();
    let (nll, mean) = (OnDevice::poisoned(gpu, 1, m, 0, DType::F32), OnDevice::poisoned(gpu, 1, 1, 0, DType::F32));
    let (dh, dw) = (OnDevice::poisoned(gpu, m, d, 0, DType::Bf16), OnDevice::poisoned(gpu, v, d, 0, DType::F32));
    let run = || {
        let grads = Grads { dh: dh.mat_mut(), dw: dw.mat_mut(), scale: 1.0 };
        let args = Args { h: h.mat(), w: w.mat(), targets: &targets, smoothing: 0.0, softcap: 0.0 };
        forward(args, nll.mat_mut(), mean.mat_mut(), Some(grads.into()))
    };
    run().unwrap();
    println!("cross_entropy with gradients: {:.3} ms", median(gpu.time(10, run).unwrap()));
}
