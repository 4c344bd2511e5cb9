//! On a GPU, against the f64 oracle.

use super::tests::values;
use super::*;
use crate::testing::{OnDevice, bits, err_ratio, gpu, rounded, wide};
use crate::{DType, Rows, RowsMut};

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (m, n, gap) in [(0, 2, 0), (1, 1, 0), (300, 7, 0), (300, 7, 3), (70_000, 10, 0), (5, 4096, 8)] {
        for dtype in [DType::F32, DType::Bf16] {
            let (y, targets) = values(m, n, 3);
            let y = rounded(&y, dtype);
            let (want, count) = naive::forward(Rows::new(&wide(&y), n), &wide(&targets));
            let on_y = OnDevice::of(gpu, &y, n, gap, dtype);
            let on_targets = OnDevice::of(gpu, &targets, targets.len(), 0, DType::F32);
            let [mean, counted] = [(); 2].map(|()| OnDevice::poisoned(gpu, 1, 1, 2, DType::F32));
            let once = || {
                let dy = OnDevice::poisoned(gpu, m, n, gap, dtype);
                forward(on_y.mat(), on_targets.mat(), mean.mat_mut(), counted.mat_mut()).unwrap();
                backward(on_y.mat(), on_targets.mat(), counted.mat(), 0.5, dy.mat_mut()).unwrap();
                [mean.values(), counted.values(), dy.values()]
            };
            let got = once();
            assert!(got.each_ref().map(|x| bits(x)) == once().map(|x| bits(&x)), "twice the same bits");
            let mut dy = vec![0.0; m * n];
            naive::backward(Rows::new(&wide(&y), n), &wide(&targets), count, 0.5, RowsMut::new(&mut dy, n));
            let tolerance = if dtype == DType::F32 { 1e-6 } else { 4e-3 };
            assert!(err_ratio(&[want], &got[0]) < 1e-6 && err_ratio(&[count], &got[1]) < 1e-7, "{m} x {n}");
            assert!(err_ratio(&dy, &got[2]) <= tolerance, "{dtype}: {m} x {n}, gap {gap}");
        }
    }
}
