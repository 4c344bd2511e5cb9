//! On a GPU, against the oracle.

use super::*;
use crate::testing::{OnDevice, Random, err_ratio, gpu, rounded, wide};
use crate::{DType, Rows, RowsMut};

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (m, heads, f) in [(0, 1, 3), (1, 1, 1), (37, 3, 2), (300, 16, 16), (5, 2, 40)] {
        for dtype in [DType::F32, DType::Bf16] {
            let (d, cols) = (heads * f, heads * features(f));
            let mut random = Random::new((m + f) as u64);
            let [x, dy] = [m * d, m * cols].map(|len| rounded(&random.normal(len), dtype));
            let (mut want_y, mut want_dx) = (vec![0.0; m * cols], vec![0.0; m * d]);
            let (wide_x, wide_dy) = (wide(&x), wide(&dy));
            naive::forward(f, Rows::new(&wide_x, d), RowsMut::new(&mut want_y, cols));
            naive::backward(f, Rows::new(&wide_x, d), Rows::new(&wide_dy, cols), RowsMut::new(&mut want_dx, d));
            let (x, dy) = (OnDevice::of(gpu, &x, d, 3, dtype), OnDevice::of(gpu, &dy, cols, 1, dtype));
            let (y, dx) = (OnDevice::poisoned(gpu, m, cols, 2, dtype), OnDevice::poisoned(gpu, m, d, 1, dtype));
            forward(f, x.mat(), y.mat_mut()).unwrap();
            backward(f, x.mat(), dy.mat(), dx.mat_mut()).unwrap();
            let bound = if dtype == DType::F32 { 1e-6 } else { 4e-3 };
            for (name, want, got) in [("y", want_y, y), ("dx", want_dx, dx)] {
                let error = err_ratio(&want, &got.values());
                assert!(error < bound, "{name} of {m} x {heads} x {f} in {dtype}: {error:e}");
            }
        }
    }
}
