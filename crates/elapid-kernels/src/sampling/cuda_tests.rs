//! On a GPU, against the processor.

use super::*;
use crate::DType;
use crate::testing::{OnDevice, Random, gpu, rounded};

#[test]
fn greedy_is_the_processors() {
    let Some(gpu) = gpu() else { return };
    for (i, (b, v)) in [(1, 1), (3, 31), (2, 1024), (5, 1025), (2, 50_280)].into_iter().enumerate() {
        for dtype in [DType::F32, DType::Bf16] {
            let mut random = Random::new(i as u64);
            // Of few values, so that many are equal.
            let logits: Vec<f32> = (0..b * v).map(|_| random.below(40) as f32 - 20.0).collect();
            let logits = rounded(&logits, dtype);
            let on = OnDevice::of(gpu, &logits, v, 3, dtype);
            let ids = gpu.alloc(4 * b).unwrap();
            super::cuda::greedy(&gpu, on.mat(), &ids).unwrap();
            let want: Vec<u32> = logits.chunks(v).map(|row| greedy(row).unwrap()).collect();
            assert_eq!(want, gpu.download::<u32>(&ids, 0, b).unwrap());
        }
    }
}
