//! On a GPU, against the oracle.

use super::*;
use crate::testing::{OnDevice, Random, err_ratio, gpu, rounded, wide};
use crate::{DType, Rows, RowsMut};

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (m, h) in [(0, 2), (1, 1), (37, 3), (5000, 24), (300, 70)] {
        for dtype in [DType::F32, DType::Bf16] {
            for limits in [(0.0, f32::INFINITY), (0.4, 1.1)] {
                let mut random = Random::new((m + h) as u64);
                let x = rounded(&random.normal(m * h), dtype);
                let [bias, a_log] = [(); 2].map(|()| random.normal(h));
                let [ddelta, ddecay] = [(); 2].map(|()| random.normal(m * h));
                let f32s = |values: &[f32], cols: usize| OnDevice::of(gpu, values, cols, 0, DType::F32);
                let on_x = OnDevice::of(gpu, &x, h, 2, dtype);
                let (on_bias, on_a_log) = (f32s(&bias, h), f32s(&a_log, h));
                let args =
                    Args { x: on_x.mat().into(), bias: on_bias.mat().into(), a_log: on_a_log.mat().into(), limits };
                let out = |rows: usize, dtype| OnDevice::poisoned(gpu, rows, h, 0, dtype);
                let (delta, decay, dx) = (out(m, DType::F32), out(m, DType::F32), out(m, dtype));
                forward(args, delta.mat_mut(), decay.mat_mut()).unwrap();
                let [dbias, da_log] = [(); 2].map(|()| f32s(&vec![1.0; h], h));
                let (on_ddelta, on_ddecay) = (f32s(&ddelta, h), f32s(&ddecay, h));
                let grads = Grads {
                    dx: dx.mat_mut().into(),
                    dbias: Some(dbias.mat_mut().into()),
                    da_log: Some(da_log.mat_mut().into()),
                };
                backward(args, on_ddelta.mat(), on_ddecay.mat(), grads).unwrap();

                let [x, bias, a_log, ddelta, ddecay] = [&x, &bias, &a_log, &ddelta, &ddecay].map(|x| wide(x));
                let args = Args { x: Rows::new(&x, h), bias: &bias[..], a_log: &a_log[..], limits };
                let mut want = [m * h, m * h, m * h].map(|len| vec![0.0; len]);
                let mut sums = [vec![1.0; h], vec![1.0; h]];
                let [a, b, c] = &mut want;
                naive::forward(args, RowsMut::new(a, h), RowsMut::new(b, h));
                let [d, e] = &mut sums;
                let (ddelta, ddecay) = (Rows::new(&ddelta, h), Rows::new(&ddecay, h));
                naive::backward(args, ddelta, ddecay, RowsMut::new(c, h), Some(d), Some(e));
                let bound = if dtype == DType::F32 { 2e-6 } else { 4e-3 };
                let got =
                    [(&want[0], &delta), (&want[1], &decay), (&want[2], &dx), (&sums[0], &dbias), (&sums[1], &da_log)];
                for (i, (want, got)) in got.into_iter().enumerate() {
                    let error = err_ratio(want, &got.values());
                    let bound = if i == 2 { bound } else { 1e-5 };
                    assert!(error < bound, "{i} of {m} x {h} in {dtype}: {error:e}");
                }
            }
        }
    }
}
