//! On a GPU, against the f64 oracle.

use super::*;
use crate::cuda::Buffer;
use crate::testing::{OnDevice, Random, bits, err_ratio, gpu, median, rounded, wide};
use crate::{DType, RowsMut};

fn frequencies(pairs: usize) -> Vec<f64> {
    (0..pairs).map(|i| 1e4f64.powf(-(i as f64) / pairs.max(1) as f64)).collect()
}

#[test]
fn heads_of_any_size() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(1);
    // Heads, columns of each, rotated pairs, gap.
    let sizes =
        [(1, 2, 1, 0), (3, 8, 3, 1), (5, 7, 2, 0), (12, 64, 32, 0), (4, 64, 16, 8), (3, 128, 64, 4), (2, 48, 24, 8)]
            .into_iter()
            .chain([(2, 20, 0, 0), (1, 1100, 520, 0), (2, 1024, 512, 0), (24, 96, 12, 16)]);
    for (i, (heads, dim, pairs, gap)) in sizes.enumerate() {
        for m in [0, 1, 70, 301] {
            for (j, kind) in [Pairs::Halves, Pairs::Interleaved].into_iter().enumerate() {
                let dtype = if (i + j + m) % 2 == 0 { DType::F32 } else { DType::Bf16 };
                let d = heads * dim;
                let x = rounded(&random.normal(m * d), dtype);
                let positions: Vec<u64> = (0..m as u64).map(|r| r * r * 37 % (1 << 21)).collect();
                let frequencies = frequencies(pairs);
                // In some sizes pairs shrink too.
                let growth: Vec<f64> =
                    (0..if i % 2 == 1 { pairs } else { 0 }).map(|p| -1e-5 * p as f64 / 8.0).collect();
                let args: Args<'_, Rows<'_>> = Args {
                    dim,
                    frequencies: &frequencies,
                    pairs: kind,
                    factor: 1.25,
                    growth: &growth,
                    centre: 40.5,
                    last: 90_000,
                    positions: &positions[..],
                };
                let on_gpu = gpu.upload(&positions).unwrap();
                let on_device = args.at::<crate::cuda::Mat<'_>>(&on_gpu);
                for inverse in [false, true] {
                    let (wx, mut want) = (wide(&x), vec![0.0; m * d]);
                    naive::forward(&args.at(&positions[..]), inverse, Rows::new(&wx, d), RowsMut::new(&mut want, d));
                    let (gx, y) = (OnDevice::of(gpu, &x, d, gap, dtype), OnDevice::poisoned(gpu, m, d, gap, dtype));
                    forward(on_device, inverse, gx.mat(), y.mat_mut()).unwrap();
                    let error = err_ratio(&want, &y.values());
                    let tolerance = if dtype == DType::F32 { 1e-6 } else { 4e-3 };
                    assert!(error <= tolerance, "{dtype} {kind:?}: {error:e} for {m} x {heads} x {dim}, {pairs}");
                    in_place(on_device, inverse, gx.mat_mut()).unwrap();
                    assert!(bits(&gx.values()) == bits(&y.values()), "in place: {m} x {heads} x {dim}, {pairs}");
                }
            }
        }
    }
}

/// The leading columns of a packed matrix; the others stay.
#[test]
fn columns_of_a_packed_matrix() {
    let Some(gpu) = gpu() else { return };
    let (m, heads, dim) = (33, 6, 64);
    let x = Random::new(2).normal(m * heads * dim);
    let positions: Vec<u64> = (0..m as u64).collect();
    let frequencies = frequencies(32);
    let args: Args<'_, Rows<'_>> = Args {
        dim,
        frequencies: &frequencies,
        pairs: Pairs::Halves,
        factor: 1.0,
        growth: &[],
        centre: 0.0,
        last: u64::MAX,
        positions: &positions[..],
    };
    let on_gpu: Buffer = gpu.upload(&positions).unwrap();
    let packed = OnDevice::of(gpu, &x, heads * dim, 0, DType::F32);
    in_place(args.at::<crate::cuda::Mat<'_>>(&on_gpu), false, packed.mat_mut().columns(0, 4 * dim)).unwrap();
    let mut want = wide(&x);
    let (left, _) = RowsMut::new(&mut want, heads * dim).split_columns(4 * dim);
    naive::in_place(&args.at(&positions[..]), false, left);
    assert!(err_ratio(&want, &packed.values()) < 1e-6);
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (m, heads, dim) = (16_384, 16, 64);
    let positions: Vec<u64> = (0..m as u64).map(|r| r % 2048).collect();
    let frequencies = frequencies(32);
    let on_gpu = gpu.upload(&positions).unwrap();
    let packed = OnDevice::of(gpu, &Random::new(3).normal(m * 3 * heads * dim), 3 * heads * dim, 0, DType::Bf16);
    for pairs in [Pairs::Halves, Pairs::Interleaved] {
        let args: Args<'_, crate::cuda::Mat<'_>> = Args {
            dim,
            frequencies: &frequencies,
            pairs,
            factor: 1.0,
            growth: &[],
            centre: 0.0,
            last: u64::MAX,
            positions: &on_gpu,
        };
        let run = || {
            let qk = packed.mat_mut().columns(0, 2 * heads * dim);
            in_place(args, false, qk)
        };
        run().unwrap();
        let ms = median(gpu.time(20, run).unwrap());
        let gb = (m * 2 * heads * dim * 2 * 2) as f32 / 1e6;
        println!("rotate {pairs:?}: q and k of {m} x {heads} x {dim} in place {ms:.4} ms, {:.0} GB/s", gb / ms);
    }
}
