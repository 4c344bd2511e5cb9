//! On a GPU: x, y and their gradients in the dtype of activations, everything else f32. A thread keeps the window of its
//! channels in registers along a range of positions; ranges write partial sums of the weights' gradients, which are added in
//! order.

use super::Dims;
use crate::DType;
use crate::cuda::{Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Segments, Source, Unit, elementwise};
use crate::error::{Check, product};

static SOURCE: Source = Source { name: "causal_conv1d", text: include_str!("causal_conv1d.cu") };
const ENTRIES: [&str; 4] = ["forward", "window", "step", "backward"];
const CHECK: Check = Check("causal_conv1d");
/// Threads per block: 32 across the channels, times 4 ranges of positions.
const BLOCK: (u32, u32, u32) = (32, 4, 1);

/// The inputs of the convolution; as [`super::Args`].
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    /// `[b l d]`.
    pub x: Mat<'a>,
    /// `[d k]` f32.
    pub weight: Mat<'a>,
    /// `[d]` f32.
    pub bias: Option<Mat<'a>>,
    /// `[b k-1 d]` f32, zeros if absent.
    pub initial: Option<Mat<'a>>,
    /// Padding and packed documents.
    pub segments: Segments<'a>,
    /// Whether SiLU is applied, x sigmoid(x).
    pub silu: bool,
}

/// The outputs of the backward; as [`super::Grads`].
#[derive(Debug)]
pub struct Grads<'a> {
    /// `[b l d]` (=).
    pub dx: MatMut<'a>,
    /// `[d k]` f32 (+=).
    pub dweight: MatMut<'a>,
    /// `[d]` f32 (+=).
    pub dbias: Option<MatMut<'a>>,
    /// `[b k-1 d]` f32 (=).
    pub dinitial: Option<MatMut<'a>>,
}

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

/// Convolves: `y` `[b l d]` (=), `last` `[b k-1 d]` f32 (=), the last raw inputs of each row, oldest first. At a length of 1
/// `last` may be the memory of `initial`.
///
/// # Errors
/// If shapes or dtypes differ, or `k` is 0.
pub fn forward(gpu: &Gpu, dims: Dims, args: &Args<'_>, y: MatMut<'_>, last: MatMut<'_>) -> Result<()> {
    let Dims { b, l, d, k } = dims;
    check(dims, args)?;
    same("y", &y.as_mat(), &args.x)?;
    let windows = (b * (k - 1), d);
    CHECK.len("last", last.len(), windows.0 * d)?;
    f32s("last", &last.as_mat())?;
    let (channels, stretch) = (channels(d, args, &[&y.as_mat(), &last.as_mat().flat()]), 32);
    let raw = Raw { y: y.raw(), last: last.address(), ..Raw::new(dims, args, stretch) };
    let defines = defines(args.x.dtype(), k, channels, args.segments.resets.is_some());
    if l == 1 && b * d > 0 {
        let launch = Launch::linear((d / channels).div_ceil(128) * b, 128);
        // SAFETY: `Raw` is laid out as in the source; all matrices lie inside their buffers.
        return unsafe { gpu.kernel(&SOURCE, "step", &defines)?.launch(launch, &raw) };
    }
    if windows.0 * d > 0 {
        let launch = Launch::linear((windows.0 * d).div_ceil(128), 128);
        // SAFETY: `Raw` is laid out as in the source; all matrices lie inside their buffers.
        unsafe { gpu.kernel(&SOURCE, "window", &defines)?.launch(launch, &raw)? };
    }
    if b * l == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    unsafe { gpu.kernel(&SOURCE, "forward", &defines)?.launch(launch(dims, channels, stretch), &raw) }
}

/// The gradient of [`forward`]: `dy` `[b l d]`; `dlast` `[b k-1 d]` f32 is the gradient of `last` from the next chunk.
///
/// # Errors
/// If shapes or dtypes differ, or there is too little memory.
pub fn backward(
    gpu: &Gpu,
    dims: Dims,
    args: &Args<'_>,
    dy: Mat<'_>,
    dlast: Option<Mat<'_>>,
    grads: Grads<'_>,
) -> Result<()> {
    let Dims { b, l, d, k } = dims;
    check(dims, args)?;
    let Grads { dx, dweight, dbias, dinitial } = grads;
    same("dy", &dy, &args.x)?;
    same("dx", &dx.as_mat(), &args.x)?;
    CHECK.len("dweight", dweight.len(), d * k)?;
    f32s("dweight", &dweight.as_mat())?;
    for (name, window) in [("dlast", dlast), ("dinitial", dinitial.as_ref().map(MatMut::as_mat))] {
        if let Some(window) = window {
            CHECK.len(name, window.len(), b * (k - 1) * d)?;
            f32s(name, &window)?;
        }
    }
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
    // SAFETY: `Raw` is laid out as in the source; all matrices lie inside their buffers.
    unsafe { kernel.launch(launch(dims, channels, stretch), &raw)? };
    elementwise::add_rows(gpu, partial.as_mat().columns(0, d * k), dweight)?;
    match dbias {
        Some(dbias) => elementwise::add_rows(gpu, partial.as_mat().columns(d * k, d), dbias),
        None => Ok(()),
    }
}

impl Raw {
    fn new(dims: Dims, args: &Args<'_>, stretch: usize) -> Self {
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

/// Channels per thread: 4 if everything it reads and writes can be vectors of four values.
fn channels(d: usize, args: &Args<'_>, others: &[&Mat<'_>]) -> usize {
    let initial = args.initial.map(|initial| initial.flat());
    let mut all = [Some(&args.x), initial.as_ref()].into_iter().flatten().chain(others.iter().copied());
    let weights = args.weight.address().is_multiple_of(16);
    if d.is_multiple_of(4) && weights && all.all(Mat::reads_four) { 4 } else { 1 }
}

fn check(dims: Dims, args: &Args<'_>) -> Result<()> {
    let Dims { b, l, d, k } = dims;
    CHECK.that(k > 0, "k", || "at least 1".into(), || "0".into())?;
    CHECK.sizes([b, l, d, k])?;
    CHECK.shape("x", args.x.shape(), (b * l, d))?;
    CHECK.len("weight", args.weight.len(), d * k)?;
    f32s("weight", &args.weight)?;
    if let Some(bias) = &args.bias {
        CHECK.len("bias", bias.len(), d)?;
        f32s("bias", bias)?;
    }
    if let Some(initial) = &args.initial {
        CHECK.len("initial", initial.len(), b * (k - 1) * d)?;
        f32s("initial", initial)?;
    }
    Ok(args.segments.check("causal_conv1d", b, l)?)
}

fn same(name: &'static str, m: &Mat<'_>, x: &Mat<'_>) -> Result<()> {
    CHECK.shape(name, m.shape(), x.shape())?;
    CHECK.that(m.dtype() == x.dtype(), name, || x.dtype().to_string(), || m.dtype().to_string())?;
    Ok(())
}

fn f32s(name: &'static str, m: &Mat<'_>) -> Result<()> {
    CHECK.that(m.dtype() == DType::F32, name, || "f32".into(), || m.dtype().to_string())?;
    CHECK.that(m.is_contiguous(), name, || "no gaps between rows".into(), || format!("{m:?}"))?;
    Ok(())
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
