//! The same cases on a GPU, against the f64 oracle.

use super::tests::{BASE, Case, EVERYTHING, Options, WHOLE_ROWS, Written, naive};
use super::*;
use crate::DType;
use crate::cuda::{self, Gpu};
use crate::testing::{OnDevice, Random, bits, err_ratio, gpu, median, rounded};

/// The error of rounding every output and every gradient to bf16, with f32 sums.
const BF16: f64 = 4e-3;

fn round(case: &Case<f32>, dtype: DType) -> Case<f32> {
    let round = |x: &Vec<f32>| rounded(x, dtype);
    Case { xz: round(&case.xz), dbc: round(&case.dbc), dy: round(&case.dy), ..case.clone() }
}

/// `gaps`: extra columns between rows of the packed matrices and of y, and of the gradients; 0 keeps rows aligned if the
/// sizes are.
// Long: uploads every input and downloads every output, one line each.
fn on_device(gpu: Gpu, case: &Case<f32>, dtype: DType, gaps: (usize, usize)) -> Written<f32> {
    let (gap, grad_gap) = gaps;
    let Dims { b, l, d, n } = case.dims;
    let f32s = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
    let xz = OnDevice::of(gpu, &case.xz, 2 * d, gap, dtype);
    let dbc = OnDevice::of(gpu, &case.dbc, d + 2 * n, gap, dtype);
    let a = OnDevice::of(gpu, &case.a, n, 0, DType::F32);
    let [bias, skip, initial] = [&case.delta_bias, &case.skip, &case.initial].map(|x| x.as_deref().map(f32s));
    let lengths = case.lengths.as_ref().map(|x| gpu.upload(x).unwrap());
    let resets = case.resets.as_ref().map(|x| gpu.upload(x).unwrap());
    let args = Args {
        u: xz.mat().columns(0, d),
        delta: dbc.mat().columns(0, d),
        delta_bias: bias.as_ref().map(OnDevice::mat),
        softplus: case.softplus,
        a: a.mat(),
        b: dbc.mat().columns(d, n),
        c: dbc.mat().columns(d + n, n),
        skip: skip.as_ref().map(OnDevice::mat),
        z: case.gated.then(|| xz.mat().columns(d, d)),
        initial: initial.as_ref().map(OnDevice::mat),
        segments: cuda::Segments { lengths: lengths.as_ref(), resets: resets.as_ref() },
        rule: case.rule,
    };
    let y = OnDevice::poisoned(gpu, b * l, d, gap, dtype);
    let last = OnDevice::poisoned(gpu, 1, b * d * n, 4, DType::F32);
    let mut saved = Saved::new();
    forward(case.dims, args, y.mat_mut(), last.mat_mut(), Some(&mut saved)).unwrap();

    let [du, ddelta, dz] = [(); 3].map(|()| OnDevice::poisoned(gpu, b * l, d, grad_gap, dtype));
    let [db, dc] = [(); 2].map(|()| OnDevice::poisoned(gpu, b * l, n, 3, dtype));
    let [dbias, dskip] = [(); 2].map(|()| OnDevice::of(gpu, &vec![BASE; d], d, 4, DType::F32));
    let da = OnDevice::of(gpu, &vec![BASE; d * n], d * n, 4, DType::F32);
    let dinitial = OnDevice::poisoned(gpu, 1, b * d * n, 4, DType::F32);
    if !case.gated && b * l > 0 {
        cuda::elementwise::fill(&gpu, dz.mat_mut(), 0.0).unwrap();
    }
    let dy = OnDevice::of(gpu, &case.dy, d, grad_gap, dtype);
    let dlast = case.dlast.as_deref().map(f32s);
    let grads = Grads {
        du: du.mat_mut(),
        ddelta: ddelta.mat_mut(),
        ddelta_bias: Some(dbias.mat_mut()),
        da: da.mat_mut(),
        db: db.mat_mut(),
        dc: dc.mat_mut(),
        dskip: Some(dskip.mat_mut()),
        dz: case.gated.then(|| dz.mat_mut()),
        dinitial: Some(dinitial.mat_mut()),
    };
    let dlast = dlast.as_ref().map(OnDevice::mat);
    let outputs = Outputs { y: y.mat(), dy: dy.mat(), dlast };
    backward(case.dims, args, &saved, outputs, grads).unwrap();
    vec![
        ("y", y.values()),
        ("last", last.values()),
        ("du", du.values()),
        ("ddelta", ddelta.values()),
        ("ddelta_bias", dbias.values()),
        ("da", da.values()),
        ("db", db.values()),
        ("dc", dc.values()),
        ("dskip", dskip.values()),
        ("dz", dz.values()),
        ("dinitial", dinitial.values()),
    ]
}

fn agrees(gpu: Gpu, case: &Case<f32>, dtype: DType, gap: usize) {
    agrees_with_gaps(gpu, case, dtype, (gap, gap));
}

fn agrees_with_gaps(gpu: Gpu, case: &Case<f32>, dtype: DType, gaps: (usize, usize)) {
    let case = round(case, dtype);
    let tolerance = if dtype == DType::F32 { 1e-5 } else { BF16 };
    let got = on_device(gpu, &case, dtype, gaps);
    for ((name, want), (_, got)) in naive(&case.wide()).iter().zip(&got) {
        let error = err_ratio(want, got);
        assert!(error <= tolerance, "{dtype} {name}: {error:e} for {:?} {} gaps {gaps:?}", case.dims, case.rule);
    }
}

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (i, l) in [0, 1, 2, 15, 16, 17, 32, 33, 77].into_iter().enumerate() {
        for (j, d) in [1, 3, 32, 40, 130].into_iter().enumerate() {
            for (k, n) in [1, 3, 8, 16, 17].into_iter().enumerate() {
                let seed = (i * 100 + j * 10 + k) as u64;
                let options = if seed.is_multiple_of(2) { EVERYTHING } else { WHOLE_ROWS };
                let rule = Discretisation::ALL[seed as usize % 3];
                let dtype = if seed % 5 < 3 { DType::F32 } else { DType::Bf16 };
                agrees(gpu, &Case::new(Dims { b: 1 + k % 3, l, d, n }, rule, options, seed), dtype, seed as usize % 4);
            }
        }
    }
    agrees(gpu, &Case::new(Dims { b: 0, l: 3, d: 2, n: 2 }, Discretisation::ExpEuler, EVERYTHING, 9), DType::F32, 0);
}

#[test]
fn vectors_of_aligned_rows() {
    let Some(gpu) = gpu() else { return };
    let bare = Options { bias: false, skip: false, gated: false, softplus: false, initial: false, ..WHOLE_ROWS };
    for rule in Discretisation::ALL {
        for (i, options) in [EVERYTHING, WHOLE_ROWS, bare].into_iter().enumerate() {
            for (j, (l, d)) in [(64, 64), (77, 48), (300, 8), (33, 1536)].into_iter().enumerate() {
                let case = Case::new(Dims { b: 2, l, d, n: 16 }, rule, options, (10 * i + j) as u64);
                agrees(gpu, &case, DType::F32, 0);
                agrees(gpu, &case, DType::Bf16, 0);
            }
        }
    }
}

#[test]
fn gradients_need_not_be_aligned_as_inputs_are() {
    let Some(gpu) = gpu() else { return };
    for options in [EVERYTHING, WHOLE_ROWS, Options { gated: false, ..WHOLE_ROWS }] {
        let case = Case::new(Dims { b: 2, l: 50, d: 40, n: 16 }, Discretisation::ExpEuler, options, 6);
        agrees_with_gaps(gpu, &case, DType::Bf16, (0, 3));
        agrees_with_gaps(gpu, &case, DType::Bf16, (3, 0));
    }
}

#[test]
fn large_states() {
    let Some(gpu) = gpu() else { return };
    for n in [20, 32, 33, 64, 100, 128, 129, 256] {
        for rule in Discretisation::ALL {
            agrees(gpu, &Case::new(Dims { b: 2, l: 37, d: 9, n }, rule, EVERYTHING, n as u64), DType::F32, 0);
        }
    }
}

#[test]
fn chunks_of_the_length() {
    let Some(gpu) = gpu() else { return };
    for (options, rule) in [
        (WHOLE_ROWS, Discretisation::ExpEuler),
        (EVERYTHING, Discretisation::ExpEuler),
        (EVERYTHING, Discretisation::Zoh),
        (EVERYTHING, Discretisation::Bilinear),
    ] {
        let mut case = Case::new(Dims { b: 1, l: 5003, d: 40, n: 16 }, rule, options, 5);
        // Resets far apart, so that states pass through chunks.
        case.resets = case.resets.map(|resets| (0..resets.len()).map(|t| u8::from(t % 1777 == 900)).collect());
        case.lengths = case.lengths.map(|_| vec![4321]);
        agrees(gpu, &case, DType::F32, 0);
        agrees(gpu, &case, DType::Bf16, 0);
    }
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for dims in [Dims { b: 3, l: 200, d: 96, n: 16 }, Dims { b: 1, l: 4000, d: 32, n: 16 }] {
        let case = Case::new(dims, Discretisation::ExpEuler, EVERYTHING, 8);
        let run = || on_device(gpu, &case, DType::Bf16, (0, 0)).iter().map(|(_, x)| bits(x)).collect::<Vec<_>>();
        assert!(run() == run());
    }
}

#[test]
fn steps_are_the_forward() {
    let Some(gpu) = gpu() else { return };
    for rule in Discretisation::ALL {
        let dims = Dims { b: 3, l: 9, d: 40, n: 16 };
        let case = Case::new(dims, rule, Options { dlast: false, ..WHOLE_ROWS }, 4);
        let whole = naive(&case.wide());
        let state = OnDevice::of(gpu, case.initial.as_ref().unwrap(), dims.b * dims.d * dims.n, 0, DType::F32);
        let f32s = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
        let (bias, skip) = (f32s(case.delta_bias.as_ref().unwrap()), f32s(case.skip.as_ref().unwrap()));
        let a = OnDevice::of(gpu, &case.a, dims.n, 0, DType::F32);
        for t in 0..dims.l {
            let row = |x: &[f32], cols: usize| -> Vec<f32> {
                (0..dims.b).flat_map(|b| x[(b * dims.l + t) * cols..][..cols].to_vec()).collect()
            };
            let xz = OnDevice::of(gpu, &row(&case.xz, 2 * dims.d), 2 * dims.d, 0, DType::F32);
            let dbc_cols = dims.d + 2 * dims.n;
            let dbc = OnDevice::of(gpu, &row(&case.dbc, dbc_cols), dbc_cols, 0, DType::F32);
            let args = Args {
                u: xz.mat().columns(0, dims.d),
                delta: dbc.mat().columns(0, dims.d),
                delta_bias: Some(bias.mat()),
                softplus: true,
                a: a.mat(),
                b: dbc.mat().columns(dims.d, dims.n),
                c: dbc.mat().columns(dims.d + dims.n, dims.n),
                skip: Some(skip.mat()),
                z: Some(xz.mat().columns(dims.d, dims.d)),
                initial: None,
                segments: cuda::Segments::default(),
                rule,
            };
            let y = OnDevice::poisoned(gpu, dims.b, dims.d, 1, DType::F32);
            step(dims, args, state.mat_mut(), y.mat_mut()).unwrap();
            let want: Vec<f64> =
                (0..dims.b).flat_map(|b| whole[0].1[(b * dims.l + t) * dims.d..][..dims.d].to_vec()).collect();
            assert!(err_ratio(&want, &y.values()) <= 1e-5);
        }
        assert!(err_ratio(&whole[1].1, &state.values()) <= 1e-5);
    }
}

/// Medians at the shapes of docs/PERFORMANCE.md:
/// `cargo test --release -p elapid-kernels --lib -- --ignored --nocapture selective_scan::cuda_tests::bench`.
#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    for (b, d, l) in [(8, 1536, 2048), (8, 1024, 512), (8, 4096, 2048), (1, 1536, 131_072), (1, 1024, 524_288)] {
        let (n, dtype, mut random) = (16, DType::Bf16, Random::new(1));
        let dims = Dims { b, l, d, n };
        let wide = || OnDevice::of(gpu, &Random::new(2).normal(b * l * d), d, 0, dtype);
        let (u, z, dy) = (wide(), wide(), wide());
        let delta: Vec<f32> = random.uniform(b * l * d, -6.9, -2.3);
        let delta = OnDevice::of(gpu, &delta, d, 0, dtype);
        let bc = OnDevice::of(gpu, &random.normal(b * l * 2 * n), 2 * n, 0, dtype);
        let a: Vec<f32> = (0..d * n).map(|i| -((i % n + 1) as f32)).collect();
        let a = OnDevice::of(gpu, &a, n, 0, DType::F32);
        let ones = OnDevice::of(gpu, &vec![1.0; d], d, 0, DType::F32);
        let args = Args {
            u: u.mat(),
            delta: delta.mat(),
            delta_bias: None,
            softplus: true,
            a: a.mat(),
            b: bc.mat().columns(0, n),
            c: bc.mat().columns(n, n),
            skip: Some(ones.mat()),
            z: Some(z.mat()),
            initial: None,
            segments: cuda::Segments::default(),
            rule: Discretisation::ExpEuler,
        };
        let [y, du, ddelta, dz] = [(); 4].map(|()| OnDevice::poisoned(gpu, b * l, d, 0, dtype));
        let dbc = OnDevice::poisoned(gpu, b * l, 2 * n, 0, dtype);
        let [last, da, dskip] = [b * d * n, d * n, d].map(|len| OnDevice::of(gpu, &vec![0.0; len], len, 0, DType::F32));
        let only = || super::forward(dims, args, y.mat_mut(), last.mat_mut(), None);
        let both = || {
            let mut saved = Saved::new();
            super::forward(dims, args, y.mat_mut(), last.mat_mut(), Some(&mut saved))?;
            let grads = Grads {
                du: du.mat_mut(),
                ddelta: ddelta.mat_mut(),
                ddelta_bias: None,
                da: da.mat_mut(),
                db: dbc.mat_mut().columns(0, n),
                dc: dbc.mat_mut().columns(n, n),
                dskip: Some(dskip.mat_mut()),
                dz: Some(dz.mat_mut()),
                dinitial: None,
            };
            let outputs = Outputs { y: y.mat(), dy: dy.mat(), dlast: None };
            super::backward(dims, args, &saved, outputs, grads)
        };
        gpu.time(3, both).unwrap();
        let (forward, both) = (median(gpu.time(20, only).unwrap()), median(gpu.time(20, both).unwrap()));
        let elements = (b * l * d) as f32 / 1e6;
        println!(
            "scan ({b}, {d}, {l}): forward {forward:.4} ms ({:.1} G elements/s), forward + backward {both:.4} ms",
            elements / forward
        );
    }
}
