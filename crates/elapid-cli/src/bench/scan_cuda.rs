//! `elapid bench scan --device cuda`: the selective scan alone, on a GPU.

use anyhow::Result;
use elapid::DType;
use elapid_kernels::cuda::{self, Buffer, Gpu, Mat, MatMut, Segments};
use elapid_kernels::selective_scan::{Args, Dims, Discretisation, Grads, Outputs, Saved, backward, forward};
use elapid_kernels::testing::Random;
use serde_json::json;

use super::measure::Timing;
use crate::output::{Output, bytes, number, pairs, percent, scaled, table, thousands};

/// Number of random values drawn; longer matrices repeat them.
const DRAWN: usize = 1 << 20;

struct Matrix {
    buffer: Buffer,
    shape: (usize, usize),
    dtype: DType,
}

impl Matrix {
    fn new(gpu: Gpu, numbers: &[f32], (rows, cols): (usize, usize), dtype: DType) -> Result<Self> {
        let all: Vec<f32> = numbers.iter().copied().cycle().take(rows * cols).collect();
        let from = gpu.upload(&all)?;
        let to = Self { buffer: gpu.alloc(rows * cols * dtype.bytes())?, shape: (rows, cols), dtype };
        cuda::elementwise::convert(&gpu, from.mat(rows, cols, DType::F32), to.mat_mut())?;
        Ok(to)
    }

    fn mat(&self) -> Mat<'_> {
        self.buffer.mat(self.shape.0, self.shape.1, self.dtype)
    }

    fn mat_mut(&self) -> MatMut<'_> {
        self.buffer.mat_mut(self.shape.0, self.shape.1, self.dtype)
    }
}

// Long: the benchmark in the order it runs: inputs, measurements, the table.
pub(crate) fn run(
    gpu: Gpu,
    dtype: DType,
    dims: Dims,
    rule: Discretisation,
    reps: usize,
    seed: u64,
    output: Output,
) -> Result<()> {
    let Dims { b, l, d, n } = dims;
    let mut random = Random::new(seed);
    let mut normal = |rows: usize, cols: usize, dtype| -> Result<Matrix> {
        Matrix::new(gpu, &random.normal(DRAWN.min(rows * cols)), (rows, cols), dtype)
    };
    let (u, delta, z, dy) =
        (normal(b * l, d, dtype)?, normal(b * l, d, dtype)?, normal(b * l, d, dtype)?, normal(b * l, d, dtype)?);
    let (bc, skip) = (normal(b * l, 2 * n, dtype)?, normal(1, d, DType::F32)?);
    // softplus of it: 0.001 to 0.1.
    let bias = Matrix::new(gpu, &random.uniform(d, -6.9, -2.25), (1, d), DType::F32)?;
    let a: Vec<f32> = (0..d * n).map(|i| -((i % n + 1) as f32) * (0.5 + random.unit() as f32)).collect();
    let a = Matrix::new(gpu, &a, (d, n), DType::F32)?;
    let zeros = |rows: usize, cols: usize, dtype| Matrix::new(gpu, &[0.0], (rows, cols), dtype);
    let (y, du, ddelta, dz) =
        (zeros(b * l, d, dtype)?, zeros(b * l, d, dtype)?, zeros(b * l, d, dtype)?, zeros(b * l, d, dtype)?);
    let (dbc, last) = (zeros(b * l, 2 * n, dtype)?, zeros(1, b * d * n, DType::F32)?);
    let (dbias, dskip, da) = (zeros(1, d, DType::F32)?, zeros(1, d, DType::F32)?, zeros(1, d * n, DType::F32)?);
    let args = Args {
        u: u.mat(),
        delta: delta.mat(),
        delta_bias: Some(bias.mat()),
        softplus: true,
        a: a.mat(),
        b: bc.mat().columns(0, n),
        c: bc.mat().columns(n, n),
        skip: Some(skip.mat()),
        z: Some(z.mat()),
        initial: None,
        segments: Segments::default(),
        rule,
    };
    let mut saved = Saved::new();
    let alone = Timing::of_gpu(gpu, 3, reps, || Ok(forward(dims, args, y.mat_mut(), last.mat_mut(), None)?))?;
    let both = Timing::of_gpu(gpu, 3, reps, || {
        forward(dims, args, y.mat_mut(), last.mat_mut(), Some(&mut saved))?;
        let grads = Grads {
            du: du.mat_mut(),
            ddelta: ddelta.mat_mut(),
            ddelta_bias: Some(dbias.mat_mut()),
            da: da.mat_mut(),
            db: dbc.mat_mut().columns(0, n),
            dc: dbc.mat_mut().columns(n, n),
            dskip: Some(dskip.mat_mut()),
            dz: Some(dz.mat_mut()),
            dinitial: None,
        };
        Ok(backward(dims, args, &saved, Outputs { y: y.mat(), dy: dy.mat(), dlast: None }, grads)?)
    })?;
    let copy = cuda::ceiling::copy(gpu)?;
    let elements = (b * l * d) as f64;
    // Bytes that must be read and written: forward u, Δ, z, y; backward u, Δ, z, dy, du, dΔ, dz.
    let traffic = [4.0, 11.0].map(|matrices| matrices * elements * dtype.bytes() as f64);
    let passes = [("forward", alone, traffic[0]), ("both", both, traffic[1])];
    let object = json!({
        "bench": "scan", "device": gpu.name(), "dtype": dtype.to_string(),
        "b": b, "l": l, "d": d, "n": n, "rule": rule.name(),
        "forward_ms": 1e3 * alone.median,
        "forward_backward_ms": 1e3 * both.median,
        "forward": alone.milliseconds(),
        "forward_backward": both.milliseconds(),
        "elements_per_second": elements / alone.median,
        "forward_backward_elements_per_second": elements / both.median,
        "gb_per_second": traffic[0] / alone.median / 1e9,
        "forward_backward_gb_per_second": traffic[1] / both.median / 1e9,
        "gb_per_second_ceiling": copy / 1e9,
        "device_bytes": gpu.memory().reserved,
    });
    output.result(&object, || {
        let shape = [b, l, d].map(|size| thousands(size as u64)).join(" x ");
        let head = pairs(&[
            ("device", format!("{}, {dtype}", gpu.name())),
            ("scan", format!("b l d = {shape}, n = {n}, {rule}")),
            ("copy", scaled(copy, "B/s")),
            ("device memory", bytes(gpu.memory().reserved as u64)),
        ]);
        let rows: Vec<Vec<String>> = passes
            .iter()
            .map(|(name, timing, traffic)| {
                let mut row = vec![(*name).to_owned()];
                row.extend([timing.median, timing.min, timing.max].map(|seconds| number(1e3 * seconds)));
                row.push(number(elements / timing.median / 1e6));
                row.push(number(traffic / timing.median / 1e9));
                row.push(percent(traffic / timing.median / copy));
                row
            })
            .collect();
        let heading = ["pass", ">ms (median)", ">min", ">max", ">M elements/s", ">GB/s", ">of copy"];
        format!("{head}\n{}", table(&heading, &rows))
    })
}
