//! On a GPU, against the oracle.

use super::*;
use crate::testing::{OnDevice, Random, bits, err_ratio, gpu, median, rounded, wide};
use crate::{Rows, RowsMut};

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    let sizes =
        [(1, 1, 1), (7, 3, 5), (300, 11, 64), (5000, 256, 96), (1500, 5000, 40), (700, 2, 2000), (3000, 1 << 16, 8)];
    for (i, (m, v, d)) in sizes.into_iter().enumerate() {
        for dtype in [DType::F32, DType::Bf16] {
            let mut random = Random::new(i as u64);
            let (table, dy) = (rounded(&random.normal(v * d), dtype), rounded(&random.normal(m * d), dtype));
            // Half of them are from few rows, like words of a text.
            let ids: Vec<u32> = (0..m).map(|r| random.below(if r % 2 == 0 { v } else { v.min(3) }) as u32).collect();
            let gap = i % 3;
            let (on_table, on_dy) = (OnDevice::of(gpu, &table, d, gap, dtype), OnDevice::of(gpu, &dy, d, gap, dtype));
            let on_ids = gpu.upload(&ids).unwrap();
            let y = OnDevice::poisoned(gpu, m, d, gap, dtype);
            forward(&on_ids, on_table.mat(), y.mat_mut()).unwrap();
            let want: Vec<f32> = ids.iter().flat_map(|&id| table[id as usize * d..][..d].to_vec()).collect();
            assert_eq!(want, y.values());

            let once = || {
                let dtable = OnDevice::of(gpu, &vec![0.25; v * d], d, gap, DType::F32);
                backward(&on_ids, on_dy.mat(), dtable.mat_mut()).unwrap();
                dtable.values()
            };
            let mut want = vec![0.25; v * d];
            naive::backward(&ids, Rows::new(&wide(&dy), d), RowsMut::new(&mut want, d));
            let got = once();
            let error = err_ratio(&want, &got);
            assert!(error <= 1e-5, "{m} {v} {d}: {error:e}");
            assert_eq!(bits(&got), bits(&once()));
        }
    }
}

/// As in a text that is mostly padding, or noise with a few tokens in it; and ids outside the table.
#[test]
fn an_id_nearly_everywhere() {
    let Some(gpu) = gpu() else { return };
    for (m, v, d) in [(100_000, 16, 64), (70_001, 40_000, 3)] {
        let mut random = Random::new(3);
        let ids: Vec<u32> = (0..m).map(|r| if r % 250 == 0 { random.below(v + 5) as u32 } else { 0 }).collect();
        let dy = random.normal(m * d);
        let (on_dy, on_ids) = (OnDevice::of(gpu, &dy, d, 0, DType::F32), gpu.upload(&ids).unwrap());
        let dtable = OnDevice::of(gpu, &vec![0.0; v * d], d, 0, DType::F32);
        backward(&on_ids, on_dy.mat(), dtable.mat_mut()).unwrap();
        let mut want = vec![0.0; (v + 5) * d];
        naive::backward(&ids, Rows::new(&wide(&dy), d), RowsMut::new(&mut want, d));
        let error = err_ratio(&want[..v * d], &dtable.values());
        assert!(error <= 1e-5, "{m} {v} {d}: {error:e}");
    }
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    for (m, d, v, few) in [
        (16_384, 768, 256, 256),
        (16_384, 768, 50_280, 50_280),
        (16_384, 768, 50_280, 500),
        (16_384, 768, 50_280, 1),
        (263_168, 64, 16, 1),
    ] {
        let mut random = Random::new(1);
        let dy = OnDevice::of(gpu, &random.normal(m * d), d, 0, DType::Bf16);
        let ids = gpu
            .upload(&(0..m).map(|r| random.below(if r % 2 == 0 { v } else { few }) as u32).collect::<Vec<_>>())
            .unwrap();
        let dtable = OnDevice::of(gpu, &vec![0.0; v * d], d, 0, DType::F32);
        let backward = || super::backward(&ids, dy.mat(), dtable.mat_mut());
        backward().unwrap();
        println!(
            "embedding backward, m {m} d {d} v {v}, half of {few}: {:.4} ms",
            median(gpu.time(20, backward).unwrap())
        );
    }
}
