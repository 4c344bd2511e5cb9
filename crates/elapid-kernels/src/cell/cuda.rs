//! On a GPU: a sequence in one launch where the matrix of a head fits into the shared memory of a multiprocessor, else a launch for
//! each position (`cell.cu`). The gradients of the matrix and the bias are sums over all positions at the end.

use super::args::{Args, CHECK, Dims, Grads, Kind, Outputs};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::product;
use crate::linear::cuda as linear;

static SOURCE: Source = Source { name: "cell", text: include_str!("cell.cu") };
const ENTRIES: [&str; 3] = ["forward", "backward", "transpose"];
/// Threads of a block, at most.
const THREADS: usize = 512;
/// Channels of a block that does not have all of a head.
const CHANNELS: usize = 32;

/// What the forward leaves for the backward: of every position what its nonlinearities read, and the states after it but h, `[b l
/// (read c n m) d]` f32.
#[derive(Debug)]
pub(in crate::cell) struct Saved {
    values: Buffer,
    made_for: (Dims, Kind),
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        self.values.bytes()
    }

    pub(super) fn made_for(&self) -> (Dims, Kind) {
        self.made_for
    }

    /// Whether a forward of these sizes left it, on this device.
    pub(super) fn is_for(&self, dims: Dims, kind: Kind, gpu: Gpu) -> bool {
        self.made_for == (dims, kind) && self.values.gpu() == gpu
    }
}

/// `Args` of the source.
#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    y: RawMat,
    dy: RawMat,
    dx: RawMat,
    dq: RawMat,
    before: RawMat,
    matrix: u64,
    bias: u64,
    initial: u64,
    states: u64,
    last: u64,
    saved: u64,
    passed: u64,
    lengths: u64,
    resets: u64,
    b: i64,
    l: i64,
    from: i64,
    to: i64,
    d: i32,
    w: i32,
    channels: i32,
}

impl Raw {
    fn new(dims: Dims, args: &Args<Mat<'_>>) -> Result<Self> {
        let null = RawMat::NULL;
        let size = |x: usize| i32::try_from(x).map_err(|_| CHECK.fault("d", "fewer channels".into(), x.to_string()));
        Ok(Self {
            x: args.x.raw(),
            y: null,
            dy: null,
            dx: null,
            dq: null,
            before: null,
            matrix: args.recurrent.address(),
            bias: args.bias.map_or(0, |bias| bias.address()),
            initial: args.initial.map_or(0, |initial| initial.address()),
            states: 0,
            last: 0,
            saved: 0,
            passed: 0,
            lengths: args.segments.lengths_address(),
            resets: args.segments.resets_address(),
            b: dims.b as i64,
            l: dims.l as i64,
            from: 0,
            to: dims.l as i64,
            d: size(dims.d)?,
            w: size(dims.d / dims.heads)?,
            channels: 0,
        })
    }
}

/// How a pass divides its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    /// Whether the matrix stays in shared memory, and a launch is a whole sequence.
    resident: bool,
    /// Threads that share a sum. The order of sums follows from it, so it depends on the sizes of a head alone.
    slices: usize,
    /// Channels of a block.
    channels: usize,
    /// Rows of the batch in a block.
    rows: usize,
    /// Bytes of shared memory.
    shared: usize,
    /// Blocks of channels, in all heads.
    across: usize,
}

impl Form {
    /// Of products with `inner` values that give `vectors` for each channel.
    fn new(gpu: Gpu, dims: Dims, dtype: DType, (inner, vectors): (usize, usize)) -> Result<Self> {
        let (width, most) = (dims.d / dims.heads, most_shared(gpu.capability()));
        let of = |resident: bool, rows: usize| {
            let channels = if resident { width.next_multiple_of(32) } else { CHANNELS };
            // A power of two, at most 16.
            let slices = (THREADS / channels.min(THREADS)).clamp(1, 16);
            let slices = 1 << slices.ilog2();
            let values = product(&[rows, inner]).saturating_add(product(&[slices, rows, vectors, channels]));
            let matrix = if resident { product(&[inner, vectors, width, dtype.bytes()]) } else { 0 };
            let shared = product(&[values, 4]).saturating_add(matrix);
            Self { resident, slices, channels, rows, shared, across: dims.heads * width.div_ceil(channels) }
        };
        // Whether it is resident depends on the head alone, as the order of sums does.
        let resident = width <= THREADS && of(true, 1).shared <= most;
        // As few rows in a block as keep the multiprocessors busy with one block each.
        let wanted = of(resident, 1).across.saturating_mul(dims.b).div_ceil(gpu.multiprocessors().max(1));
        let limit = if resident { 8 } else { 4 };
        let fits = |rows: &usize| of(resident, *rows).shared <= most;
        let rows = [8, 4, 2, 1].into_iter().filter(|&rows| rows == 1 || (rows <= limit && rows < 2 * wanted));
        match rows.clone().find(fits) {
            Some(rows) => Ok(of(resident, rows)),
            None => {
                Err(CHECK.fault("d", "narrower heads on a GPU".into(), format!("{width} channels of a head")).into())
            }
        }
    }

    fn defines(&self, kind: Kind, dtype: DType) -> Vec<Define> {
        vec![
            Define::dtype("T", dtype),
            // The source has kinds in the order of the enum.
            Define::new("KIND", kind as usize),
            Define::new("RESIDENT", u8::from(self.resident)),
            Define::new("ROWS", self.rows),
            Define::new("SLICES", self.slices),
        ]
    }

    fn launch(&self, b: usize) -> Launch {
        Launch {
            grid: (self.across as u32, b.div_ceil(self.rows) as u32, 1),
            block: ((self.slices * self.channels) as u32, 1, 1),
            shared: self.shared as u32,
            overlap: false,
        }
    }

    /// Checks that the grid is one that a device has.
    fn check(&self, b: usize) -> Result<()> {
        let fits = self.across <= i32::MAX as usize && b.div_ceil(self.rows) <= 65_535;
        Ok(CHECK.that(fits, "x", || "fewer rows on a GPU".into(), || format!("{b} rows"))?)
    }
}

/// Bytes of shared memory that a block can have.
fn most_shared(capability: (u32, u32)) -> usize {
    match capability {
        (9 | 10, _) => 226 << 10,
        (8, 0 | 7) | (11, _) => 162 << 10,
        _ => 98 << 10,
    }
}

pub(super) fn forward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    y: MatMut<'_>,
    last: MatMut<'_>,
    keep: bool,
) -> Result<Option<Saved>> {
    let (gpu, kind, dtype) = (y.gpu(), args.kind, args.x.dtype());
    let (Dims { b, l, d, .. }, width, count) = (dims, dims.d / dims.heads, dims.states(kind));
    let values = keep.then(|| gpu.alloc(product(&[b, l, kind.saved(), d, 4]))).transpose()?;
    if count > 0 && l == 0 {
        copy_or_zero(gpu, args.initial, last)?;
    } else if count > 0 {
        let form = Form::new(gpu, dims, dtype, (width, kind.gates()))?;
        form.check(b)?;
        // A copy, as the last state may be written where the first one is.
        let states = gpu.alloc(product(&[2, count, 4]))?;
        copy_or_zero(gpu, args.initial, states.mat_mut(1, count, DType::F32))?;
        let transposed = gpu.alloc(product(&[kind.gates(), d, width, dtype.bytes()]))?;
        let raw = Raw {
            y: y.raw(),
            states: states.address(),
            last: last.address(),
            saved: values.as_ref().map_or(0, Buffer::address),
            channels: form.channels as i32,
            ..Raw::new(dims, args)?
        };
        let defines = form.defines(kind, dtype);
        let tiles = Launch {
            grid: (width.div_ceil(32) as u32, (kind.gates() * width).div_ceil(32) as u32, dims.heads as u32),
            block: (32, 8, 1),
            shared: 0,
            overlap: false,
        };
        let few = dims.heads <= 65_535 && kind.gates() * width <= 1 << 20;
        CHECK.that(few, "d", || "fewer channels on a GPU".into(), || format!("{d}"))?;
        let turn = Raw { last: transposed.address(), ..raw };
        // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats, and the buffers were made for
        // them.
        unsafe { gpu.kernel(&SOURCE, "transpose", &defines)?.launch(tiles, &turn)? };
        let raw = Raw { matrix: transposed.address(), ..raw };
        let kernel = gpu.kernel(&SOURCE, "forward", &defines)?;
        let step = if form.resident { l } else { 1 };
        for from in (0..l).step_by(step) {
            let raw = Raw { from: from as i64, to: (from + step) as i64, ..raw };
            // SAFETY: as above.
            unsafe { kernel.launch(form.launch(b), &raw)? };
        }
    }
    Ok(values.map(|values| Saved { values, made_for: (dims, kind) }))
}

pub(super) fn backward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    saved: &Saved,
    outputs: &Outputs<Mat<'_>>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let (gpu, kind, dtype) = (args.x.gpu(), args.kind, args.x.dtype());
    let (Dims { b, l, d, .. }, width, count) = (dims, dims.d / dims.heads, dims.states(kind));
    let (gates, Grads { dx, drecurrent, dbias, dinitial }) = (kind.gates(), grads);
    if count == 0 {
        return Ok(());
    }
    let form = Form::new(gpu, dims, dtype, (gates * width, 1))?;
    form.check(b)?;
    let (states, passed) = (gpu.alloc(product(&[count, 4]))?, gpu.alloc(product(&[2, b, gates, d, 4]))?);
    copy_or_zero(gpu, outputs.dlast, states.mat_mut(1, count, DType::F32))?;
    gpu.zero(passed.mat_mut(1, 2 * b * gates * d, DType::F32))?;
    let activations = |cols: usize| gpu.alloc(product(&[b, l, cols, dtype.bytes()]));
    let (dq, before) = (activations(gates * d)?, activations(d)?);
    let (dq, before) = (dq.mat_mut(b * l, gates * d, dtype), before.mat_mut(b * l, d, dtype));
    let raw = Raw {
        y: outputs.y.raw(),
        dy: outputs.dy.raw(),
        dx: dx.raw(),
        dq: dq.raw(),
        before: before.raw(),
        states: states.address(),
        last: dinitial.as_ref().map_or(0, |dinitial| dinitial.address()),
        saved: saved.values.address(),
        passed: passed.address(),
        channels: form.channels as i32,
        ..Raw::new(dims, args)?
    };
    let kernel = gpu.kernel(&SOURCE, "backward", &form.defines(kind, dtype))?;
    // The initial state is position -1.
    let end = if dinitial.is_some() { -1 } else { 0 };
    let mut to = l as i64;
    while to > end {
        let from = if form.resident { end } else { to - 1 };
        let raw = Raw { from, to, ..raw };
        // SAFETY: as in `forward`; position -1 is asked for where there is a gradient of the initial state to write.
        unsafe { kernel.launch(form.launch(b), &raw)? };
        to = from;
    }
    let (dq, before) = (dq.as_mat(), before.as_mat());
    let mut du = drecurrent.reshaped(gates * d, width);
    for head in 0..dims.heads {
        let du = du.reborrow().rows_range(head * gates * width, gates * width);
        let (dq, h) = (dq.columns(head * gates * width, gates * width), before.columns(head * width, width));
        linear::matmul((dq, true), (h, false), du, 1.0)?;
    }
    match dbias {
        Some(dbias) => bias_sums(dims, kind, dq, dx.as_mat(), dbias.reshaped(1, gates * d)),
        None => Ok(()),
    }
}

/// dbias `[1 (gate d)]` += Σ dq. The gradient of U h is that of x, but for a gate of the GRU; with one head both have the same
/// columns.
fn bias_sums(dims: Dims, kind: Kind, dq: Mat<'_>, dx: Mat<'_>, mut dbias: MatMut<'_>) -> Result<()> {
    let (d, width, gates) = (dims.d, dims.d / dims.heads, kind.gates());
    if dims.heads == 1 || kind != Kind::Gru {
        return linear::backward_bias(if dims.heads == 1 { dq } else { dx }, dbias);
    }
    for (head, gate) in (0..dims.heads).flat_map(|head| (0..gates).map(move |gate| (head, gate))) {
        let of = dbias.reborrow().columns(gate * d + head * width, width);
        linear::backward_bias(dq.columns((head * gates + gate) * width, width), of)?;
    }
    Ok(())
}

/// to = from, or 0 if there is none, both f32 without gaps.
fn copy_or_zero(gpu: Gpu, from: Option<Mat<'_>>, to: MatMut<'_>) -> Result<()> {
    match from {
        Some(from) => gpu.copy(from.flat(), to.flat()),
        None => gpu.zero(to),
    }
}

/// Every kind, resident and not.
pub(crate) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for (kind, dtype) in Kind::ALL.into_iter().flat_map(|kind| [DType::F32, DType::Bf16].map(|dtype| (kind, dtype))) {
        for (resident, slices, rows) in [(true, 8, 1), (true, 4, 8), (false, 16, 4)] {
            let form = Form { resident, slices, channels: 0, rows, shared: 0, across: 0 };
            units.push(Unit { source: &SOURCE, entries: &ENTRIES, defines: form.defines(kind, dtype) });
        }
    }
    units
}
