//! On a GPU, against the f64 oracle.

use super::tests::ALL;
use super::*;
use crate::testing::{OnDevice, Random, bits, err_ratio, gpu, median, rounded, wide};
use crate::{DType, Rows, RowsMut};

const FORMATS: [DType; 2] = [DType::F32, DType::Bf16];
/// Rows, columns, gap between rows: vectors and single elements, one row for all and rows of their own.
const SHAPES: [(usize, usize, usize); 9] =
    [(0, 3, 0), (1, 1, 0), (5, 3, 1), (700, 33, 0), (3, 8, 8), (9, 24, 4), (257, 256, 0), (33, 384, 16), (2, 5000, 8)];

fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 2e-6 } else { 4e-3 }
}

/// What is wanted, and what the GPU gave.
type Compared = ([Vec<f64>; 4], [Vec<f32>; 4]);

/// y, dx, and y and dxz of the gated form, of random inputs, and their references.
fn run(f: Map, (m, d, gap): (usize, usize, usize), dtype: DType) -> Option<Compared> {
    let gpu = gpu()?;
    let mut random = Random::new((m * 10_000 + d) as u64);
    let [own, dy] = [(); 2].map(|()| rounded(&random.normal(m * d), dtype));
    let xz = rounded(&random.normal(m * 2 * d), dtype);
    let [wx, wdy, wxz] = [&own, &dy, &xz].map(|x| wide(x));
    let mut want = [m * d, m * d, m * d, m * 2 * d].map(|len| vec![0.0; len]);
    let [y, plain, gated, dxz] = &mut want;
    naive::forward(f, Rows::new(&wx, d), RowsMut::new(y, d));
    naive::backward(f, Rows::new(&wx, d), Rows::new(&wdy, d), RowsMut::new(plain, d));
    let (packed, (dx, dz)) = (Rows::new(&wxz, 2 * d), RowsMut::new(dxz, 2 * d).split_columns(d));
    let (x, z) = (packed.columns(0, d), packed.columns(d, d));
    naive::glu_forward(f, x, z, RowsMut::new(gated, d));
    naive::glu_backward(f, x, z, Rows::new(&wdy, d), dx, dz);

    let [gx, gdy] = [&own, &dy].map(|x| OnDevice::of(gpu, x, d, gap, dtype));
    let gxz = OnDevice::of(gpu, &xz, 2 * d, gap, dtype);
    let [y, dx, gated] = [(); 3].map(|()| OnDevice::poisoned(gpu, m, d, gap, dtype));
    let dxz = OnDevice::poisoned(gpu, m, 2 * d, gap, dtype);
    forward(f, gx.mat(), y.mat_mut()).unwrap();
    backward(f, gx.mat(), gdy.mat(), dx.mat_mut()).unwrap();
    let (x, z) = (gxz.mat().columns(0, d), gxz.mat().columns(d, d));
    glu_forward(f, x, z, gated.mat_mut()).unwrap();
    let (to_x, to_z) = dxz.mat_mut().split_columns(d);
    glu_backward(f, [x.into(), z.into()], gdy.mat(), [to_x.into(), to_z.into()]).unwrap();
    Some((want, [y, dx, gated, dxz].map(|x| x.values())))
}

#[test]
fn functions_of_any_size() {
    let scaled = Map { f: Function::GeluTanh, alpha: 0.7, beta: -1.5 };
    for f in ALL.map(Map::from).into_iter().chain([scaled]) {
        for shape in SHAPES {
            for dtype in FORMATS {
                let Some((want, got)) = run(f, shape, dtype) else { return };
                for ((name, want), got) in ["y", "dx", "glu y", "dxz"].iter().zip(&want).zip(&got) {
                    let error = err_ratio(want, got);
                    assert!(error <= tolerance(dtype), "{f:?} {dtype} {name}: {error:e} for {shape:?}");
                }
            }
        }
    }
}

/// No NaN where exponentials overflow, and the limits are right.
#[test]
fn far_from_zero() {
    let Some(gpu) = gpu() else { return };
    let x: Vec<f32> = [-1e30, -200.0, -90.0, -20.0, 20.0, 90.0, 200.0, 1e4].to_vec();
    for f in ALL {
        let (gx, ones) = (OnDevice::of(gpu, &x, 8, 0, DType::F32), OnDevice::of(gpu, &[1.0; 8], 8, 0, DType::F32));
        let [y, dx] = [(); 2].map(|()| OnDevice::poisoned(gpu, 1, 8, 0, DType::F32));
        forward(f, gx.mat(), y.mat_mut()).unwrap();
        backward(f, gx.mat(), ones.mat(), dx.mat_mut()).unwrap();
        for (at, &x) in x.iter().enumerate().skip(1) {
            let (want, slope) = (naive::value(f, f64::from(x)), naive::derivative(f, f64::from(x)));
            let (got, got_slope) = (f64::from(y.values()[at]), f64::from(dx.values()[at]));
            assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{f:?}({x}) = {got}, not {want}");
            assert!((got_slope - slope).abs() <= 1e-5 * slope.abs().max(1.0), "{f:?}'({x}) = {got_slope}, not {slope}");
        }
    }
}

#[test]
fn sums_of_any_formats() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(3);
    for (m, d, gap) in SHAPES {
        for bit in 0..16 {
            let format = |i: usize| FORMATS[bit >> i & 1];
            let (a, b) = (rounded(&random.normal(m * d), format(0)), rounded(&random.normal(m * d), format(1)));
            let with = bit & 8 == 0;
            let of = |i: usize| f64::from(a[i]) * -0.5 + if with { 2.0 * f64::from(b[i]) } else { 0.0 };
            let want: Vec<f64> = (0..m * d).map(of).collect();
            let (ga, gb) = (OnDevice::of(gpu, &a, d, gap, format(0)), OnDevice::of(gpu, &b, d, gap, format(1)));
            let y = OnDevice::poisoned(gpu, m, d, gap, format(2));
            add_scaled(-0.5, ga.mat(), with.then(|| (2.0, gb.mat().into())), y.mat_mut()).unwrap();
            let error = err_ratio(&want, &y.values());
            assert!(error <= tolerance(format(2)), "{bit}: {error:e} for {m} x {d}, gap {gap}");
            add_constant(ga.mat(), 1.0, y.mat_mut()).unwrap();
            let want: Vec<f32> = rounded(&a.iter().map(|a| a + 1.0).collect::<Vec<_>>(), format(2));
            assert_eq!(bits(&want), bits(&y.values()), "{bit}: + 1 for {m} x {d}, gap {gap}");
        }
    }
}

#[test]
fn columns_of_a_packed_matrix() {
    let Some(gpu) = gpu() else { return };
    let (m, d) = (37, 64);
    let x = Random::new(5).normal(m * 3 * d);
    let packed = OnDevice::of(gpu, &x, 3 * d, 0, DType::F32);
    let y = OnDevice::poisoned(gpu, m, d, 0, DType::F32);
    let columns = |from: usize| packed.mat().columns(from, d);
    glu_forward(Function::Silu, columns(d), columns(2 * d), y.mat_mut()).unwrap();
    let mut want = vec![0.0; m * d];
    let x = wide(&x);
    let x = Rows::new(&x, 3 * d);
    naive::glu_forward(Function::Silu, x.columns(d, d), x.columns(2 * d, d), RowsMut::new(&mut want, d));
    assert!(err_ratio(&want, &y.values()) < 2e-6);
}

#[test]
fn twice_is_the_same_bits() {
    let once = || run(Function::Silu.into(), (257, 256, 0), DType::Bf16).map(|(_, got)| got.map(|x| bits(&x)));
    assert!(once() == once());
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (m, d, dtype) = (16_384, 2048, DType::Bf16);
    let mut random = Random::new(1);
    let [x, y, dy] = [(); 3].map(|()| OnDevice::of(gpu, &random.normal(m * d), d, 0, dtype));
    let xz = OnDevice::of(gpu, &[x.values(), y.values()].concat(), 2 * d, 0, dtype);
    let dxz = OnDevice::poisoned(gpu, m, 2 * d, 0, dtype);
    let gb = (m * d * 2) as f32 / 1e6;
    for f in [Function::Silu, Function::Gelu, Function::GeluTanh, Function::SquaredRelu] {
        let time = |what: &str, passes: f32, work: &dyn Fn() -> Result<()>| {
            work().unwrap();
            let ms = median(gpu.time(20, work).unwrap());
            println!("{f:?} {what}: {ms:.4} ms, {:.0} GB/s", passes * gb / ms);
        };
        time("forward", 2.0, &|| forward(f, x.mat(), y.mat_mut()));
        time("backward", 3.0, &|| backward(f, x.mat(), dy.mat(), y.mat_mut()));
        let (a, b) = (xz.mat().columns(0, d), xz.mat().columns(d, d));
        time("glu forward", 3.0, &|| glu_forward(f, a, b, y.mat_mut()));
        time("glu backward", 5.0, &|| {
            let (da, db) = dxz.mat_mut().split_columns(d);
            glu_backward(f, [a.into(), b.into()], dy.mat(), [da.into(), db.into()])
        });
    }
}
