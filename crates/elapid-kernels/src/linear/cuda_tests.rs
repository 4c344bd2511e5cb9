//! On a GPU, against the oracle.

use super::*;
use crate::testing::{OnDevice, Random, err_ratio, gpu, median, rounded, wide};
use crate::{Rows, RowsMut};

#[test]
// Long: each product of a case.
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (i, (m, n, k)) in [
        (1, 1, 1),
        (3, 5, 7),
        (64, 48, 80),
        (100, 33, 129),
        (257, 512, 64),
        (5, 1000, 2),
        (1, 64, 64),
        (1, 3000, 2048),
        (2, 700, 5632),
        (3, 77, 4104),
        (4, 513, 6000),
    ]
    .into_iter()
    .enumerate()
    {
        for dtype in [DType::F32, DType::Bf16] {
            let gap = [0, 1, 8][i % 3];
            let mut random = Random::new(i as u64);
            let [x, w, dy] = [m * k, n * k, m * n].map(|len| rounded(&random.normal(len), dtype));
            let bias = random.normal(n);
            let [wx, ww, wdy, wb] = [&x, &w, &dy, &bias].map(|x| wide(x));
            let (rx, rw, rdy) = (Rows::new(&wx, k), Rows::new(&ww, k), Rows::new(&wdy, n));
            let (mut y, mut dx, mut dw, mut db) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.5; n * k], vec![0.5; n]);
            naive::forward(rx, rw, Some(&wb), RowsMut::new(&mut y, n));
            naive::backward_input(rdy, rw, RowsMut::new(&mut dx, k));
            naive::backward_weight(rdy, rx, RowsMut::new(&mut dw, k));
            naive::backward_bias(rdy, &mut db);

            let (gx, gw, gdy) = (
                OnDevice::of(gpu, &x, k, gap, dtype),
                OnDevice::of(gpu, &w, k, 0, dtype),
                OnDevice::of(gpu, &dy, n, gap, dtype),
            );
            let gb = OnDevice::of(gpu, &bias, n, 0, DType::F32);
            let (gy, gdx) = (OnDevice::poisoned(gpu, m, n, gap, dtype), OnDevice::poisoned(gpu, m, k, gap, dtype));
            let start = rounded(&random.normal(m * k), dtype);
            let added: Vec<f64> = dx.iter().zip(&start).map(|(dx, &start)| dx + f64::from(start)).collect();
            let gadded = OnDevice::of(gpu, &start, k, gap, dtype);
            let gdw = OnDevice::of(gpu, &vec![0.5; n * k], k, 0, DType::F32);
            let gdb = OnDevice::of(gpu, &vec![0.5; n], n, 1, DType::F32);
            forward(gx.mat(), gw.mat(), Some(gb.mat().into()), gy.mat_mut()).unwrap();
            super::backward_input(gdy.mat(), gw.mat(), gdx.mat_mut(), false).unwrap();
            super::backward_input(gdy.mat(), gw.mat(), gadded.mat_mut(), true).unwrap();
            super::backward_weight(gdy.mat(), gx.mat(), gdw.mat_mut()).unwrap();
            super::backward_bias(gdy.mat(), gdb.mat_mut()).unwrap();
            let rounds = if dtype == DType::F32 { 1e-5 } else { 6e-3 };
            for (name, want, got, tolerance) in [
                ("y", y, gy, rounds),
                ("dx", dx, gdx, rounds),
                ("dx added", added, gadded, rounds),
                ("dw", dw, gdw, 1e-5),
                ("db", db, gdb, 1e-5),
            ] {
                let error = err_ratio(&want, &got.values());
                assert!(error <= tolerance, "{dtype} {name}: {error:e} for {m} {n} {k}, gap {gap}");
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    for (m, n, k) in
        [(16_384, 3072, 768), (16_384, 768, 1536), (16_384, 80, 1536), (16_384, 1536, 48), (8192, 8192, 8192)]
    {
        let mut random = Random::new(1);
        let [x, w, dy] = [(m, k), (n, k), (m, n)]
            .map(|(rows, cols)| OnDevice::of(gpu, &random.normal(rows * cols), cols, 0, DType::Bf16));
        let dw = OnDevice::of(gpu, &vec![0.0; n * k], k, 0, DType::F32);
        let y = OnDevice::poisoned(gpu, m, n, 0, DType::Bf16);
        let dx = OnDevice::poisoned(gpu, m, k, 0, DType::Bf16);
        let rate = |ms: f32| 2.0 * (m * n) as f32 * k as f32 / ms / 1e9;
        let time = |f: &dyn Fn() -> crate::cuda::Result<()>| {
            f().unwrap();
            median(gpu.time(20, f).unwrap())
        };
        let forward = time(&|| super::forward(x.mat(), w.mat(), None, y.mat_mut()));
        let input = time(&|| super::backward_input(dy.mat(), w.mat(), dx.mat_mut(), false));
        let added = time(&|| super::backward_input(dy.mat(), w.mat(), dx.mat_mut(), true));
        let weight = time(&|| super::backward_weight(dy.mat(), x.mat(), dw.mat_mut()));
        println!(
            "linear {m} x {n} x {k}: forward {forward:.4} ms ({:.0} TFLOP/s), input {input:.4} ({:.0}), added {added:.4} ({:.0}), weight {weight:.4} ({:.0})",
            rate(forward),
            rate(input),
            rate(added),
            rate(weight)
        );
    }
}

/// The products of a decoding step of a Llama of 1.1 billion parameters, each of weights of its own.
#[test]
#[ignore = "a measurement"]
fn bench_few_rows() {
    let Some(gpu) = gpu() else { return };
    let shapes = [(2560, 2048), (2048, 2048), (11264, 2048), (2048, 5632)];
    let layers = 22;
    let weights: Vec<_> = shapes.iter().map(|&(n, k)| gpu.upload(&vec![0x3c00_u16; layers * n * k]).unwrap()).collect();
    for rows in [1, 2, 4, 64] {
        let x = OnDevice::of(gpu, &Random::new(1).normal(rows * 5632), 5632, 0, DType::Bf16);
        let y = OnDevice::poisoned(gpu, rows, 11264, 0, DType::Bf16);
        for which in [&[0, 1, 2, 3][..], &[0], &[1], &[2], &[3]] {
            let all = || {
                for layer in 0..layers {
                    for &i in which {
                        let (n, k) = shapes[i];
                        let w = crate::cuda::Mat::new(&weights[i], 2 * layer * n * k, (n, k), k, DType::Bf16);
                        super::cuda::forward(x.mat().columns(0, k), w, None, y.mat_mut().columns(0, n))?;
                    }
                }
                Ok(())
            };
            all().unwrap();
            let (graph, ()) = gpu.capture::<_, crate::cuda::Error>(all).unwrap();
            let ms = median(gpu.time(20, || graph.launch()).unwrap());
            let bytes: usize = which.iter().map(|&i| 2 * layers * shapes[i].0 * shapes[i].1).sum();
            println!("{rows} rows, products {which:?}: {ms:.4} ms, {:.0} GB/s", bytes as f32 / ms / 1e6);
        }
    }
}
