//! The same cases on a GPU, against the f64 oracle.

use super::tests::{Case, Wide};
use super::*;
use crate::DType;
use crate::cuda::{self, Gpu};
use crate::testing::{OnDevice, bits, err_ratio, gpu, median, rounded};

/// Initial values of the accumulated outputs.
const BASE: f32 = 0.5;

fn round(case: &Case, dtype: DType) -> Case {
    Case { x: rounded(&case.x, dtype), dy: rounded(&case.dy, dtype), ..case.clone() }
}

/// y, last, dx, dweight, dbias, dinitial.
fn on_device(gpu: Gpu, case: &Case, dtype: DType, gap: usize) -> [Vec<f32>; 6] {
    let Dims { b, l, d, k } = case.dims;
    let f32s = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
    let [bias, initial, lengths, resets, silu, dlast] = case.with;
    let x = OnDevice::of(gpu, &case.x, d, gap, dtype);
    let dy = OnDevice::of(gpu, &case.dy, d, gap, dtype);
    let weight = OnDevice::of(gpu, &case.weight, k, 0, DType::F32);
    let [all_bias, all_initial, all_dlast] = [&case.bias, &case.initial, &case.dlast].map(|x| f32s(x));
    let lengths = lengths.then(|| gpu.upload(&case.lengths).unwrap());
    let resets = resets.then(|| gpu.upload(&case.resets).unwrap());
    let args = Args {
        x: x.mat(),
        weight: weight.mat(),
        bias: bias.then(|| all_bias.mat()),
        initial: initial.then(|| all_initial.mat()),
        segments: cuda::Segments { lengths: lengths.as_ref(), resets: resets.as_ref() },
        silu,
    };
    let windows = b * (k - 1) * d;
    let [y, dx] = [(); 2].map(|()| OnDevice::poisoned(gpu, b * l, d, gap, dtype));
    let [last, dinitial] = [(); 2].map(|()| OnDevice::poisoned(gpu, 1, windows, 3, DType::F32));
    forward(case.dims, args, y.mat_mut(), last.mat_mut()).unwrap();
    let dweight = OnDevice::of(gpu, &vec![BASE; d * k], d * k, 2, DType::F32);
    let dbias = OnDevice::of(gpu, &vec![BASE; d], d, 2, DType::F32);
    let grads = Grads {
        dx: dx.mat_mut(),
        dweight: dweight.mat_mut(),
        dbias: Some(dbias.mat_mut()),
        dinitial: Some(dinitial.mat_mut()),
    };
    let dlast = dlast.then(|| all_dlast.mat().into());
    backward(case.dims, args, dy.mat(), dlast, grads).unwrap();
    [y, last, dx, dweight, dbias, dinitial].map(|x| x.values())
}

fn agrees(gpu: Gpu, case: &Case, dtype: DType, gap: usize) {
    let case = round(case, dtype);
    let given = Wide::<f64>::of(&case);
    let (y, last) = given.forward(&case);
    let [dx, mut dweight, mut dbias, dinitial] = given.backward(&case);
    dweight.iter_mut().chain(&mut dbias).for_each(|x| *x += f64::from(BASE));
    let tolerance = if dtype == DType::F32 { 1e-5 } else { 4e-3 };
    let names = ["y", "last", "dx", "dweight", "dbias", "dinitial"];
    let want = [y, last, dx, dweight, dbias, dinitial];
    for ((name, want), got) in names.iter().zip(&want).zip(&on_device(gpu, &case, dtype, gap)) {
        let error = err_ratio(want, got);
        assert!(error <= tolerance, "{dtype} {name}: {error:e} for {:?} {:?} gap {gap}", case.dims, case.with);
    }
}

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (i, l) in [0, 1, 3, 64, 150].into_iter().enumerate() {
        for (j, d) in [3, 30, 256].into_iter().enumerate() {
            for k in [1, 2, 3, 4, 8] {
                let seed = (i * 1000 + j * 100 + k) as u64;
                let with = std::array::from_fn(|bit| seed.wrapping_mul(0x9e37_79b9) >> (bit + 7) & 1 == 0);
                let dtype = if (i + j + k) % 2 == 0 { DType::F32 } else { DType::Bf16 };
                let dims = Dims { b: 1 + k % 3, l, d, k };
                agrees(gpu, &Case::new(dims, with, 9, seed), dtype, if k % 2 == 0 { 0 } else { 4 * (k % 3) + 1 });
            }
        }
    }
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(Dims { b: 3, l: 700, d: 96, k: 4 }, [true; 6], 50, 3);
    let run = || on_device(gpu, &case, DType::Bf16, 0).map(|x| bits(&x));
    assert!(run() == run());
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (dims, dtype) = (Dims { b: 8, l: 2048, d: 1536, k: 4 }, DType::Bf16);
    let Dims { b, l, d, k } = dims;
    let case = Case::new(dims, [true, false, false, false, true, false], 9, 1);
    let xz = OnDevice::of(gpu, &[case.x.clone(), case.dy.clone()].concat(), 2 * d, 0, dtype);
    let dxz = OnDevice::poisoned(gpu, b * l, 2 * d, 0, dtype);
    let (y, last) =
        (OnDevice::poisoned(gpu, b * l, d, 0, dtype), OnDevice::poisoned(gpu, b * (k - 1), d, 0, DType::F32));
    let (weight, bias) =
        (OnDevice::of(gpu, &case.weight, k, 0, DType::F32), OnDevice::of(gpu, &case.bias, d, 0, DType::F32));
    let x = xz.mat().columns(0, d);
    let segments = cuda::Segments::default();
    let args = Args { x, weight: weight.mat(), bias: Some(bias.mat()), initial: None, segments, silu: true };
    let forward = || super::forward(dims, args, y.mat_mut(), last.mat_mut());
    let backward = || {
        let grads = Grads {
            dx: dxz.mat_mut().columns(0, d),
            dweight: weight.mat_mut(),
            dbias: Some(bias.mat_mut()),
            dinitial: None,
        };
        super::backward(dims, args, y.mat(), None, grads)
    };
    forward().and_then(|()| backward()).unwrap();
    let (f, g) = (median(gpu.time(20, forward).unwrap()), median(gpu.time(20, backward).unwrap()));
    let gb = (b * l * d * 2) as f32 / 1e6;
    println!("conv: forward {f:.4} ms, {:.0} GB/s; backward {g:.4} ms, {:.0} GB/s", 2.0 * gb / f, 3.0 * gb / g);
}
