//! On a GPU, against the oracle.

use super::tests::{forms, oracle, params};
use super::*;
use crate::testing::{OnDevice, Random, err_ratio, gpu, rounded};

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for form in forms() {
        for dtype in [DType::F32, DType::Bf16] {
            for (n, d) in [(1, 1), (3, 5), (8, 300), (300, 33)] {
                let mut random = Random::new((n + d) as u64);
                let params = params(form, n, &mut random);
                let (b, da) = (random.normal(2 * n * d), random.normal(2 * n));
                let db = rounded(&random.normal(2 * n * d), dtype);
                let f32s = |x: &[f32], cols: usize| OnDevice::of(gpu, x, cols, 0, DType::F32);
                let on_params = params.each_ref().map(|x| f32s(x, n));
                let on_b = OnDevice::of(gpu, &b, d, 3, DType::F32);
                let args = Args { params: on_params.each_ref().map(OnDevice::mat), b: on_b.mat() };
                let (a, b_bar) =
                    (OnDevice::poisoned(gpu, 1, 2 * n, 0, DType::F32), OnDevice::poisoned(gpu, 2 * n, d, 1, dtype));
                forward(form, args, a.mat_mut(), b_bar.mat_mut()).unwrap();
                let sums = [n, n, n].map(|len| f32s(&vec![0.5; len], len));
                let of_b = f32s(&vec![0.5; 2 * n * d], d);
                let (on_da, on_db) = (f32s(&da, 2 * n), OnDevice::of(gpu, &db, d, 2, dtype));
                let grads = Grads { params: sums.each_ref().map(OnDevice::mat_mut), db: of_b.mat_mut() };
                backward(form, args, on_da.mat(), on_db.mat(), grads).unwrap();

                let want = oracle(form, &params, (&b, d), &da, &db);
                let got = [&a, &b_bar, &sums[0], &sums[1], &sums[2], &of_b];
                for (i, (want, got)) in want.iter().zip(got).enumerate() {
                    let error = err_ratio(want, &got.values());
                    let bound = if i == 1 && dtype == DType::Bf16 { 4e-3 } else { 2e-6 };
                    assert!(error < bound, "{form:?} {n} x {d} in {dtype}: {i}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn devices_are_not_mixed() {
    let Some(gpu) = gpu() else { return };
    let (x, b) = (OnDevice::of(gpu, &[0.0], 1, 0, DType::F32), OnDevice::of(gpu, &[1.0, 0.0], 1, 0, DType::F32));
    let args = Args { params: [x.mat(); 3], b: b.mat() };
    let out = OnDevice::poisoned(gpu, 2, 1, 0, DType::F32);
    let error = crate::testing::fault(forward(Form::Lru, args, &mut [0.0; 2], out.mat_mut()));
    assert_eq!(error.argument, "a");
}
