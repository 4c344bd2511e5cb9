//! On a GPU, against the f64 oracle.

use super::tests::{Case, EPS, backward_of, forward_of};
use super::*;
use crate::cuda::Gpu;
use crate::testing::{OnDevice, bits, err_ratio, gpu, median, rounded, wide};

/// Initial values of the accumulated outputs.
const BASE: f32 = 0.5;

/// y, the sum (x without a residual), the statistics; dx, dr, dweight, dbias.
fn on_device(gpu: Gpu, case: &Case, dtype: DType, gap: usize) -> [Vec<f32>; 7] {
    let (m, d, [residual, weighted, biased, arrives]) = (case.m, case.d, case.with);
    let [x, dy] = [&case.x, &case.dy].map(|x| OnDevice::of(gpu, x, d, gap, dtype));
    let [r, dsum] = [&case.r, &case.dsum].map(|x| OnDevice::of(gpu, x, d, gap, DType::F32));
    let [weight, bias] = [&case.weight, &case.bias].map(|x| OnDevice::of(gpu, x, d, 0, DType::F32));
    let [y, dx] = [(); 2].map(|()| OnDevice::poisoned(gpu, m, d, gap, dtype));
    let [sum, dr] = [(); 2].map(|()| OnDevice::poisoned(gpu, m, d, gap, DType::F32));
    let statistics = OnDevice::poisoned(gpu, 1, 2 * m, 1, DType::F32);
    let [dweight, dbias] = [(); 2].map(|()| OnDevice::of(gpu, &vec![BASE; d], d, 3, DType::F32));
    let (keep, scale) = case.factors;
    let weight = weighted.then(|| weight.mat().into());
    let args = Args {
        x: x.mat().into(),
        residual: residual.then(|| Residual { r: r.mat().into(), keep, scale }),
        weight,
        bias: biased.then(|| bias.mat().into()),
        eps: EPS,
    };
    forward(args, y.mat_mut(), residual.then(|| sum.mat_mut().into()), statistics.mat_mut()).unwrap();
    let s = if residual { &sum } else { &x };
    let saved = Saved { s: s.mat().into(), weight, statistics: statistics.mat().into(), factors: case.factors };
    let grads = Grads {
        dx: dx.mat_mut().into(),
        dresidual: Some(dr.mat_mut().into()),
        dweight: Some(dweight.mat_mut().into()),
        dbias: Some(dbias.mat_mut().into()),
    };
    backward(saved, dy.mat(), arrives.then(|| dsum.mat().into()), grads).unwrap();
    [&y, s, &statistics, &dx, &dr, &dweight, &dbias].map(OnDevice::values)
}

fn agrees(gpu: Gpu, case: &Case, dtype: DType, gap: usize) {
    let case = Case { x: rounded(&case.x, dtype), dy: rounded(&case.dy, dtype), ..case.clone() };
    let [x, r, weight, bias] = [&case.x, &case.r, &case.weight, &case.bias].map(|x| wide(x));
    let [y, sum, statistics] = forward_of(&case, [&x, &r, &weight, &bias]);
    let [dx, dr, dweight, dbias] = backward_of(&case, BASE.into());
    let tolerance = if dtype == DType::F32 { 1e-5 } else { 4e-3 };
    let names = ["y", "sum", "statistics", "dx", "dr", "dweight", "dbias"];
    let want = [y, sum, statistics, dx, dr, dweight, dbias];
    for ((name, want), got) in names.iter().zip(&want).zip(&on_device(gpu, &case, dtype, gap)) {
        let error = err_ratio(want, got);
        let (m, d) = (case.m, case.d);
        assert!(error <= tolerance, "{dtype} {name}: {error:e} for {m} x {d}, {:?}, gap {gap}", case.with);
    }
}

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (i, m) in [1, 2, 7, 33, 700].into_iter().enumerate() {
        for (j, d) in [8, 64, 100, 257, 512, 768, 1000, 2048, 2560, 5000, 8192, 9001].into_iter().enumerate() {
            for dtype in [DType::F32, DType::Bf16] {
                let seed = (i * 100 + j) as u64;
                let mut with = std::array::from_fn(|bit| seed.wrapping_mul(0x9e37_79b9) >> (bit + 5) & 1 == 0);
                // The gradient of a narrow row is a difference that cancels: there, what arrives must be in it.
                with[3] |= d < 64;
                agrees(gpu, &Case::new(m, d, with, seed), dtype, if j % 3 == 0 { 0 } else { 4 * (i % 2) });
            }
        }
    }
}

/// Rows of one or two values have gradients near 0; their outputs are finite.
#[test]
fn narrow_rows() {
    let Some(gpu) = gpu() else { return };
    for d in [1, 2, 3] {
        let case = Case::new(5, d, [true; 4], d as u64);
        let [x, r, weight, bias] = [&case.x, &case.r, &case.weight, &case.bias].map(|x| wide(x));
        let [want, _, _] = forward_of(&case, [&x, &r, &weight, &bias]);
        let got = on_device(gpu, &case, DType::F32, 0);
        assert!(err_ratio(&want, &got[0]) < 1e-3, "{d}");
        assert!(got.iter().flatten().all(|x| x.is_finite()), "{d}");
    }
}

/// The variance is that of differences: a large mean does not drown it.
#[test]
fn a_large_mean_costs_no_digits() {
    let Some(gpu) = gpu() else { return };
    for d in [768, 1001] {
        let mut case = Case::new(9, d, [false, true, true, false], 5);
        case.x.iter_mut().for_each(|x| *x += 300.0);
        let [x, r, weight, bias] = [&case.x, &case.r, &case.weight, &case.bias].map(|x| wide(x));
        let [want, _, _] = forward_of(&case, [&x, &r, &weight, &bias]);
        let error = err_ratio(&want, &on_device(gpu, &case, DType::F32, 0)[0]);
        assert!(error < 1e-4, "{error:e} at {d}");
    }
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(5000, 768, [true; 4], 3);
    let once = || on_device(gpu, &case, DType::Bf16, 0).map(|x| bits(&x));
    assert!(once() == once());
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    for (m, d) in [(16_384, 768), (8192, 2048), (4096, 4096)] {
        let (case, dtype) = (Case::new(m, d, [true; 4], 1), DType::Bf16);
        let [x, y, dx] = [(); 3].map(|()| OnDevice::of(gpu, &case.x, d, 0, dtype));
        let [r, sum, dr] = [(); 3].map(|()| OnDevice::of(gpu, &case.r, d, 0, DType::F32));
        let [weight, bias] = [&case.weight, &case.bias].map(|x| OnDevice::of(gpu, x, d, 0, DType::F32));
        let statistics = OnDevice::poisoned(gpu, 1, 2 * m, 0, DType::F32);
        let run = || {
            let residual = Some(Residual { r: r.mat().into(), keep: 1.0, scale: 1.0 });
            let (w, b) = (Some(weight.mat().into()), Some(bias.mat().into()));
            let args = Args { x: x.mat().into(), residual, weight: w, bias: b, eps: EPS };
            forward(args, y.mat_mut(), Some(sum.mat_mut().into()), statistics.mat_mut())
        };
        let back = || {
            let saved = Saved {
                s: sum.mat().into(),
                weight: Some(weight.mat().into()),
                statistics: statistics.mat().into(),
                factors: (1.0, 1.0),
            };
            let grads = Grads {
                dx: dx.mat_mut().into(),
                dresidual: Some(dr.mat_mut().into()),
                dweight: Some(weight.mat_mut().into()),
                dbias: Some(bias.mat_mut().into()),
            };
            backward(saved, y.mat(), Some(r.mat().into()), grads)
        };
        run().and_then(|()| back()).unwrap();
        let (f, g) = (median(gpu.time(20, run).unwrap()), median(gpu.time(20, back).unwrap()));
        let gb = (m * d) as f32 / 1e6;
        let (read_f, read_g) = (12.0 * gb / f, 16.0 * gb / g);
        println!("layer_norm {m} x {d}: forward {f:.4} ms, {read_f:.0} GB/s; backward {g:.4} ms, {read_g:.0} GB/s");
    }
}
