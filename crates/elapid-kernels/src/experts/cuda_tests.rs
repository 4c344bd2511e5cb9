//! On a GPU, against the oracle.

use super::*;
use crate::cuda::Gpu;
use crate::testing::{OnDevice, Random, bits, err_ratio, gpu, median, rounded, wide};
use crate::{Array, Rows, RowsMut};

fn both(gpu: Gpu, picked: &[u32], k: usize, experts: usize, room: usize) -> (Order, Order) {
    let on_device = gpu.upload(picked).unwrap();
    let sorted = |picked| sort(picked, k, experts, room).unwrap();
    (sorted(Array::Host(picked)), sorted(Array::Device(&on_device)))
}

#[test]
fn rows_are_moved_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let sizes = [(1, 1, 1, 1), (37, 2, 5, 24), (5000, 3, 1000, 7), (3000, 2, 8, 264), (40_000, 1, 60, 8)];
    for (i, (m, k, experts, d)) in sizes.into_iter().enumerate() {
        for room in [usize::MAX, m * k / experts + 1] {
            let picked = super::tests::picks(m, k, experts, i as u64);
            let (host, order) = both(gpu, &picked, k, experts, room);
            let (host, n) = (host.host().unwrap(), m * k);
            for dtype in [DType::F32, DType::Bf16] {
                let (mut random, gap) = (Random::new(9), 8 * (i % 2));
                let [x, o, dy] = [m * d, n * d, m * d].map(|n| rounded(&random.normal(n), dtype));
                let weights = random.normal(m * k);
                let on = |values: &[f32]| OnDevice::of(gpu, values, d, gap, dtype);
                let (on_x, on_o, on_dy) = (on(&x), on(&o), on(&dy));
                let on_weights = OnDevice::of(gpu, &weights, k, 0, DType::F32);
                let xs = OnDevice::poisoned(gpu, n, d, gap, dtype);
                gather(&order, on_x.mat(), xs.mat_mut()).unwrap();
                let mut want = vec![f32::NAN; n * d];
                naive::gather(host, Rows::new(&x, d), RowsMut::new(&mut want, d));
                assert_eq!(bits(&want), bits(&xs.values()));
                let tolerance = if dtype == DType::Bf16 { 5e-3 } else { 1e-6 };
                let y = OnDevice::poisoned(gpu, m, d, gap, dtype);
                combine(&order, on_weights.mat(), on_o.mat(), y.mat_mut()).unwrap();
                let mut want = vec![0.0; m * d];
                let (wide_o, wide_weights) = (wide(&o), wide(&weights));
                let (o_rows, w_rows) = (Rows::new(&wide_o, d), Rows::new(&wide_weights, k));
                naive::combine(host, w_rows, o_rows, RowsMut::new(&mut want, d));
                assert!(err_ratio(&want, &y.values()) < tolerance, "{m} {k} {experts} {d}");
                gather_backward(&order, on_o.mat(), y.mat_mut()).unwrap();
                naive::gather_backward(host, o_rows, RowsMut::new(&mut want, d));
                assert!(err_ratio(&want, &y.values()) < tolerance, "{m} {k} {experts} {d}");
                let (dweights, d_o) =
                    (OnDevice::poisoned(gpu, m, k, 0, DType::F32), OnDevice::poisoned(gpu, n, d, gap, dtype));
                let to = (dweights.mat_mut().into(), d_o.mat_mut().into());
                combine_backward(&order, (on_weights.mat().into(), on_o.mat().into()), on_dy.mat(), to).unwrap();
                let (mut want, mut want_o) = (vec![0.0; m * k], vec![0.0; n * d]);
                let to = (RowsMut::new(&mut want, k), RowsMut::new(&mut want_o, d));
                naive::combine_backward(host, (w_rows, o_rows), Rows::new(&wide(&dy), d), to);
                assert!(err_ratio(&want, &dweights.values()) < 1e-5, "{m} {k} {experts} {d}");
                assert!(err_ratio(&want_o, &d_o.values()) < tolerance, "{m} {k} {experts} {d}");
            }
        }
    }
}

#[test]
fn products() {
    let Some(gpu) = gpu() else { return };
    let sizes = [
        (1, 1, 1, 8, 8),
        (37, 2, 5, 19, 33),
        (700, 2, 3, 200, 136),
        (64, 1, 70, 16, 8),
        (900, 2, 8, 256, 392),
        (300, 2, 4, 776, 520),
    ];
    for (i, (m, k, experts, d, rows)) in sizes.into_iter().enumerate() {
        let picked = super::tests::picks(m, k, experts, i as u64);
        let (host, order) = both(gpu, &picked, k, experts, usize::MAX);
        let (host, n) = (host.host().unwrap(), m * k);
        let used = host.starts[experts] as usize;
        for (dtype, gap) in [(DType::F32, 0), (DType::Bf16, 0), (DType::Bf16, 8), (DType::Bf16, 3)] {
            let mut random = Random::new(5);
            let [x, w, dy] = [n * d, experts * rows * d, n * rows].map(|n| rounded(&random.normal(n), dtype));
            let before = random.normal(experts * rows * d);
            let on = |values: &[f32], cols| OnDevice::of(gpu, values, cols, gap, dtype);
            let (on_x, on_w, on_dy) = (on(&x, d), on(&w, d), on(&dy, rows));
            let (wide_x, wide_w, wide_dy) = (wide(&x), wide(&w), wide(&dy));
            let (x_rows, w_rows, dy_rows) = (Rows::new(&wide_x, d), Rows::new(&wide_w, d), Rows::new(&wide_dy, rows));
            let tolerance = if dtype == DType::Bf16 { 5e-3 } else { 1e-5 };
            let what = format!("{m} {k} {experts} {d} {rows} {dtype} {gap}");

            let y = OnDevice::poisoned(gpu, n, rows, gap, dtype);
            forward(&order, on_x.mat(), on_w.mat(), y.mat_mut(), false).unwrap();
            let mut want = vec![0.0; n * rows];
            naive::forward(host, x_rows, w_rows, RowsMut::new(&mut want, rows));
            assert!(err_ratio(&want[..used * rows], &y.values()[..used * rows]) < tolerance, "{what}");

            let dx = OnDevice::poisoned(gpu, n, d, gap, dtype);
            backward_input(&order, on_dy.mat(), on_w.mat(), dx.mat_mut()).unwrap();
            let mut want = vec![0.0; n * d];
            naive::backward_input(host, dy_rows, w_rows, RowsMut::new(&mut want, d));
            assert!(err_ratio(&want[..used * d], &dx.values()[..used * d]) < tolerance, "{what}");

            let once = || {
                let dw = OnDevice::of(gpu, &before, d, gap, DType::F32);
                backward_weight(&order, on_dy.mat(), on_x.mat(), dw.mat_mut()).unwrap();
                dw.values()
            };
            let mut want = wide(&before);
            naive::backward_weight(host, dy_rows, x_rows, RowsMut::new(&mut want, d));
            let got = once();
            assert!(err_ratio(&want, &got) < 1e-5, "{what}");
            assert_eq!(bits(&got), bits(&once()), "{what}");
        }
    }
}

/// The three matrices of 8 gated experts, top 2 of 16,384 positions, forward and backward, beside one dense product of the same
/// size in cuBLASLt.
#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (m, k, experts, d, f) = (16_384, 2, 8, 1024, 4096);
    let (n, mut random) = (m * k, Random::new(1));
    let picked: Vec<u32> = (0..m)
        .flat_map(|_| {
            let one = random.below(experts);
            [one as u32, ((one + 1 + random.below(experts - 1)) % experts) as u32]
        })
        .collect();
    let on_picked = gpu.upload(&picked).unwrap();
    let order = sort(Array::Device(&on_picked), k, experts, usize::MAX).unwrap();
    let bf16 = |rows: usize, cols: usize, random: &mut Random| {
        OnDevice::of(gpu, &random.normal(rows * cols), cols, 0, DType::Bf16)
    };
    let (x, w) = (bf16(n, d, &mut random), bf16(experts * 2 * f, d, &mut random));
    let (inner, down) = (bf16(n, f, &mut random), bf16(experts * d, f, &mut random));
    let (up, out) = (bf16(n, 2 * f, &mut random), bf16(n, d, &mut random));
    let zeros = |rows: usize, cols: usize| OnDevice::of(gpu, &vec![0.0; rows * cols], cols, 0, DType::F32);
    let (dw, ddown) = (zeros(experts * 2 * f, d), zeros(experts * d, f));
    let time = |f: &dyn Fn() -> crate::cuda::Result<()>| {
        f().unwrap();
        median(gpu.time(20, f).unwrap())
    };
    let parts: [(&str, &dyn Fn() -> crate::cuda::Result<()>); 6] = [
        ("up", &|| forward(&order, x.mat(), w.mat(), up.mat_mut(), false)),
        ("down", &|| forward(&order, inner.mat(), down.mat(), out.mat_mut(), false)),
        ("up input", &|| backward_input(&order, up.mat(), w.mat(), x.mat_mut())),
        ("down input", &|| backward_input(&order, out.mat(), down.mat(), inner.mat_mut())),
        ("up weight", &|| backward_weight(&order, up.mat(), x.mat(), dw.mat_mut())),
        ("down weight", &|| backward_weight(&order, out.mat(), inner.mat(), ddown.mat_mut())),
    ];
    for (name, part) in parts {
        println!("experts {name}: {:.3} ms", time(part));
    }
    let all = time(&|| parts.iter().try_for_each(|(_, part)| part()));
    let move_all = time(&|| {
        let order = sort(Array::Device(&on_picked), k, experts, usize::MAX)?;
        gather(&order, out.mat().rows_range(0, m), x.mat_mut())
    });
    // The same products with all rows and one expert's matrices.
    use crate::linear;
    let (w1, down1) = (w.mat().rows_range(0, 2 * f), down.mat().rows_range(0, d));
    let dense = time(&|| {
        linear::forward(x.mat(), w1, None, up.mat_mut())?;
        linear::forward(inner.mat(), down1, None, out.mat_mut())?;
        linear::backward_input(up.mat(), w1, x.mat_mut(), false)?;
        linear::backward_input(out.mat(), down1, inner.mat_mut(), false)?;
        linear::backward_weight(up.mat(), x.mat(), dw.mat_mut().rows_range(0, 2 * f))?;
        linear::backward_weight(out.mat(), inner.mat(), ddown.mat_mut().rows_range(0, d))
    });
    println!(
        "experts all six: {all:.3} ms, sort and gather {move_all:.3} ms, dense {dense:.3} ms, {:.2}x",
        all / dense
    );
}
