//! On a GPU: x and y in the dtype of activations, the residual stream in f32. A row stays in the registers of a warp or a
//! block, so each value is read once.

use crate::DType;
use crate::cuda::{Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::product;

static SOURCE: Source = Source { name: "add_norm", text: include_str!("add_norm.cu") };
const ENTRIES: [&str; 3] = ["forward", "scale", "backward"];
const THREADS: usize = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    x: RawMat,
    residual: RawMat,
    weight: u64,
    y: RawMat,
    sum: RawMat,
    rstd: u64,
    dy: RawMat,
    dsum: RawMat,
    dx: RawMat,
    dresidual: RawMat,
    partial: RawMat,
    rows: i64,
    d: i32,
    eps: f32,
}

impl Args {
    fn new((rows, d): (usize, usize), weight: &Mat<'_>, sum: &Mat<'_>, rstd: &Mat<'_>) -> Self {
        let null = RawMat::NULL;
        Self {
            x: null,
            residual: null,
            weight: weight.address(),
            y: null,
            sum: sum.raw(),
            rstd: rstd.address(),
            dy: null,
            dsum: null,
            dx: null,
            dresidual: null,
            partial: null,
            rows: rows as i64,
            d: d as i32,
            eps: 0.0,
        }
    }
}

/// Threads that own a row, and the number of vectors of eight values that each holds; (0, 0) if rows are too wide or not
/// aligned.
type Form = (usize, usize);

fn form(d: usize, all: &[Option<&Mat<'_>>]) -> Form {
    let aligned = d.is_multiple_of(8) && all.iter().flatten().all(|m| m.is_aligned());
    match d {
        _ if !aligned => (0, 0),
        0..=1024 => (32, d.div_ceil(256).max(1)),
        1025..=4096 => (128, d.div_ceil(1024)),
        4097..=8192 => (256, d.div_ceil(2048)),
        _ => (0, 0),
    }
}

pub(super) fn forward(
    x: Mat<'_>,
    residual: Option<Mat<'_>>,
    weight: Mat<'_>,
    eps: f32,
    y: MatMut<'_>,
    sum: MatMut<'_>,
    rstd: MatMut<'_>,
) -> Result<()> {
    let (y, sum, rstd) = (y.as_mat(), sum.as_mat(), rstd.as_mat());
    if x.is_empty() {
        return Ok(());
    }
    let gpu = x.gpu();
    let form = form(x.cols(), &[Some(&x), residual.as_ref(), Some(&weight), Some(&y), Some(&sum)]);
    let args = Args {
        x: x.raw(),
        residual: residual.map_or(RawMat::NULL, |r| r.raw()),
        y: y.raw(),
        eps,
        ..Args::new(x.shape(), &weight, &sum, &rstd)
    };
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(x.dtype(), form))?;
    // SAFETY: `Args` is laid out as in the source; `super` has checked shapes and formats.
    unsafe { kernel.launch(Launch::linear(blocks(gpu, x.rows(), form, 8), THREADS as u32).overlapping(), &args) }
}

pub(super) fn scale(sum: Mat<'_>, weight: Mat<'_>, rstd: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let y = y.as_mat();
    if y.is_empty() {
        return Ok(());
    }
    let gpu = y.gpu();
    let form = form(y.cols(), &[Some(&y), Some(&sum), Some(&weight)]);
    let args = Args { y: y.raw(), ..Args::new(y.shape(), &weight, &sum, &rstd) };
    let kernel = gpu.kernel(&SOURCE, "scale", &defines(y.dtype(), form))?;
    // SAFETY: as in `forward`.
    unsafe { kernel.launch(Launch::linear(blocks(gpu, y.rows(), form, 8), THREADS as u32), &args) }
}

pub(super) fn backward(
    sum: Mat<'_>,
    weight: Mat<'_>,
    rstd: Mat<'_>,
    dy: Mat<'_>,
    dsum: Option<Mat<'_>>,
    dx: MatMut<'_>,
    dresidual: Option<MatMut<'_>>,
    dweight: MatMut<'_>,
) -> Result<()> {
    let dx = dx.as_mat();
    let dresidual = dresidual.as_ref().map(MatMut::as_mat);
    if dy.is_empty() {
        return Ok(());
    }
    let (gpu, d) = (dy.gpu(), dy.cols());
    let form = form(d, &[Some(&dy), Some(&sum), Some(&weight), dsum.as_ref(), Some(&dx), dresidual.as_ref()]);
    let blocks = blocks(gpu, dy.rows(), form, 4);
    let partial = gpu.alloc(product(&[blocks, d, 4]))?;
    let partial = partial.mat_mut(blocks, d, DType::F32);
    let args = Args {
        dy: dy.raw(),
        dsum: dsum.map_or(RawMat::NULL, |m| m.raw()),
        dx: dx.raw(),
        dresidual: dresidual.map_or(RawMat::NULL, |m| m.raw()),
        partial: partial.raw(),
        ..Args::new(dy.shape(), &weight, &sum, &rstd)
    };
    let kernel = gpu.kernel(&SOURCE, "backward", &defines(dy.dtype(), form))?;
    let shared = (rows_at_once(form) * d * 4) as u32;
    // SAFETY: as in `forward`; `partial` has a row of d for every block.
    unsafe { kernel.launch(Launch { shared, ..Launch::linear(blocks, THREADS as u32) }, &args)? };
    elementwise::add_rows(&gpu, partial.as_mat(), dweight)
}

/// Blocks that take all rows between them, at most `resident` a multiprocessor.
fn blocks(gpu: Gpu, rows: usize, form: Form, resident: usize) -> usize {
    rows.div_ceil(rows_at_once(form).max(1)).min(resident * gpu.multiprocessors())
}

/// Rows that a block holds in registers at once; 0 for the form that reads each row twice.
fn rows_at_once((lanes, _): Form) -> usize {
    THREADS.checked_div(lanes).unwrap_or(0)
}

fn defines(dtype: DType, (lanes, vectors): Form) -> Vec<Define> {
    vec![Define::dtype("T", dtype), Define::new("LANES", lanes), Define::new("VECTORS", vectors)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let forms = [(0, 0), (32, 1), (32, 2), (32, 3), (32, 4), (128, 2), (128, 3), (128, 4), (256, 3), (256, 4)];
    let formats = [DType::F32, DType::Bf16];
    let all = formats.into_iter().flat_map(|dtype| forms.map(|form| (dtype, form)));
    all.map(|(dtype, form)| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(dtype, form) }).collect()
}
