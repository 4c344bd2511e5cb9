//! The same cases on a GPU, against the f64 oracle.

use super::tests::{BASE, Case, EVERYTHING, FORMS, Form, Options, WHOLE_ROWS, Written, get, naive, named};
use super::*;
use crate::DType;
use crate::cuda::{self, Gpu, Mat};
use crate::testing::{OnDevice, Random, bits, err_ratio, gpu, median, rounded};

/// The error of rounding h and every gradient to bf16, with f32 states.
const BF16: f64 = 4e-3;

fn round(case: &Case<f32>, dtype: DType) -> Case<f32> {
    Case { rows: rounded(&case.rows, dtype), dh: rounded(&case.dh, dtype), ..case.clone() }
}

/// Arguments from the packed rows on the device.
fn args_of<'a>(
    case: &Case<f32>,
    rows: Mat<'a>,
    [constant, lambda]: [&'a OnDevice; 2],
    initial: Option<&'a OnDevice>,
    segments: cuda::Segments<'a>,
) -> Args<Mat<'a>> {
    let (columns, d) = (case.columns(), case.dims.d);
    let varying = rows.columns(columns, columns);
    Args {
        field: case.field,
        x: rows.columns(0, columns),
        decay: match case.form {
            Form::Constant => Decay::Constant(constant.mat()),
            Form::Values => Decay::Values(varying),
            Form::Logs => Decay::Logs(varying),
            Form::RgLru => Decay::RgLru(RgLru {
                recurrence: rows.columns(2 * columns, d),
                input: rows.columns(2 * columns + d, d),
                lambda: lambda.mat(),
            }),
        },
        initial: initial.map(OnDevice::mat),
        segments,
        reverse: case.reverse,
    }
}

/// `gap`: extra columns between rows; 0 keeps rows aligned if the sizes are.
fn on_device(gpu: Gpu, case: &Case<f32>, dtype: DType, gap: usize) -> Written<f32> {
    let (Dims { b, l, d }, columns) = (case.dims, case.columns());
    let f32s = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
    let rows = OnDevice::of(gpu, &case.rows, case.packed(), gap, dtype);
    let (constant, lambda, initial) = (f32s(&case.constant), f32s(&case.lambda), case.initial.as_deref().map(f32s));
    let lengths = case.lengths.as_ref().map(|x| gpu.upload(x).unwrap());
    let resets = case.resets.as_ref().map(|x| gpu.upload(x).unwrap());
    let segments = cuda::Segments { lengths: lengths.as_ref(), resets: resets.as_ref() };
    let args = args_of(case, rows.mat(), [&constant, &lambda], initial.as_ref(), segments);
    let [h, dx, da, dinput] = [(); 4].map(|()| OnDevice::poisoned(gpu, b * l, columns, gap, dtype));
    let [last, dinitial] = [(); 2].map(|()| OnDevice::poisoned(gpu, 1, b * columns, 4, DType::F32));
    let width = if case.form == Form::RgLru { d } else { columns };
    let sums = OnDevice::of(gpu, &vec![BASE; width], width, 3, DType::F32);
    forward(case.dims, args, h.mat_mut(), last.mat_mut()).unwrap();
    let dh = OnDevice::of(gpu, &case.dh, columns, gap, dtype);
    let dlast = case.dlast.as_deref().map(f32s);
    let grads = Grads {
        dx: dx.mat_mut(),
        decay: Some(match case.form {
            Form::Constant => DecayGrads::Constant(sums.mat_mut()),
            Form::Values | Form::Logs => DecayGrads::Varying(da.mat_mut()),
            Form::RgLru => {
                DecayGrads::RgLru { drecurrence: da.mat_mut(), dinput: dinput.mat_mut(), dlambda: sums.mat_mut() }
            }
        }),
        dinitial: Some(dinitial.mat_mut()),
    };
    let outputs = Outputs { h: h.mat(), dh: dh.mat(), dlast: dlast.as_ref().map(OnDevice::mat) };
    backward(case.dims, args, outputs, grads).unwrap();
    named(case.form, [&h, &last, &dx, &dinitial, &da, &dinput, &sums].map(OnDevice::values))
}

fn agrees(gpu: Gpu, case: &Case<f32>, dtype: DType, gap: usize) {
    let case = round(case, dtype);
    let tolerance = if dtype == DType::F32 { 1e-5 } else { BF16 };
    let got = on_device(gpu, &case, dtype, gap);
    for ((name, want), (_, got)) in naive(&case.converted::<f64>()).iter().zip(&got) {
        let (error, Case { dims, form, field, reverse, .. }) = (err_ratio(want, got), &case);
        // f32 sums of thousands of products.
        let tolerance = if *name == "sums" && dims.l > 1000 { 2.0 * tolerance } else { tolerance };
        assert!(error <= tolerance, "{dtype} {name}: {error:e} for {dims:?} {form:?} {field:?} {reverse} gap {gap}");
    }
}

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (i, l) in [0, 1, 2, 15, 31, 32, 33, 64, 65, 200].into_iter().enumerate() {
        for (j, d) in [1, 3, 8, 17, 32, 40, 64, 72, 130, 264].into_iter().enumerate() {
            for (k, form) in FORMS.into_iter().enumerate() {
                let seed = i * 100 + j * 10 + k;
                let case = Case::new(form, Dims { b: 1 + k % 3, l, d }, Options::number(seed * 7 % 32), seed as u64);
                agrees(gpu, &case, if seed % 5 < 3 { DType::F32 } else { DType::Bf16 }, [0, 0, 3, 8][seed % 4]);
            }
        }
    }
    agrees(gpu, &Case::new(FORMS[1], Dims { b: 0, l: 3, d: 2 }, EVERYTHING, 9), DType::F32, 0);
}

#[test]
fn every_option() {
    let Some(gpu) = gpu() else { return };
    for (i, form) in FORMS.into_iter().enumerate() {
        for options in 0..32 {
            let case =
                Case::new(form, Dims { b: 3, l: 77, d: 24 }, Options::number(options), (40 * i + options) as u64);
            for dtype in [DType::F32, DType::Bf16] {
                agrees(gpu, &case, dtype, 0);
                agrees(gpu, &case, dtype, 1);
            }
        }
    }
}

/// Few channels: a row is several chunks. Resets are far apart, so that states pass through chunks.
#[test]
fn chunks_of_the_length() {
    let Some(gpu) = gpu() else { return };
    for (i, form) in FORMS.into_iter().enumerate() {
        for reverse in [false, true] {
            let options = Options { reverse, ..EVERYTHING };
            let mut case = Case::new(form, Dims { b: 1, l: 5003, d: 40 }, options, i as u64);
            let slow = |x: &mut f32| *x = if case.form == Form::Logs { *x * 0.01 } else { *x };
            let columns = 2 * 40 * case.field.parts();
            case.rows.chunks_exact_mut(columns + 80).for_each(|row| row[40..80].iter_mut().for_each(slow));
            case.resets = Some((0..5003).map(|t| u8::from(t % 1777 == 900)).collect());
            case.lengths = Some(vec![4321]);
            agrees(gpu, &case, DType::F32, 0);
            agrees(gpu, &case, DType::F32, 1);
            agrees(gpu, &case, DType::Bf16, 0);
        }
    }
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for (form, dims) in
        FORMS.into_iter().flat_map(|f| [(3, 200, 96), (1, 4000, 32)].map(|(b, l, d)| (f, Dims { b, l, d })))
    {
        let case = Case::new(form, dims, EVERYTHING, 8);
        let run = || on_device(gpu, &case, DType::Bf16, 0).iter().map(|(_, x)| bits(x)).collect::<Vec<_>>();
        assert!(run() == run());
    }
}

#[test]
fn steps_are_the_forward() {
    let Some(gpu) = gpu() else { return };
    for form in FORMS {
        let case = Case::new(form, Dims { b: 3, l: 9, d: 40 }, Options { resets: true, ..WHOLE_ROWS }, 4);
        let (Dims { b, l, .. }, columns, whole) = (case.dims, case.columns(), naive(&case.converted::<f64>()));
        let f32s = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
        let (constant, lambda, state) =
            (f32s(&case.constant), f32s(&case.lambda), f32s(case.initial.as_ref().unwrap()));
        let at = |t: usize| (0..b).map(move |b| b * l + t);
        for t in 0..l {
            let packed = |r: usize| case.rows[r * case.packed()..][..case.packed()].to_vec();
            let rows = OnDevice::of(gpu, &at(t).flat_map(packed).collect::<Vec<f32>>(), case.packed(), 0, DType::F32);
            let resets: Vec<u8> = at(t).map(|r| case.resets.as_ref().unwrap()[r]).collect();
            let resets = gpu.upload(&resets).unwrap();
            let segments = cuda::Segments { lengths: None, resets: Some(&resets) };
            let args = args_of(&case, rows.mat(), [&constant, &lambda], None, segments);
            let h = OnDevice::poisoned(gpu, b, columns, 1, DType::F32);
            step(case.dims, args, state.mat_mut(), h.mat_mut()).unwrap();
            let want: Vec<f64> = at(t).flat_map(|r| get(&whole, "h")[r * columns..][..columns].to_vec()).collect();
            assert!(err_ratio(&want, &h.values()) <= 1e-5, "{form:?} step {t}");
        }
        assert!(err_ratio(get(&whole, "last"), &state.values()) <= 1e-5, "{form:?}");
    }
}

/// Medians, and the share of what is read and written once:
/// `cargo test --release -p elapid-kernels --lib -- --ignored --nocapture diagonal_scan::cuda_tests::bench`.
#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let shapes = [(8, 2048, 2560), (8, 2048, 1024), (50, 1024, 192), (1, 131_072, 256), (4, 16_384, 64)];
    for ((b, l, d), form) in shapes.into_iter().flat_map(|shape| FORMS.map(|form| (shape, form))) {
        let (dtype, dims, columns) = (DType::Bf16, Dims { b, l, d }, d * form.1.parts());
        let case = Case::new(form, Dims { b: 1, l: 1, d }, WHOLE_ROWS, 1);
        let rows =
            |low, high| OnDevice::of(gpu, &Random::new(2).uniform(b * l * columns, low, high), columns, 0, dtype);
        let (x, dh) = (rows(-1.0, 1.0), rows(-1.0, 1.0));
        let varying = if form.0 == Form::Logs { rows(-0.5, -0.001) } else { rows(0.5, 0.7) };
        let [h, dx, da, dinput] = [(); 4].map(|()| OnDevice::poisoned(gpu, b * l, columns, 0, dtype));
        let f32s = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
        let (constant, lambda, last) = (f32s(&case.constant), f32s(&case.lambda), f32s(&vec![0.0; b * columns]));
        let args = Args {
            field: form.1,
            x: x.mat(),
            decay: match form.0 {
                Form::Constant => Decay::Constant(constant.mat()),
                Form::Values => Decay::Values(varying.mat()),
                Form::Logs => Decay::Logs(varying.mat()),
                Form::RgLru => Decay::RgLru(RgLru { recurrence: varying.mat(), input: dh.mat(), lambda: lambda.mat() }),
            },
            initial: None,
            segments: cuda::Segments::default(),
            reverse: false,
        };
        let run = || forward(dims, args, h.mat_mut(), last.mat_mut());
        let back = || {
            let decay = match form.0 {
                Form::Constant => DecayGrads::Constant(constant.mat_mut()),
                Form::Values | Form::Logs => DecayGrads::Varying(da.mat_mut()),
                Form::RgLru => {
                    DecayGrads::RgLru { drecurrence: da.mat_mut(), dinput: dinput.mat_mut(), dlambda: lambda.mat_mut() }
                }
            };
            let grads = Grads { dx: dx.mat_mut(), decay: Some(decay), dinitial: None };
            backward(dims, args, Outputs { h: h.mat(), dh: dh.mat(), dlast: None }, grads)
        };
        run().and_then(|()| back()).unwrap();
        let (f, g) = (median(gpu.time(20, run).unwrap()), median(gpu.time(20, back).unwrap()));
        // Matrices read and written: x, h, what a comes from; h, dh, dx, a, its gradients, and x of an RG-LRU.
        let (of_f, of_g) = match form.0 {
            Form::Constant => (2, 3),
            Form::Values | Form::Logs => (3, 5),
            Form::RgLru => (4, 8),
        };
        let gb = |matrices: usize| (matrices * b * l * columns * dtype.bytes()) as f32 / 1e6;
        println!(
            "diagonal_scan ({b}, {l}, {d}) {form:?}: forward {f:.4} ms, {:.0} GB/s; backward {g:.4} ms, {:.0} GB/s",
            gb(of_f) / f,
            gb(of_g) / g
        );
    }
}
