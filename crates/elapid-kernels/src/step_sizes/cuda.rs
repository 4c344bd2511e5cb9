//! On a GPU: a thread for each head of some rows.

use super::args::{Args, Grads};
use crate::DType;
use crate::cuda::{Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::product;

static SOURCE: Source = Source { name: "step_sizes", text: include_str!("step_sizes.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    dx: RawMat,
    delta: RawMat,
    decay: RawMat,
    partial: RawMat,
    bias: u64,
    a_log: u64,
    rows: i64,
    h: i64,
    low: f32,
    high: f32,
}

impl Raw {
    fn new(args: &Args<Mat<'_>>, delta: RawMat, decay: RawMat) -> Self {
        let (rows, h) = args.x.shape();
        Self {
            x: args.x.raw(),
            dx: RawMat::NULL,
            delta,
            decay,
            partial: RawMat::NULL,
            bias: args.bias.address(),
            a_log: args.a_log.address(),
            rows: rows as i64,
            h: h as i64,
            low: args.limits.0,
            high: args.limits.1,
        }
    }
}

pub(super) fn forward(args: Args<Mat<'_>>, delta: MatMut<'_>, decay: MatMut<'_>) -> Result<()> {
    if args.x.is_empty() {
        return Ok(());
    }
    let (gpu, raw) = (args.x.gpu(), Raw::new(&args, delta.raw(), decay.raw()));
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(args.x.dtype()))?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked shapes and formats.
    unsafe { kernel.launch(launch(gpu, args.x.shape()), &raw) }
}

pub(super) fn backward(args: Args<Mat<'_>>, ddelta: Mat<'_>, ddecay: Mat<'_>, grads: Grads<MatMut<'_>>) -> Result<()> {
    if args.x.is_empty() {
        return Ok(());
    }
    let (gpu, (rows, h)) = (args.x.gpu(), args.x.shape());
    let launch = launch(gpu, (rows, h));
    let blocks = launch.grid.0 as usize;
    let partial = gpu.alloc(product(&[blocks, 2, h, 4]))?;
    let partial = partial.mat_mut(blocks, 2 * h, DType::F32);
    let raw = Raw { dx: grads.dx.raw(), partial: partial.raw(), ..Raw::new(&args, ddelta.raw(), ddecay.raw()) };
    let kernel = gpu.kernel(&SOURCE, "backward", &defines(args.x.dtype()))?;
    // SAFETY: as in `forward`; `partial` has a row of 2 h for every block.
    unsafe { kernel.launch(launch, &raw)? };
    for (from, to) in [(0, grads.dbias), (h, grads.da_log)] {
        if let Some(to) = to {
            elementwise::add_rows(&gpu, partial.as_mat().columns(from, h), to)?;
        }
    }
    Ok(())
}

fn launch(gpu: Gpu, (rows, h): (usize, usize)) -> Launch {
    let blocks = rows.div_ceil(64).min(4 * gpu.multiprocessors()).max(1);
    Launch { grid: (blocks as u32, h.div_ceil(32) as u32, 1), block: (32, 8, 1), ..Launch::linear(blocks, 256) }
}

fn defines(dtype: DType) -> Vec<Define> {
    vec![Define::dtype("T", dtype)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [DType::F32, DType::Bf16].map(|t| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(t) }).to_vec()
}
