//! On a GPU: x, y and their gradients in the dtype of activations, everything else f32. A thread keeps the window of its
//! channels in registers along a range of positions; ranges write partial sums of the weights' gradients, which are added in
//! order.

use super::{Args, Dims, Grads};
use crate::DType;
use crate::cuda::{Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::product;

static SOURCE: Source = Source { name: "causal_conv1d", text: include_str!("causal_conv1d.cu") };
const ENTRIES: [&str; 4] = ["forward", "window", "step", "backward"];
/// Threads of a block: 32 across the channels, 4 stretches.
const BLOCK: (u32, u32, u32) = (32, 4, 1);

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    weight: u64,
    bias: u64,
    initial: u64,
    lengths: u64,
    resets: u64,
    y: RawMat,
    last: u64,
    dy: RawMat,
    dlast: u64,
    dx: RawMat,
    dinitial: u64,
    partial: RawMat,
    b: i64,
    l: i64,
    d: i64,
    stretch: i64,
    silu: i32,
}

pub(super) fn forward(dims: Dims, args: &Args<Mat<'_>>, y: MatMut<'_>, last: MatMut<'_>) -> Result<()> {
    let Dims { b, l, d, k } = dims;
    let (gpu, windows) = (y.gpu(), b * (k - 1));
    let (channels, stretch) = (channels(d, args, &[&y.as_mat(), &last.as_mat().flat()]), 32);
    let raw = Raw { y: y.raw(), last: last.address(), ..Raw::new(dims, args, stretch) };
    let defines = defines(args.x.dtype(), k, channels, args.segments.resets.is_some());
    if l == 1 && b * d > 0 {
        let launch = Launch::linear((d / channels).div_ceil(128) * b, 128);
        // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats.
        return unsafe { gpu.kernel(&SOURCE, "step", &defines)?.launch(launch, &raw) };
    }
    if windows * d > 0 {
        let launch = Launch::linear((windows * d).div_ceil(128), 128);
        // SAFETY: as above.
        unsafe { gpu.kernel(&SOURCE, "window", &defines)?.launch(launch, &raw)? };
    }
    if b * l == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    unsafe { gpu.kernel(&SOURCE, "forward", &defines)?.launch(launch(dims, channels, stretch), &raw) }
}

pub(super) fn backward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    dy: Mat<'_>,
    dlast: Option<Mat<'_>>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let Dims { b, l, d, k } = dims;
    let (gpu, Grads { dx, dweight, dbias, dinitial }) = (dy.gpu(), grads);
    if b * l == 0 {
        return match (dlast, dinitial) {
            (Some(dlast), Some(dinitial)) => gpu.copy(dlast.flat(), dinitial.flat()),
            (None, Some(dinitial)) => gpu.zero(dinitial),
            _ => Ok(()),
        };
    }
    let channels = channels(d, args, &[&dy, &dx.as_mat()]);
    let stretch = 64;
    let jobs = b * l.div_ceil(stretch);
    let partial = gpu.alloc(product(&[jobs, d, k + 1, 4]))?;
    let partial = partial.mat_mut(jobs, d * (k + 1), DType::F32);
    let raw = Raw {
        dy: dy.raw(),
        dlast: dlast.map_or(0, |m| m.address()),
        dx: dx.raw(),
        dinitial: dinitial.as_ref().map_or(0, MatMut::address),
        partial: partial.raw(),
        ..Raw::new(dims, args, stretch)
    };
    let kernel =
        gpu.kernel(&SOURCE, "backward", &defines(args.x.dtype(), k, channels, args.segments.resets.is_some()))?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats, and `partial` has a row for
    // every stretch.
    unsafe { kernel.launch(launch(dims, channels, stretch), &raw)? };
    elementwise::add_rows(&gpu, partial.as_mat().columns(0, d * k), dweight)?;
    match dbias {
        Some(dbias) => elementwise::add_rows(&gpu, partial.as_mat().columns(d * k, d), dbias),
        None => Ok(()),
    }
}

impl Raw {
    fn new(dims: Dims, args: &Args<Mat<'_>>, stretch: usize) -> Self {
        Self {
            x: args.x.raw(),
            weight: args.weight.address(),
            bias: args.bias.map_or(0, |m| m.address()),
            initial: args.initial.map_or(0, |m| m.address()),
            lengths: args.segments.lengths_address(),
            resets: args.segments.resets_address(),
            y: RawMat::NULL,
            last: 0,
            dy: RawMat::NULL,
            dlast: 0,
            dx: RawMat::NULL,
            dinitial: 0,
            partial: RawMat::NULL,
            b: dims.b as i64,
            l: dims.l as i64,
            d: dims.d as i64,
            stretch: stretch as i64,
            silu: args.silu.into(),
        }
    }
}

fn launch(dims: Dims, channels: usize, stretch: usize) -> Launch {
    let across = dims.d.div_ceil(32 * channels);
    let down = (dims.b * dims.l.div_ceil(stretch)).div_ceil(BLOCK.1 as usize);
    Launch { grid: (across as u32, down as u32, 1), block: BLOCK, shared: 0, overlap: false }
}

/// Channels of a thread: 4 where all that it reads and writes can be by four numbers.
fn channels(d: usize, args: &Args<Mat<'_>>, others: &[&Mat<'_>]) -> usize {
    let initial = args.initial.map(|initial| initial.flat());
    let mut all = [Some(&args.x), initial.as_ref()].into_iter().flatten().chain(others.iter().copied());
    let weights = args.weight.address().is_multiple_of(16);
    if d.is_multiple_of(4) && weights && all.all(Mat::reads_four) { 4 } else { 1 }
}

fn defines(dtype: DType, k: usize, channels: usize, segments: bool) -> Vec<Define> {
    let segments = Define::new("SEGMENTS", i32::from(segments));
    vec![Define::dtype("T", dtype), Define::new("K", k), Define::new("CH", channels), segments]
}

/// Specialisations: all of widths 1 to 4.
pub(crate) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        for k in 1..=4 {
            for (channels, segments) in [(1, true), (4, true), (4, false)] {
                let defines = defines(dtype, k, channels, segments);
                units.push(Unit { source: &SOURCE, entries: &ENTRIES, defines });
            }
        }
    }
    units
}
