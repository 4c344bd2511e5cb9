//! On a GPU, against the f64 oracle.

use super::tests::{compare, rows};
use super::*;
use crate::DType;
use crate::testing::{OnDevice, gpu, rounded};

#[test]
fn answers_on_a_gpu_are_the_oracles() {
    let Some(gpu) = gpu() else { return };
    for (i, (m, v)) in [(1, 1), (9, 2), (40, 7), (5000, 33), (17, 256), (8, 8192), (5, 50_281)].into_iter().enumerate()
    {
        for dtype in [DType::F32, DType::Bf16] {
            let (logits, targets) = rows(m, v, i as u64);
            let logits = rounded(&logits, dtype);
            let on_device = OnDevice::of(gpu, &logits, v, 8, dtype);
            compare(&format!("{dtype} {m} {v}"), (&logits, &targets), v, &forward(on_device.mat(), &targets).unwrap());
        }
    }
}

#[test]
fn a_nan_on_a_gpu_is_never_the_answer() {
    let Some(gpu) = gpu() else { return };
    let mut logits = vec![1.0; 300];
    (logits[0], logits[3]) = (f32::NAN, 2.0);
    let on_device = OnDevice::of(gpu, &logits, 300, 0, DType::F32);
    let answer = forward(on_device.mat(), &[3]).unwrap()[0];
    assert!(answer.likeliest == 3 && answer.nll.is_nan() && answer.lead.is_nan(), "{answer:?}");
}
