//! On a GPU, against the f64 oracle.

use super::tests::{BASE, Case, EPS, NAMES, Options, Parameter, naive_of};
use super::*;
use crate::DType;
use crate::cuda::Gpu;
use crate::testing::{OnDevice, bits, err_ratio, gpu, median, rounded, wide};

/// y, dx, dz, dweight, dbias.
fn on_device(gpu: Gpu, case: &Case<f32>, dtype: DType, gap: usize) -> [Vec<f32>; 5] {
    let (m, d, Options { gate, centred, weight, bias }) = (case.m, case.d, case.options);
    let zx = OnDevice::of(gpu, &case.zx, 2 * d, gap, dtype);
    let dy = OnDevice::of(gpu, &case.dy, d, gap, dtype);
    let flat = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
    let (w, b) = (flat(&case.weight), flat(&case.bias));
    let args = Args {
        x: zx.mat().columns(d, d),
        gate: gate.map(|place| Gate { z: zx.mat().columns(0, d), place }),
        groups: case.groups,
        centred,
        weight: (weight != Parameter::None).then(|| w.mat()),
        bias: (bias != Parameter::None).then(|| b.mat()),
        eps: EPS,
    };
    let [y, dx, dz] = [(); 3].map(|()| OnDevice::poisoned(gpu, m, d, gap, dtype));
    let [dweight, dbias] = [&case.weight, &case.bias].map(|p| flat(&vec![BASE; p.len()]));
    forward(args, y.mat_mut()).unwrap();
    if gate.is_none() {
        crate::elementwise::zero(dz.mat_mut()).unwrap();
    }
    let grads = Grads {
        dx: dx.mat_mut(),
        dz: gate.map(|_| dz.mat_mut()),
        dweight: args.weight.map(|_| dweight.mat_mut()),
        dbias: args.bias.map(|_| dbias.mat_mut()),
    };
    backward(args, dy.mat(), grads).unwrap();
    [&y, &dx, &dz, &dweight, &dbias].map(OnDevice::values)
}

fn agrees(gpu: Gpu, case: &Case<f32>, dtype: DType, gap: usize) {
    let mut case = case.clone();
    (case.zx, case.dy) = (rounded(&case.zx, dtype), rounded(&case.dy, dtype));
    let tolerance = if dtype == DType::F32 { 1e-5 } else { 4e-3 };
    let want = naive_of(&case.converted(wide));
    for ((name, want), got) in NAMES.iter().zip(&want).zip(&on_device(gpu, &case, dtype, gap)) {
        let (error, Case { m, d, groups, options, .. }) = (err_ratio(want, got), &case);
        assert!(error <= tolerance, "{dtype} {name}: {error:e} for {m} x {d}, {groups} groups, {options:?}, gap {gap}");
    }
}

/// Every form, with every option.
#[test]
fn widths() {
    let Some(gpu) = gpu() else { return };
    let widths = [8, 40, 64, 128, 200, 256, 300, 512, 768, 1024, 1536, 2560, 5120, 8192, 9000, 13, 100, 1001];
    for (i, width) in widths.into_iter().enumerate() {
        for (j, groups) in [1, 2, 3, 8, 40].into_iter().enumerate().filter(|(_, groups)| groups * width <= 20_000) {
            for k in 0..6 {
                let seed = 54 * 5 * i + 54 * j + 9 * k;
                let options = Options::number((seed * 7 + k) % 54);
                let case =
                    Case::new(([1, 2, 7, 33, 300][(i + j + k) % 5], groups * width, groups), options, seed as u64);
                agrees(gpu, &case, [DType::F32, DType::Bf16][k % 2], if k < 4 { 0 } else { 8 - k % 2 * 5 });
            }
        }
    }
}

/// Groups of one or two values have gradients near 0; all that is written is finite.
#[test]
fn narrow_groups() {
    let Some(gpu) = gpu() else { return };
    for (d, groups) in [(1, 1), (3, 3), (6, 3), (34, 17)] {
        for options in 0..54 {
            let case = Case::new((5, d, groups), Options::number(options), d as u64);
            let [want, ..] = naive_of(&case.converted(wide));
            let got = on_device(gpu, &case, DType::F32, 0);
            assert!(err_ratio(&want, &got[0]) < 1e-3, "{d} {groups} {:?}", case.options);
            assert!(got.iter().flatten().all(|x| x.is_finite()), "{d} {groups} {:?}", case.options);
        }
    }
}

#[test]
fn nothing_is_no_error() {
    let Some(gpu) = gpu() else { return };
    agrees(gpu, &Case::new((0, 64, 2), Options::number(53), 1), DType::F32, 0);
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for groups in [1, 24] {
        let case = Case::new((5000, 1536, groups), Options::number(6 + 1), 3);
        let once = || on_device(gpu, &case, DType::Bf16, 0).map(|x| bits(&x));
        assert!(once() == once());
    }
}

/// `cargo test --release -p elapid-kernels --lib -- --ignored --nocapture group_norm::cuda_tests::bench`.
#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let shapes = [(16_384, 1536, 1), (8192, 4096, 1), (4096, 8192, 8), (16_384, 1024, 16), (16_384, 2048, 4)];
    for ((m, d, groups), place) in shapes.into_iter().flat_map(|s| [Place::Before, Place::After].map(|p| (s, p))) {
        let options = Options { gate: Some(place), centred: false, weight: Parameter::Row, bias: Parameter::None };
        let (case, dtype) = (Case::new((m, d, groups), options, 1), DType::Bf16);
        let zx = OnDevice::of(gpu, &case.zx, 2 * d, 0, dtype);
        let [y, dx, dz] = [(); 3].map(|()| OnDevice::of(gpu, &case.dy, d, 0, dtype));
        let [weight, dweight] = [(); 2].map(|()| OnDevice::of(gpu, &case.weight, d, 0, DType::F32));
        let args = Args {
            x: zx.mat().columns(d, d),
            gate: Some(Gate { z: zx.mat().columns(0, d), place }),
            groups,
            centred: false,
            weight: Some(weight.mat()),
            bias: None,
            eps: EPS,
        };
        let run = || forward(args, y.mat_mut());
        let back = || {
            let (dz, dweight) = (Some(dz.mat_mut()), Some(dweight.mat_mut()));
            backward(args, y.mat(), Grads { dx: dx.mat_mut(), dz, dweight, dbias: None })
        };
        run().and_then(|()| back()).unwrap();
        let (f, g) = (median(gpu.time(20, run).unwrap()), median(gpu.time(20, back).unwrap()));
        let gb = (m * d) as f32 / 1e6;
        let (of_f, of_g) = (6.0 * gb / f, 10.0 * gb / g);
        println!(
            "group_norm {m} x {d}, {groups} groups, {place:?}: forward {f:.4} ms, {of_f:.0} GB/s; backward {g:.4} ms, \
             {of_g:.0} GB/s"
        );
    }
}
