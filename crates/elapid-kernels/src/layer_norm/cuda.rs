//! On a GPU: x and y in the dtype of activations, the residual stream in f32. A row stays in the registers of a warp or a
//! block, so each value is read once, and the variance is that of differences from the mean.

use super::{Args, Grads, Saved};
use crate::DType;
use crate::cuda::{Define, Gpu, Kernel, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::product;

static SOURCE: Source = Source { name: "layer_norm", text: include_str!("layer_norm.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];
const THREADS: usize = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    residual: RawMat,
    weight: u64,
    bias: u64,
    y: RawMat,
    s: RawMat,
    statistics: u64,
    dy: RawMat,
    dsum: RawMat,
    dx: RawMat,
    dresidual: RawMat,
    partial: RawMat,
    rows: i64,
    d: i32,
    keep: f32,
    scale: f32,
    eps: f32,
}

impl Raw {
    fn new((rows, d): (usize, usize), (keep, scale): (f32, f32), weight: Option<&Mat<'_>>, statistics: u64) -> Self {
        let null = RawMat::NULL;
        Self {
            x: null,
            residual: null,
            weight: weight.map_or(0, Mat::address),
            bias: 0,
            y: null,
            s: null,
            statistics,
            dy: null,
            dsum: null,
            dx: null,
            dresidual: null,
            partial: null,
            rows: rows as i64,
            d: d as i32,
            keep,
            scale,
            eps: 0.0,
        }
    }
}

/// Threads that own a row, and the number of vectors of eight values that each holds; (0, 0) if rows are too wide or not
/// aligned. A thread holds half as much as in `add_norm`: its gradient has a bias too.
type Form = (usize, usize);

fn form(d: usize, all: &[Option<&Mat<'_>>]) -> Form {
    let aligned = d.is_multiple_of(8) && all.iter().flatten().all(|m| m.is_aligned());
    match d {
        _ if !aligned => (0, 0),
        0..=512 => (32, d.div_ceil(256).max(1)),
        513..=2048 => (128, d.div_ceil(1024)),
        2049..=8192 => (256, d.div_ceil(2048)),
        _ => (0, 0),
    }
}

pub(super) fn forward(
    args: &Args<Mat<'_>>,
    y: MatMut<'_>,
    sum: Option<MatMut<'_>>,
    statistics: MatMut<'_>,
) -> Result<()> {
    let (x, y, sum) = (args.x, y.as_mat(), sum.as_ref().map(MatMut::as_mat));
    if x.is_empty() {
        return Ok(());
    }
    let (gpu, residual) = (x.gpu(), args.residual.map(|residual| residual.r));
    let all = [Some(&x), residual.as_ref(), args.weight.as_ref(), args.bias.as_ref(), Some(&y), sum.as_ref()];
    let form = form(x.cols(), &all);
    let factors = args.residual.map_or((1.0, 1.0), |residual| (residual.keep, residual.scale));
    let raw = Raw {
        x: x.raw(),
        residual: residual.map_or(RawMat::NULL, |r| r.raw()),
        bias: args.bias.map_or(0, |bias| bias.address()),
        y: y.raw(),
        s: sum.map_or(RawMat::NULL, |sum| sum.raw()),
        eps: args.eps,
        ..Raw::new(x.shape(), factors, args.weight.as_ref(), statistics.address())
    };
    let s_dtype = if residual.is_some() { DType::F32 } else { x.dtype() };
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(x.dtype(), s_dtype, form))?;
    let blocks = blocks(&kernel, gpu, x.rows(), form, 0)?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked shapes and formats.
    unsafe { kernel.launch(Launch::linear(blocks, THREADS as u32), &raw) }
}

pub(super) fn backward(
    saved: &Saved<Mat<'_>>,
    dy: Mat<'_>,
    dsum: Option<Mat<'_>>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let Grads { dx, dresidual, dweight, dbias } = grads;
    let (s, dx, dresidual) = (saved.s, dx.as_mat(), dresidual.as_ref().map(MatMut::as_mat));
    if dy.is_empty() {
        return Ok(());
    }
    let (gpu, d) = (dy.gpu(), dy.cols());
    let all = [Some(&dy), Some(&s), saved.weight.as_ref(), dsum.as_ref(), Some(&dx), dresidual.as_ref()];
    let form = form(d, &all);
    let kernel = gpu.kernel(&SOURCE, "backward", &defines(dy.dtype(), s.dtype(), form))?;
    let shared = (rows_at_once(form) * d * 4) as u32;
    let blocks = blocks(&kernel, gpu, dy.rows(), form, shared)?;
    let partial = gpu.alloc(product(&[blocks, 2, d, 4]))?;
    let partial = partial.mat_mut(blocks, 2 * d, DType::F32);
    let raw = Raw {
        s: s.raw(),
        dy: dy.raw(),
        dsum: dsum.map_or(RawMat::NULL, |m| m.raw()),
        dx: dx.raw(),
        dresidual: dresidual.map_or(RawMat::NULL, |m| m.raw()),
        partial: partial.raw(),
        ..Raw::new(dy.shape(), saved.factors, saved.weight.as_ref(), saved.statistics.address())
    };
    // SAFETY: as in `forward`; `partial` has a row of 2 d for every block.
    unsafe { kernel.launch(Launch { shared, ..Launch::linear(blocks, THREADS as u32) }, &raw)? };
    for (from, to) in [(0, dweight), (d, dbias)] {
        if let Some(to) = to {
            elementwise::add_rows(&gpu, partial.as_mat().columns(from, d), to)?;
        }
    }
    Ok(())
}

/// Blocks that take all rows between them, at most as many as run at once: one more would run alone at the end.
fn blocks(kernel: &Kernel, gpu: Gpu, rows: usize, form: Form, shared: u32) -> Result<usize> {
    let resident = kernel.resident_blocks(THREADS as u32, shared)?.max(1);
    Ok(rows.div_ceil(rows_at_once(form).max(1)).min(resident * gpu.multiprocessors()))
}

/// Rows that a block holds in registers at once; 0 for the form that reads each row several times.
fn rows_at_once((lanes, _): Form) -> usize {
    THREADS.checked_div(lanes).unwrap_or(0)
}

fn defines(dtype: DType, s: DType, (lanes, vectors): Form) -> Vec<Define> {
    let sizes = [Define::new("LANES", lanes), Define::new("VECTORS", vectors)];
    [Define::dtype("T", dtype), Define::dtype("S", s)].into_iter().chain(sizes).collect()
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let forms = [(0, 0), (32, 1), (32, 2), (128, 1), (128, 2), (256, 2), (256, 3), (256, 4)];
    let formats = [(DType::F32, DType::F32), (DType::Bf16, DType::F32), (DType::Bf16, DType::Bf16)];
    let all = formats.into_iter().flat_map(|format| forms.map(|form| (format, form)));
    let unit = |((dtype, s), form)| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(dtype, s, form) };
    all.map(unit).collect()
}
