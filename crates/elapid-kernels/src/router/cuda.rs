//! On a GPU: a warp per position, its scores in shared memory.

use super::args::{CHECK, Router};
use crate::DType;
use crate::cuda::{Buffer, Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::product;

static SOURCE: Source = Source { name: "router", text: include_str!("router.cu") };
const ENTRIES: [&str; 9] =
    ["forward", "backward", "sum", "join", "spread_backward", "z_squares", "z_mean", "z_backward", "sinkhorn"];
/// Positions of a block: `WARPS` of the source.
const WARPS: usize = 4;

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    logits: RawMat,
    dlogits: RawMat,
    weights: RawMat,
    dweights: RawMat,
    correction: u64,
    factors: u64,
    picked: u64,
    spread: u64,
    partial: u64,
    logs: u64,
    squares: u64,
    mean: u64,
    dmean: u64,
    m: i64,
    scale: f32,
    experts: i32,
    k: i32,
    groups: i32,
    top_groups: i32,
    correct_logits: i32,
    sigmoid: i32,
    renormalise: i32,
    blocks: i32,
}

fn args(router: &Router, logits: &Mat<'_>) -> Args {
    // At most `super::MOST` each.
    let size = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
    Args {
        logits: logits.raw(),
        dlogits: RawMat::NULL,
        weights: RawMat::NULL,
        dweights: RawMat::NULL,
        correction: 0,
        factors: 0,
        picked: 0,
        spread: 0,
        partial: 0,
        logs: 0,
        squares: 0,
        mean: 0,
        dmean: 0,
        m: logits.rows() as i64,
        scale: router.scale,
        experts: size(logits.cols()),
        k: size(router.top_k),
        groups: size(router.groups),
        top_groups: size(router.top_groups),
        correct_logits: router.correct_logits.into(),
        sigmoid: router.sigmoid.into(),
        renormalise: router.renormalise.into(),
        blocks: 0,
    }
}

fn by_position(m: usize) -> Launch {
    Launch::linear(m.div_ceil(WARPS).min(1 << 20), 32 * WARPS as u32)
}

pub(super) fn forward(
    router: &Router,
    logits: Mat<'_>,
    correction: Option<Mat<'_>>,
    weights: MatMut<'_>,
) -> Result<Buffer> {
    let (gpu, m) = (logits.gpu(), logits.rows());
    let picked = gpu.alloc(product(&[m, router.top_k, 4]))?;
    let args = Args {
        weights: weights.raw(),
        correction: correction.map_or(0, |correction| correction.address()),
        picked: picked.address(),
        ..args(router, &logits)
    };
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(logits.dtype()))?;
    // SAFETY: `Args` is laid out as in the source; `super` has checked the shapes, and `picked` was made for them.
    unsafe { kernel.launch(by_position(m), &args)? };
    Ok(picked)
}

pub(super) fn backward(
    router: &Router,
    logits: Mat<'_>,
    picked: &Buffer,
    dweights: Mat<'_>,
    dlogits: MatMut<'_>,
) -> Result<()> {
    let args =
        Args { dlogits: dlogits.raw(), dweights: dweights.raw(), picked: picked.address(), ..args(router, &logits) };
    let kernel = logits.gpu().kernel(&SOURCE, "backward", &defines(logits.dtype()))?;
    // SAFETY: as in `forward`; picks that a forward left are experts.
    unsafe { kernel.launch(by_position(logits.rows()), &args) }
}

pub(super) fn spread(logits: Mat<'_>, picked: &Buffer, spread: MatMut<'_>) -> Result<()> {
    CHECK.that(spread.is_contiguous(), "spread", || "rows without gaps".into(), || "gaps".into())?;
    let (gpu, (m, experts)) = (logits.gpu(), logits.shape());
    let blocks = m.div_ceil(64).min(4 * gpu.multiprocessors());
    let partial = gpu.alloc(product(&[blocks, experts, 4]))?;
    let router = Router::top(picked.bytes() / 4 / m);
    let args = Args {
        picked: picked.address(),
        spread: spread.address(),
        partial: partial.address(),
        blocks: i32::try_from(blocks).unwrap_or(i32::MAX),
        ..args(&router, &logits)
    };
    let run = |entry, launch| {
        // SAFETY: as in `forward`; `partial` is a row of experts for each block of the first.
        unsafe { gpu.kernel(&SOURCE, entry, &defines(logits.dtype()))?.launch(launch, &args) }
    };
    run("sum", Launch::linear(blocks, 32 * WARPS as u32))?;
    run("join", Launch::linear(experts, 256))
}

pub(super) fn spread_backward(logits: Mat<'_>, dspread: Mat<'_>, dlogits: MatMut<'_>) -> Result<()> {
    CHECK.that(dspread.is_contiguous(), "dspread", || "rows without gaps".into(), || "gaps".into())?;
    let args = Args { dlogits: dlogits.raw(), spread: dspread.address(), ..args(&Router::top(1), &logits) };
    let kernel = logits.gpu().kernel(&SOURCE, "spread_backward", &defines(logits.dtype()))?;
    // SAFETY: as in `forward`.
    unsafe { kernel.launch(by_position(logits.rows()), &args) }
}

pub(super) fn z_loss(logits: Mat<'_>, logs: MatMut<'_>, mean: MatMut<'_>) -> Result<()> {
    let (gpu, m) = (logits.gpu(), logits.rows());
    // A number of blocks that depends on the size alone, so that the sum does not depend on the device.
    let blocks = m.div_ceil(8 * WARPS).clamp(1, 256);
    let squares = gpu.alloc(blocks * size_of::<f64>())?;
    let args = Args {
        logs: logs.address(),
        squares: squares.address(),
        mean: mean.address(),
        blocks: i32::try_from(blocks).unwrap_or(i32::MAX),
        ..args(&Router::top(1), &logits)
    };
    let run = |entry, launch| {
        // SAFETY: as in `forward`; there is a place in `logs` for every position, and one in `squares` for every block.
        unsafe { gpu.kernel(&SOURCE, entry, &defines(logits.dtype()))?.launch(launch, &args) }
    };
    run("z_squares", Launch::linear(blocks, 32 * WARPS as u32))?;
    run("z_mean", Launch::linear(1, 1))
}

pub(super) fn z_loss_backward(logits: Mat<'_>, logs: Mat<'_>, dmean: Mat<'_>, dlogits: MatMut<'_>) -> Result<()> {
    let gpu = logits.gpu();
    let dmean = dmean.address();
    let args = Args { dlogits: dlogits.raw(), logs: logs.address(), dmean, ..args(&Router::top(1), &logits) };
    let blocks = logits.len().div_ceil(256).min(16 * gpu.multiprocessors());
    // SAFETY: as in `forward`.
    unsafe { gpu.kernel(&SOURCE, "z_backward", &defines(logits.dtype()))?.launch(Launch::linear(blocks, 256), &args) }
}

pub(super) fn sinkhorn(logits: Mat<'_>, correction: MatMut<'_>) -> Result<()> {
    let gpu = logits.gpu();
    let factors = gpu.alloc(product(&[logits.rows(), 2, 4]))?;
    let args = Args { correction: correction.address(), factors: factors.address(), ..args(&Router::top(1), &logits) };
    // SAFETY: as in `forward`; `factors` has two numbers for each position, and there are at most 1024 experts.
    unsafe { gpu.kernel(&SOURCE, "sinkhorn", &defines(logits.dtype()))?.launch(Launch::linear(1, 1024), &args) }
}

fn defines(dtype: DType) -> Vec<Define> {
    vec![Define::dtype("T", dtype)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [DType::F32, DType::Bf16].map(|t| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(t) }).to_vec()
}
