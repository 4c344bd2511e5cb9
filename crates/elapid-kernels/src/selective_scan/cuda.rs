//! On a GPU: activations and their gradients in one dtype, states, A and parameters in f32.
//!
//! A block owns some channels of one sequence and walks along it with the state in registers. If there are too few sequences
//! and channels to fill the device, the length is split into chunks. First each chunk computes its final state from zeros
//! and its factor of the initial state, then the states between chunks are computed one after another, then all chunks run
//! in parallel from these states. dB and dC are summed over the channels of a block, and over blocks in order by a separate
//! kernel.
//!
//! The common case, bf16 with 16 states and Ā = exp(ΔA), has separate kernels on tensor cores (`tensor.cuh`), and a single
//! position has one in `step.cu`.

use super::args::CHECK;
use super::{Args, Dims, Discretisation, Grads, Outputs};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::product;

static SOURCE: Source =
    Source { name: "selective_scan", text: concat!(include_str!("scan.cuh"), include_str!("selective_scan.cu")) };
static TENSOR: Source = Source {
    name: "selective_scan_tensor",
    text: concat!(
        include_str!("scan.cuh"),
        include_str!("tensor.cuh"),
        include_str!("tensor_forward.cu"),
        include_str!("tensor_backward.cu"),
        include_str!("tensor_chunks.cu")
    ),
};
static STEP: Source =
    Source { name: "selective_scan_step", text: concat!(include_str!("scan.cuh"), include_str!("step.cu")) };
const ENTRIES: [&str; 7] =
    ["forward", "forward_ends", "chain_forward", "chain_backward", "backward_ends", "backward", "join"];
const THREADS: usize = 128;
/// Rows per thread for a single position: `BATCH` of `step.cu`.
const STEP_ROWS: usize = 4;
/// Chunks begin at multiples of this.
const TILE: usize = 32;

/// The states before every few positions; on tensor cores in bf16.
#[derive(Debug)]
pub(super) struct Saved {
    states: Buffer,
    dims: Dims,
    tensor: bool,
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        self.states.bytes()
    }

    pub(super) fn dims(&self) -> Dims {
        self.dims
    }

    pub(super) fn gpu(&self) -> Gpu {
        self.states.gpu()
    }

    /// Whether a forward of these sizes left it, on this device.
    pub(super) fn is_for(&self, dims: Dims, gpu: Gpu) -> bool {
        self.dims == dims && self.gpu() == gpu
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    u: RawMat,
    delta: RawMat,
    delta_bias: u64,
    a: u64,
    b: RawMat,
    c: RawMat,
    skip: u64,
    z: RawMat,
    initial: u64,
    lengths: u64,
    resets: u64,
    y: RawMat,
    last: u64,
    saved: u64,
    starts: u64,
    ends: u64,
    decays: u64,
    dy: RawMat,
    dlast: u64,
    du: RawMat,
    ddelta: RawMat,
    db: RawMat,
    dc: RawMat,
    dz: RawMat,
    dinitial: u64,
    partial_a: RawMat,
    partial_d: RawMat,
    partial_bc: u64,
    da: u64,
    dbias: u64,
    dskip: u64,
    batch: i64,
    l: i64,
    d: i64,
    chunk: i64,
    chunks: i64,
    n: i32,
    softplus: i32,
}

/// Lanes per channel, and states per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    lanes: usize,
    states: usize,
}

impl Form {
    const ALL: [Self; 7] = [
        Self { lanes: 4, states: 1 },
        Self { lanes: 4, states: 2 },
        Self { lanes: 4, states: 4 },
        Self { lanes: 8, states: 4 },
        Self { lanes: 16, states: 4 },
        Self { lanes: 32, states: 4 },
        Self { lanes: 32, states: 8 },
    ];

    /// Whether the sizes suit `tensor.cuh`.
    const TENSOR: Self = Self { lanes: 4, states: 4 };

    fn of(n: usize) -> Result<Self> {
        let form = Self::ALL.into_iter().find(|form| form.padded() >= n);
        Ok(form.ok_or_else(|| CHECK.fault("n", "at most 256 on a GPU".into(), n.to_string()))?)
    }

    /// States per channel, with padding.
    fn padded(self) -> usize {
        self.lanes * self.states
    }

    fn channels(self) -> usize {
        THREADS / self.lanes
    }

    /// Positions between saved states: `SAVE` of the source.
    fn save(self) -> usize {
        match self.padded() {
            256.. => 4,
            128.. => 8,
            _ => 16,
        }
    }
}

/// How a call is split over the device.
struct Plan {
    gpu: Gpu,
    dims: Dims,
    form: Form,
    source: &'static Source,
    tensor: bool,
    groups: usize,
    chunk: usize,
    chunks: usize,
    defines: Vec<Define>,
}

impl Plan {
    fn new(gpu: Gpu, dims: Dims, args: &Args<Mat<'_>>, others: &[&Mat<'_>], tensor: bool) -> Result<Self> {
        let form = if tensor { Form::TENSOR } else { Form::of(dims.n)? };
        let groups = dims.d.div_ceil(form.channels());
        let blocks = (dims.b * groups).max(1);
        // As many blocks as the device holds at a time, with chunks long enough to make up for their overhead.
        let (wanted, least) = if tensor {
            (3 * gpu.multiprocessors() / blocks, 256)
        } else if blocks < gpu.multiprocessors() {
            ((4 * gpu.multiprocessors()).div_ceil(blocks), 8 * TILE)
        } else {
            (1, 0)
        };
        let whole = dims.l.next_multiple_of(TILE).max(TILE);
        let chunk = dims.l.div_ceil(wanted.max(1)).next_multiple_of(TILE).max(least).min(whole);
        let chunks = dims.l.div_ceil(chunk).max(1);
        let (source, defines) = if tensor {
            (&TENSOR, tensor_defines(args.z.is_some(), args.segments.resets.is_some()))
        } else {
            let rows = [Some(&args.u), Some(&args.delta), args.z.as_ref()];
            let aligned = rows.into_iter().flatten().chain(others.iter().copied()).all(Mat::is_aligned);
            let whole = dims.n == 16 && dims.d.is_multiple_of(8);
            let vector = whole && aligned && args.b.reads_four() && args.c.reads_four();
            (&SOURCE, defines(args.u.dtype(), form, args.rule, vector, args.segments.resets.is_some()))
        };
        Ok(Self { gpu, dims, form, source, tensor, groups, chunk, chunks, defines })
    }

    /// Positions between saved states.
    fn save(&self) -> usize {
        if self.tensor { 8 } else { self.form.save() }
    }

    fn launch(&self) -> Launch {
        let grid = (self.groups as u32, self.chunks as u32, self.dims.b as u32);
        Launch { grid, ..Launch::linear(1, THREADS as u32) }
    }

    /// The launch of `forward`, which on tensor cores has twice the threads: half of them prepare and finish tiles.
    fn launch_forward(&self) -> Launch {
        let threads = if self.tensor { 2 * THREADS } else { THREADS };
        Launch { block: (threads as u32, 1, 1), ..self.launch() }
    }

    /// Bytes of one state per chunk.
    fn states(&self) -> usize {
        product(&[self.dims.b, self.chunks, self.dims.d, self.form.padded(), 4])
    }

    /// Runs a kernel.
    fn run(&self, entry: &'static str, launch: Launch, raw: &Raw) -> Result<()> {
        // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats, and what was allocated was
        // sized by this plan.
        unsafe { self.gpu.kernel(self.source, entry, &self.defines)?.launch(launch, raw) }
    }

    /// The states before all chunks, or the gradients behind them, by `ends` of each chunk and the `chain` over them.
    fn starts(&self, [ends, chain]: [&'static str; 2], raw: &Raw) -> Result<Option<Buffer>> {
        if self.chunks == 1 {
            return Ok(None);
        }
        let states = || self.gpu.alloc(self.states());
        let [starts, end, decay] = [states()?, states()?, states()?];
        let raw = Raw { starts: starts.address(), ends: end.address(), decays: decay.address(), ..*raw };
        let mut launch = self.launch();
        if self.tensor {
            // The final state of the last chunk is not needed, and neither is the gradient before the first.
            launch.grid.1 -= 1;
        }
        self.run(ends, launch, &raw)?;
        let threads = self.dims.b * self.dims.d * self.form.padded();
        self.run(chain, Launch::linear(threads.div_ceil(THREADS), THREADS as u32), &raw)?;
        Ok(Some(starts))
    }
}

pub(super) fn forward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    y: MatMut<'_>,
    last: MatMut<'_>,
    keep: bool,
) -> Result<Option<Saved>> {
    let Dims { b, l, d, .. } = dims;
    if l == 1 && !keep {
        return one_position(dims, args, &y, &last).map(|()| None);
    }
    let gpu = y.gpu();
    let tensor = suits_tensor_cores(dims, args) && is_aligned(args, &[&y.as_mat()]);
    let plan = Plan::new(gpu, dims, args, &[&y.as_mat()], tensor)?;
    let keep = match keep {
        true => {
            let bytes = if tensor { DType::Bf16 } else { DType::F32 }.bytes();
            Some(gpu.alloc(product(&[b, l.div_ceil(plan.save()), d, plan.form.padded(), bytes]))?)
        }
        false => None,
    };
    if b * l == 0 {
        match args.initial {
            Some(initial) => gpu.copy(initial.flat(), last.flat())?,
            None => gpu.zero(last)?,
        }
    } else {
        let raw = Raw {
            y: y.raw(),
            last: last.address(),
            saved: keep.as_ref().map_or(0, Buffer::address),
            ..Raw::new(dims, (plan.chunk, plan.chunks), args)
        };
        let starts = plan.starts(["forward_ends", "chain_forward"], &raw)?;
        let raw = Raw { starts: starts.as_ref().map_or(0, Buffer::address), ..raw };
        plan.run("forward", plan.launch_forward(), &raw)?;
    }
    Ok(keep.map(|states| Saved { states, dims, tensor }))
}

/// Whether the kernels on tensor cores are for this.
fn suits_tensor_cores(Dims { l, d, n, .. }: Dims, args: &Args<Mat<'_>>) -> bool {
    let small = |m: &Mat<'_>| i32::try_from(m.stride()).is_ok();
    let all = [Some(&args.u), Some(&args.delta), Some(&args.b), Some(&args.c), args.z.as_ref()];
    // Offsets of saved states are counted in units of 8 bytes.
    let states = l.checked_mul(d).is_some_and(|numbers| u32::try_from(numbers / 2).is_ok());
    let sizes = n == 16 && d.is_multiple_of(8) && i32::try_from(l).is_ok() && i32::try_from(d * 8).is_ok() && states;
    args.u.dtype() == DType::Bf16
        && args.rule == Discretisation::ExpEuler
        && sizes
        && all.into_iter().flatten().all(small)
}

/// Whether all rows can be read and written by 16 bytes, as the kernels on tensor cores do.
fn is_aligned(args: &Args<Mat<'_>>, others: &[&Mat<'_>]) -> bool {
    let all = [Some(&args.u), Some(&args.delta), Some(&args.b), Some(&args.c), args.z.as_ref()];
    all.into_iter().flatten().chain(others.iter().copied()).all(|m| m.is_aligned() && i32::try_from(m.stride()).is_ok())
}

/// [`forward`] for a length of 1.
fn one_position(dims: Dims, args: &Args<Mat<'_>>, y: &MatMut<'_>, last: &MatMut<'_>) -> Result<()> {
    let Dims { b, d, n, .. } = dims;
    let states = [args.a.address(), last.address(), args.initial.as_ref().map_or(0, Mat::address)];
    let vector = n.is_multiple_of(4)
        && states.into_iter().all(|address| address.is_multiple_of(16))
        && args.b.reads_four()
        && args.c.reads_four();
    let lanes = if n <= 64 { 4 } else { 32 };
    let defines = step_defines(args.u.dtype(), args.rule, lanes, if vector { 4 } else { 1 });
    let raw = Raw { y: y.raw(), last: last.address(), ..Raw::new(dims, (0, 0), args) };
    let blocks = (d * lanes).div_ceil(THREADS) * b.div_ceil(STEP_ROWS);
    let launch = Launch::linear(blocks, THREADS as u32);
    // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats.
    unsafe { y.gpu().kernel(&STEP, "step", &defines)?.launch(launch, &raw) }
}

// Long: two launches share their buffers, each a pointer of one struct.
pub(super) fn backward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    saved: &Saved,
    outputs: Outputs<Mat<'_>>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let Dims { b, l, d, n } = dims;
    let Outputs { y, dy, dlast } = outputs;
    let Grads { du, ddelta, ddelta_bias, da, db, dc, dskip, dz, dinitial } = grads;
    let gpu = dy.gpu();
    let same = !saved.tensor || suits_tensor_cores(dims, args) && y.is_aligned();
    CHECK.that(same, "saved", || "states of a forward with the same arguments".into(), || "others".into())?;
    if b * l == 0 {
        return match (dlast, dinitial) {
            (Some(dlast), Some(dinitial)) => gpu.copy(dlast.flat(), dinitial.flat()),
            (None, Some(dinitial)) => gpu.zero(dinitial),
            _ => Ok(()),
        };
    }
    let mut others = vec![dy, du.as_mat(), ddelta.as_mat()];
    others.extend(dz.as_ref().map(MatMut::as_mat));
    let others: Vec<&Mat<'_>> = others.iter().collect();
    if saved.tensor && !is_aligned(args, &others) {
        let grads = Grads { du, ddelta, ddelta_bias, da, db, dc, dskip, dz, dinitial };
        return backward_by_copies(dims, args, saved, outputs, grads);
    }
    let plan = Plan::new(gpu, dims, args, &others, saved.tensor)?;
    let (parts, padded) = (b * plan.chunks, plan.form.padded());
    let partial_a = gpu.alloc(product(&[parts, d, n, 4]))?;
    let partial_d = gpu.alloc(product(&[parts, 2, d, 4]))?;
    let partial_bc = gpu.alloc(product(&[plan.groups, b, l, 2, padded, 4]))?;
    // On tensor cores dz is always written.
    let unwanted = if plan.tensor && args.z.is_some() && dz.is_none() {
        Some(gpu.alloc(product(&[b, l, d, args.u.dtype().bytes()]))?)
    } else {
        None
    };
    let dz_raw = unwanted.as_ref().map(|buffer| buffer.mat(b * l, d, args.u.dtype()).raw());
    let partial_a = partial_a.mat(parts, d * n, DType::F32);
    let partial_d = partial_d.mat(parts, 2 * d, DType::F32);
    let raw = Raw {
        saved: saved.states.address(),
        y: y.raw(),
        dy: dy.raw(),
        dlast: dlast.map_or(0, |m| m.address()),
        du: du.raw(),
        ddelta: ddelta.raw(),
        db: db.raw(),
        dc: dc.raw(),
        dz: dz_raw.or(dz.as_ref().map(MatMut::raw)).unwrap_or(RawMat::NULL),
        dinitial: dinitial.as_ref().map_or(0, MatMut::address),
        partial_a: partial_a.raw(),
        partial_d: partial_d.raw(),
        partial_bc: partial_bc.address(),
        da: da.address(),
        dbias: ddelta_bias.as_ref().map_or(0, MatMut::address),
        dskip: dskip.as_ref().map_or(0, MatMut::address),
        ..Raw::new(dims, (plan.chunk, plan.chunks), args)
    };
    let starts = plan.starts(["backward_ends", "chain_backward"], &raw)?;
    let raw = Raw { starts: starts.as_ref().map_or(0, Buffer::address), ..raw };
    plan.run("backward", plan.launch(), &raw)?;
    if plan.tensor {
        let blocks = (b * l * 8).div_ceil(THREADS) + (d * (n + 2)).div_ceil(THREADS);
        return plan.run("join", Launch::linear(blocks, THREADS as u32), &raw);
    }
    let blocks = (b * l * 2 * padded).div_ceil(THREADS).min(64 * gpu.multiprocessors());
    plan.run("join", Launch::linear(blocks, THREADS as u32), &raw)?;
    elementwise::add_rows(&gpu, partial_a, da)?;
    if let Some(ddelta_bias) = ddelta_bias {
        elementwise::add_rows(&gpu, partial_d.columns(0, d), ddelta_bias)?;
    }
    match dskip {
        Some(dskip) => elementwise::add_rows(&gpu, partial_d.columns(d, d), dskip),
        None => Ok(()),
    }
}

/// [`backward`] on tensor cores for unaligned matrices, on aligned copies.
fn backward_by_copies(
    dims: Dims,
    args: &Args<Mat<'_>>,
    saved: &Saved,
    outputs: Outputs<Mat<'_>>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let gpu = outputs.dy.gpu();
    fn like<'a>(buffer: &'a Buffer, m: &Mat<'_>) -> Mat<'a> {
        buffer.mat(m.rows(), m.cols(), m.dtype())
    }
    let room = |m: &Mat<'_>| gpu.alloc(m.len() * m.dtype().bytes());
    let copy = |m: &Mat<'_>| {
        let buffer = room(m)?;
        gpu.copy(*m, buffer.mat_mut(m.rows(), m.cols(), m.dtype()))?;
        Ok::<_, crate::cuda::Error>(buffer)
    };
    let (u, delta, b, c, copied_dy) =
        (copy(&args.u)?, copy(&args.delta)?, copy(&args.b)?, copy(&args.c)?, copy(&outputs.dy)?);
    let z = args.z.as_ref().map(copy).transpose()?;
    let aligned = Args {
        u: like(&u, &args.u),
        delta: like(&delta, &args.u),
        b: like(&b, &args.b),
        c: like(&c, &args.b),
        z: z.as_ref().map(|z| like(z, &args.u)),
        ..*args
    };
    let (du, ddelta) = (room(&args.u)?, room(&args.u)?);
    let dz = grads.dz.as_ref().map(|dz| room(&dz.as_mat())).transpose()?;
    let inner = Grads {
        du: like(&du, &args.u).into_mut(),
        ddelta: like(&ddelta, &args.u).into_mut(),
        dz: dz.as_ref().map(|dz| like(dz, &args.u).into_mut()),
        ddelta_bias: grads.ddelta_bias,
        da: grads.da,
        db: grads.db,
        dc: grads.dc,
        dskip: grads.dskip,
        dinitial: grads.dinitial,
    };
    backward(dims, &aligned, saved, Outputs { dy: like(&copied_dy, &outputs.dy), ..outputs }, inner)?;
    gpu.copy(like(&du, &args.u), grads.du)?;
    gpu.copy(like(&ddelta, &args.u), grads.ddelta)?;
    if let (Some(from), Some(to)) = (&dz, grads.dz) {
        gpu.copy(like(from, &args.u), to)?;
    }
    Ok(())
}

/// As [`super::step`].
pub(super) fn step(dims: Dims, args: &Args<Mat<'_>>, state: MatMut<'_>, y: MatMut<'_>) -> Result<()> {
    // Every thread reads its states before it writes them.
    let args = Args { initial: Some(state.as_mat()), ..*args };
    forward(Dims { l: 1, ..dims }, &args, y, state.as_mat().into_mut(), false).map(drop)
}

impl Raw {
    fn new(dims: Dims, (chunk, chunks): (usize, usize), args: &Args<Mat<'_>>) -> Self {
        let (null, Dims { b, l, d, n }) = (RawMat::NULL, dims);
        let address = |m: &Option<Mat<'_>>| m.as_ref().map_or(0, Mat::address);
        Self {
            u: args.u.raw(),
            delta: args.delta.raw(),
            delta_bias: address(&args.delta_bias),
            a: args.a.address(),
            b: args.b.raw(),
            c: args.c.raw(),
            skip: address(&args.skip),
            z: args.z.as_ref().map_or(null, Mat::raw),
            initial: address(&args.initial),
            lengths: args.segments.lengths_address(),
            resets: args.segments.resets_address(),
            y: null,
            last: 0,
            saved: 0,
            starts: 0,
            ends: 0,
            decays: 0,
            dy: null,
            dlast: 0,
            du: null,
            ddelta: null,
            db: null,
            dc: null,
            dz: null,
            dinitial: 0,
            partial_a: null,
            partial_d: null,
            partial_bc: 0,
            da: 0,
            dbias: 0,
            dskip: 0,
            batch: b as i64,
            l: l as i64,
            d: d as i64,
            chunk: chunk as i64,
            chunks: chunks as i64,
            n: n as i32,
            softplus: args.softplus.into(),
        }
    }
}

fn defines(dtype: DType, form: Form, rule: Discretisation, vector: bool, segments: bool) -> Vec<Define> {
    vec![
        Define::dtype("T", dtype),
        Define::new("G", form.lanes),
        Define::new("S", form.states),
        Define::new("RULE", number(rule)),
        Define::new("VECTOR", i32::from(vector)),
        Define::new("SEGMENTS", i32::from(segments)),
    ]
}

fn tensor_defines(gated: bool, segments: bool) -> Vec<Define> {
    vec![
        Define::dtype("T", DType::Bf16),
        Define::new("RULE", 0),
        Define::new("GATED", i32::from(gated)),
        Define::new("SEGMENTS", i32::from(segments)),
    ]
}

fn step_defines(dtype: DType, rule: Discretisation, lanes: usize, vector: usize) -> Vec<Define> {
    let (lanes, vector) = (Define::new("LANES", lanes), Define::new("VEC", vector));
    vec![Define::dtype("T", dtype), Define::new("RULE", number(rule)), lanes, vector]
}

/// `RULE` of the sources.
fn number(rule: Discretisation) -> u32 {
    match rule {
        Discretisation::ExpEuler => 0,
        Discretisation::Zoh => 1,
        Discretisation::Bilinear => 2,
    }
}

/// Specialisations: all rules for state size 16, and for other sizes the rule of the released models.
pub(crate) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    let mut add = |dtype, form, rule, vector, segments| {
        let defines = defines(dtype, form, rule, vector, segments);
        units.push(Unit { source: &SOURCE, entries: &ENTRIES, defines });
    };
    for dtype in [DType::F32, DType::Bf16] {
        for form in Form::ALL {
            add(dtype, form, Discretisation::ExpEuler, false, true);
        }
        let form = Form { lanes: 4, states: 4 };
        add(dtype, form, Discretisation::ExpEuler, false, false);
        for rule in Discretisation::ALL {
            add(dtype, form, rule, true, false);
            add(dtype, form, rule, true, true);
        }
    }
    for (gated, segments) in [(false, false), (false, true), (true, false), (true, true)] {
        units.push(Unit { source: &TENSOR, entries: &ENTRIES, defines: tensor_defines(gated, segments) });
    }
    for dtype in [DType::F32, DType::Bf16] {
        for rule in Discretisation::ALL {
            for (lanes, vector) in [(4, 1), (4, 4), (32, 1), (32, 4)] {
                let defines = step_defines(dtype, rule, lanes, vector);
                units.push(Unit { source: &STEP, entries: &["step"], defines });
            }
        }
    }
    units
}
