//! On a GPU: the same elements as on the CPU, to the bit.

use super::tests::{FIRST, SHAPES, mask};
use super::*;
use crate::testing::{OnDevice, Random, bits, gpu, median, rounded};
use crate::{DType, Rows, RowsMut};

#[test]
fn a_gpu_draws_alike() {
    let Some(gpu) = gpu() else { return };
    let first = gpu.upload(&[FIRST]).unwrap();
    for (m, d, l) in SHAPES {
        for dtype in [DType::F32, DType::Bf16] {
            let x = rounded(&Random::new(d as u64).normal(m * d), dtype);
            for unit in [Unit::Element, Unit::Sample] {
                let mask = mask(l, unit);
                let mut want = vec![f32::NAN; m * d];
                naive::forward(&mask, FIRST, Rows::new(&x, d), RowsMut::new(&mut want, d));
                for gap in [0, 8, 3] {
                    let gx = OnDevice::of(gpu, &x, d, gap, dtype);
                    let y = OnDevice::poisoned(gpu, m, d, gap, dtype);
                    forward(&mask, (&first).into(), gx.mat(), y.mat_mut()).unwrap();
                    let got = y.values();
                    assert_eq!(bits(&rounded(&want, dtype)), bits(&got), "{dtype} {unit:?} {m} {d} {l}, gap {gap}");
                }
            }
        }
    }
}

/// A captured launch reads the number of its time.
#[test]
fn a_graph_draws_for_the_batch_of_its_time() {
    let Some(gpu) = gpu() else { return };
    let (m, d) = (12, 64);
    let x = Random::new(3).normal(m * d);
    let (gx, y) = (OnDevice::of(gpu, &x, d, 0, DType::F32), OnDevice::poisoned(gpu, m, d, 0, DType::F32));
    let (first, mask) = (gpu.upload(&[0u64]).unwrap(), mask(4, Unit::Element));
    // Compiled before it is captured.
    forward(&mask, (&first).into(), gx.mat(), y.mat_mut()).unwrap();
    let captured = gpu.capture(|| forward(&mask, (&first).into(), gx.mat(), y.mat_mut()));
    let (graph, ()) = captured.unwrap();
    for number in [5u64, 1 << 40] {
        gpu.write(&first, 0, &[number]).unwrap();
        graph.launch().unwrap();
        let mut want = vec![f32::NAN; m * d];
        naive::forward(&mask, number, Rows::new(&x, d), RowsMut::new(&mut want, d));
        assert_eq!(bits(&want), bits(&y.values()), "{number}");
    }
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (m, d, dtype) = (16_384, 2048, DType::Bf16);
    let x = OnDevice::of(gpu, &Random::new(1).normal(m * d), d, 0, dtype);
    let (y, first) = (OnDevice::poisoned(gpu, m, d, 0, dtype), gpu.upload(&[7u64]).unwrap());
    for unit in [Unit::Element, Unit::Sample] {
        let work = || forward(&mask(1024, unit), (&first).into(), x.mat(), y.mat_mut());
        work().unwrap();
        let ms = median(gpu.time(20, &work).unwrap());
        println!("{unit:?}: {ms:.4} ms, {:.0} GB/s", (m * d * 4) as f32 / 1e6 / ms);
    }
}
