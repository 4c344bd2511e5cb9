//! On a GPU, against the f64 oracle.

use super::*;
use crate::testing::{OnDevice, Random, bits, err_ratio, gpu, median, rounded, wide};
use crate::{Rows, RowsMut};

/// y, sum, rstd, dx, dresidual, dweight of random inputs, and their references.
fn run(m: usize, d: usize, with: [bool; 2], dtype: DType, gap: usize) -> ([Vec<f64>; 6], [Vec<f32>; 6]) {
    let Some(gpu) = gpu() else { return Default::default() };
    let mut random = Random::new((m * 10_000 + d) as u64);
    let [x, dy] = [(); 2].map(|()| rounded(&random.normal(m * d), dtype));
    let [r, dsum, weight] = [random.normal(m * d), random.normal(m * d), random.normal(d)];
    let [residual, arrives] = with;

    let [wx, wr, wdy, wdsum, ww] = [&x, &r, &dy, &dsum, &weight].map(|x| wide(x));
    let (mut y, mut sum, mut rstd) = (vec![0.0; m * d], vec![0.0; m * d], vec![0.0; m]);
    naive::forward(
        Rows::new(&wx, d),
        residual.then(|| Rows::new(&wr, d)),
        &ww,
        1e-5,
        RowsMut::new(&mut y, d),
        RowsMut::new(&mut sum, d),
        &mut rstd,
    );
    let (mut dx, mut dw) = (vec![0.0; m * d], vec![0.5; d]);
    let wdsum = arrives.then(|| Rows::new(&wdsum, d));
    naive::backward(Rows::new(&sum, d), &ww, &rstd, Rows::new(&wdy, d), wdsum, RowsMut::new(&mut dx, d), &mut dw);

    let [gx, gdy] = [&x, &dy].map(|x| OnDevice::of(gpu, x, d, gap, dtype));
    let [gr, gdsum] = [&r, &dsum].map(|x| OnDevice::of(gpu, x, d, gap, DType::F32));
    let gw = OnDevice::of(gpu, &weight, d, 0, DType::F32);
    let [gy, gdx] = [(); 2].map(|()| OnDevice::poisoned(gpu, m, d, gap, dtype));
    let [gsum, gdr] = [(); 2].map(|()| OnDevice::poisoned(gpu, m, d, gap, DType::F32));
    let grstd = OnDevice::poisoned(gpu, 1, m, 1, DType::F32);
    let gdw = OnDevice::of(gpu, &vec![0.5; d], d, 3, DType::F32);
    let r = residual.then(|| gr.mat().into());
    forward(gx.mat(), r, gw.mat(), 1e-5, gy.mat_mut(), gsum.mat_mut(), grstd.mat_mut()).unwrap();
    let dsum = arrives.then(|| gdsum.mat().into());
    let (dx_out, dr_out) = (gdx.mat_mut(), Some(gdr.mat_mut().into()));
    backward(gsum.mat(), gw.mat(), grstd.mat(), gdy.mat(), dsum, dx_out, dr_out, gdw.mat_mut()).unwrap();
    // The other form too, that of unaligned rows: the same bits.
    for gap in [gap, 1] {
        let again = OnDevice::poisoned(gpu, m, d, gap, dtype);
        scale(gsum.mat(), gw.mat(), grstd.mat(), again.mat_mut()).unwrap();
        assert!(bits(&gy.values()) == bits(&again.values()), "{dtype} scale: {m} x {d}, gap {gap}");
    }
    ([y, sum, rstd, dx.clone(), dx, dw], [gy, gsum, grstd, gdx, gdr, gdw].map(|x| x.values()))
}

#[test]
fn sizes() {
    if gpu().is_none() {
        return;
    }
    for (i, m) in [1, 2, 7, 33, 700].into_iter().enumerate() {
        for (j, d) in [1, 3, 8, 64, 100, 768, 1000, 2048, 5000, 8192, 9001].into_iter().enumerate() {
            for dtype in [DType::F32, DType::Bf16] {
                // A narrow row's gradient is a difference that cancels: there, what arrives from later layers must be in it.
                let with = [(i + j) % 2 == 0, d < 8 || (i + j) % 3 != 0];
                let gap = if j % 3 == 0 { 0 } else { 4 * (i % 2) };
                let (want, got) = run(m, d, with, dtype, gap);
                let tolerance = if dtype == DType::F32 { 1e-5 } else { 4e-3 };
                for ((name, want), got) in
                    ["y", "sum", "rstd", "dx", "dresidual", "dweight"].iter().zip(&want).zip(&got)
                {
                    let error = err_ratio(want, got);
                    assert!(error <= tolerance, "{dtype} {name}: {error:e} for {m} x {d}, gap {gap}");
                }
            }
        }
    }
}

#[test]
fn twice_is_the_same_bits() {
    let once = || run(5000, 768, [true; 2], DType::Bf16, 0).1.map(|x| bits(&x));
    assert!(once() == once());
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (m, d, dtype) = (16_384, 768, DType::Bf16);
    let mut random = Random::new(1);
    let [x, y, dx] = [(); 3].map(|()| OnDevice::of(gpu, &random.normal(m * d), d, 0, dtype));
    let [r, sum, dsum, dr] = [(); 4].map(|()| OnDevice::of(gpu, &random.normal(m * d), d, 0, DType::F32));
    let (w, rstd) =
        (OnDevice::of(gpu, &random.normal(d), d, 0, DType::F32), OnDevice::poisoned(gpu, 1, m, 0, DType::F32));
    let forward = || {
        let r = Some(r.mat().into());
        super::forward(x.mat(), r, w.mat(), 1e-5, y.mat_mut(), sum.mat_mut(), rstd.mat_mut())
    };
    let backward = || {
        let (dx, dr) = (dx.mat_mut(), Some(dr.mat_mut().into()));
        super::backward(sum.mat(), w.mat(), rstd.mat(), y.mat(), Some(dsum.mat().into()), dx, dr, w.mat_mut())
    };
    let scale = || super::scale(sum.mat(), w.mat(), rstd.mat(), y.mat_mut());
    forward().and_then(|()| backward()).and_then(|()| scale()).unwrap();
    let (f, g) = (median(gpu.time(20, forward).unwrap()), median(gpu.time(20, backward).unwrap()));
    let s = median(gpu.time(20, scale).unwrap());
    let gb = (m * d) as f32 / 1e6;
    println!(
        "add_norm: forward {f:.4} ms, {:.0} GB/s; backward {g:.4} ms, {:.0} GB/s; scale {s:.4} ms, {:.0} GB/s",
        12.0 * gb / f,
        16.0 * gb / g,
        6.0 * gb / s
    );
}
