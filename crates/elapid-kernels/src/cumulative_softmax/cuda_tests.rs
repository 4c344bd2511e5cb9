//! On a GPU, against the oracle.

use super::*;
use crate::testing::{OnDevice, Random, err_ratio, gpu, wide};
use crate::{DType, Rows, RowsMut};

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (rows, d, i) in [(1, 3, 0), (2, 1, 1), (24, 2048, 0), (24, 1000, 23), (5, 129, 2)] {
        let mut random = Random::new((rows + d) as u64);
        let p: Vec<f32> = random.normal(rows * d).iter().map(|x| 6.0 * x).collect();
        let dy = random.normal(d);
        let (mut want_y, mut want_dp) = (vec![0.0; d], vec![0.5; rows * d]);
        naive::forward(i, Rows::new(&wide(&p), d), &mut want_y);
        naive::backward(i, Rows::new(&wide(&p), d), &wide(&dy), RowsMut::new(&mut want_dp, d));
        let (p, dy) = (OnDevice::of(gpu, &p, d, 3, DType::F32), OnDevice::of(gpu, &dy, d, 0, DType::F32));
        let y = OnDevice::poisoned(gpu, 1, d, 0, DType::F32);
        let dp = OnDevice::of(gpu, &vec![0.5; rows * d], d, 2, DType::F32);
        forward(i, p.mat(), y.mat_mut()).unwrap();
        backward(i, p.mat(), dy.mat(), dp.mat_mut()).unwrap();
        for (name, want, got) in [("y", want_y, y), ("dp", want_dp, dp)] {
            let error = err_ratio(&want, &got.values());
            assert!(error < 2e-6, "{name} of {rows} x {d}, row {i}: {error:e}");
        }
    }
}
