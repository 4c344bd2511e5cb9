//! On a GPU: activations in one dtype, states, constants and their gradients in f32.
//!
//! A block owns some channels of one row and walks along it, all its threads reading positions of a tile. If rows and channels
//! are too few to fill the device, the length is split into chunks: first each chunk computes its map of the state, then the
//! states between chunks follow one after another, then all chunks run from these states.

use super::args::CHECK;
use super::{Args, Decay, DecayGrads, Dims, Field, Grads, Outputs, RgLru};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::product;

static SOURCE: Source = Source { name: "diagonal_scan", text: include_str!("diagonal_scan.cu") };
const ENTRIES: [&str; 6] = ["forward", "forward_ends", "chain", "backward", "backward_ends", "step"];
const THREADS: usize = 128;
/// Chunks are multiples of this, and at least that long.
const TILE: usize = 64;
const LEAST: usize = 4 * TILE;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    factors: RawMat,
    input: RawMat,
    constant: u64,
    initial: u64,
    lengths: u64,
    resets: u64,
    h: RawMat,
    dh: RawMat,
    dx: RawMat,
    dfactors: RawMat,
    dinput: RawMat,
    partial: u64,
    entering: u64,
    leaving: u64,
    starts: u64,
    ends: u64,
    products: u64,
    b: i64,
    l: i64,
    d: i64,
    chunk: i64,
    chunks: i64,
    reverse: i32,
    backward: i32,
}

impl Raw {
    fn new(dims: Dims, args: &Args<Mat<'_>>) -> Self {
        let null = RawMat::NULL;
        let (factors, input, constant) = match &args.decay {
            Decay::Constant(a) => (null, null, a.address()),
            Decay::Values(a) | Decay::Logs(a) => (a.raw(), null, 0),
            Decay::RgLru(RgLru { recurrence, input, lambda }) => (recurrence.raw(), input.raw(), lambda.address()),
        };
        Self {
            x: args.x.raw(),
            factors,
            input,
            constant,
            initial: args.initial.as_ref().map_or(0, Mat::address),
            lengths: args.segments.lengths_address(),
            resets: args.segments.resets_address(),
            h: null,
            dh: null,
            dx: null,
            dfactors: null,
            dinput: null,
            partial: 0,
            entering: 0,
            leaving: 0,
            starts: 0,
            ends: 0,
            products: 0,
            b: dims.b as i64,
            l: dims.l as i64,
            d: dims.d as i64,
            chunk: dims.l as i64,
            chunks: 1,
            reverse: i32::from(args.reverse),
            backward: 0,
        }
    }
}

/// How a call is split over the device.
struct Plan {
    gpu: Gpu,
    dims: Dims,
    columns: usize,
    /// Blocks along channels.
    groups: usize,
    chunk: usize,
    chunks: usize,
    defines: Vec<Define>,
}

impl Plan {
    fn new(dims: Dims, args: &Args<Mat<'_>>, others: &[Option<&Mat<'_>>]) -> Result<Self> {
        let (gpu, dtype, Dims { b, l, d }) = (args.x.gpu(), args.x.dtype(), dims);
        let of_decay = match &args.decay {
            Decay::Constant(_) => [None, None],
            Decay::Values(a) | Decay::Logs(a) => [Some(a), None],
            Decay::RgLru(RgLru { recurrence, input, .. }) => [Some(recurrence), Some(input)],
        };
        let wide = 16 / dtype.bytes();
        let all = of_decay.into_iter().chain([Some(&args.x)]).chain(others.iter().copied()).flatten();
        let vector = if d.is_multiple_of(wide) && all.into_iter().all(Mat::is_aligned) { wide } else { 1 };
        let groups = d.div_ceil(if vector == 1 { 32 } else { 8 * vector });
        let blocks = b.saturating_mul(groups).max(1);
        // With fewer blocks than multiprocessors the price of reading a and x twice is less than that of waiting.
        let wanted = if blocks < gpu.multiprocessors() { (3 * gpu.multiprocessors()).div_ceil(blocks) } else { 1 };
        let chunk = l.div_ceil(wanted).next_multiple_of(TILE).max(LEAST);
        let chunks = if wanted == 1 { 1 } else { l.div_ceil(chunk).max(1) };
        let fit = blocks.saturating_mul(chunks);
        CHECK.that(i32::try_from(fit).is_ok(), "b d", || "fewer sequences on a GPU".into(), || format!("{dims:?}"))?;
        let defines = defines(dtype, form(&args.decay), args.field, vector);
        let chunk = if chunks == 1 { l } else { chunk };
        Ok(Self { gpu, dims, columns: dims.columns(args), groups, chunk, chunks, defines })
    }

    fn run(&self, entry: &'static str, blocks: usize, raw: &Raw) -> Result<()> {
        // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats, and what was allocated was
        // sized by this plan.
        unsafe { self.gpu.kernel(&SOURCE, entry, &self.defines)?.launch(Launch::linear(blocks, THREADS as u32), raw) }
    }

    /// The kernel `entry` over all chunks, after the states between these were found by `ends`.
    fn scan(&self, [ends, entry]: [&'static str; 2], raw: Raw) -> Result<()> {
        let blocks = self.dims.b * self.groups * self.chunks;
        let raw = Raw { chunk: self.chunk as i64, chunks: self.chunks as i64, ..raw };
        if self.chunks == 1 {
            return self.run(entry, blocks, &raw);
        }
        let states = || self.gpu.alloc(product(&[self.dims.b, self.chunks, self.columns, 4]));
        let [starts, ends_of, products] = [states()?, states()?, states()?];
        let maps = Raw { ends: ends_of.address(), products: products.address(), ..raw };
        self.run(ends, blocks, &maps)?;
        let raw = Raw { starts: starts.address(), ..maps };
        self.run("chain", (self.dims.b * self.dims.d).div_ceil(THREADS), &raw)?;
        self.run(entry, blocks, &raw)
    }
}

pub(super) fn forward(dims: Dims, args: &Args<Mat<'_>>, h: MatMut<'_>, last: MatMut<'_>) -> Result<()> {
    if dims.b * dims.l == 0 {
        return copy_or_zero(args.initial, last);
    }
    if dims.l == 1 {
        return one_position(dims, args, args.initial.as_ref(), &last, &h);
    }
    let plan = Plan::new(dims, args, &[Some(&h.as_mat())])?;
    let entering = args.initial.as_ref().map_or(0, Mat::address);
    let raw = Raw { h: h.raw(), entering, leaving: last.address(), ..Raw::new(dims, args) };
    plan.scan(["forward_ends", "forward"], raw)
}

pub(super) fn step(dims: Dims, args: &Args<Mat<'_>>, state: MatMut<'_>, h: MatMut<'_>) -> Result<()> {
    one_position(dims, args, Some(&state.as_mat()), &state, &h)
}

/// A length of 1; `entering` and `leaving` may be the same memory.
fn one_position(
    dims: Dims,
    args: &Args<Mat<'_>>,
    entering: Option<&Mat<'_>>,
    leaving: &MatMut<'_>,
    h: &MatMut<'_>,
) -> Result<()> {
    let entering = entering.map_or(0, Mat::address);
    let raw = Raw { h: h.raw(), entering, leaving: leaving.address(), ..Raw::new(dims, args) };
    let defines = defines(args.x.dtype(), form(&args.decay), args.field, 1);
    let kernel = h.gpu().kernel(&SOURCE, "step", &defines)?;
    let blocks = (dims.b * dims.d).div_ceil(THREADS);
    // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats.
    unsafe { kernel.launch(Launch::linear(blocks, THREADS as u32), &raw) }
}

pub(super) fn backward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    outputs: &Outputs<Mat<'_>>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let Outputs { h, dh, dlast } = outputs;
    let Grads { dx, decay, dinitial } = grads;
    if dims.b * dims.l == 0 {
        return dinitial.map_or(Ok(()), |dinitial| copy_or_zero(*dlast, dinitial));
    }
    let (dfactors, dinput, sum) = match decay {
        None => (None, None, None),
        Some(DecayGrads::Constant(da)) => (None, None, Some(da)),
        Some(DecayGrads::Varying(da)) => (Some(da), None, None),
        Some(DecayGrads::RgLru { drecurrence, dinput, dlambda }) => (Some(drecurrence), Some(dinput), Some(dlambda)),
    };
    let [of_factors, of_input] = [&dfactors, &dinput].map(|m| m.as_ref().map(MatMut::as_mat));
    let dx = dx.as_mat();
    let plan = Plan::new(dims, args, &[Some(h), Some(dh), Some(&dx), of_factors.as_ref(), of_input.as_ref()])?;
    let parts = dims.b * plan.chunks;
    let room = || plan.gpu.alloc(product(&[parts, plan.columns, 4]));
    let partial = sum.is_some().then(room).transpose()?;
    let raw = Raw {
        h: h.raw(),
        dh: dh.raw(),
        dx: dx.raw(),
        dfactors: of_factors.map_or(RawMat::NULL, |m| m.raw()),
        dinput: of_input.map_or(RawMat::NULL, |m| m.raw()),
        partial: partial.as_ref().map_or(0, Buffer::address),
        entering: dlast.as_ref().map_or(0, Mat::address),
        leaving: dinitial.as_ref().map_or(0, MatMut::address),
        backward: 1,
        ..Raw::new(dims, args)
    };
    plan.scan(["backward_ends", "backward"], raw)?;
    match (partial, sum) {
        (Some(partial), Some(sum)) => {
            elementwise::add_rows(&plan.gpu, partial.mat(parts, plan.columns, DType::F32), sum)
        }
        _ => Ok(()),
    }
}

/// to = from, or 0 if there is none, both f32 without gaps.
fn copy_or_zero(from: Option<Mat<'_>>, to: MatMut<'_>) -> Result<()> {
    let gpu = to.gpu();
    match from {
        Some(from) => gpu.copy(from.flat(), to.flat()),
        None => gpu.zero(to),
    }
}

/// `FORM` of the source.
fn form(decay: &Decay<Mat<'_>>) -> usize {
    match decay {
        Decay::Constant(_) => 0,
        Decay::Values(_) => 1,
        Decay::Logs(_) => 2,
        Decay::RgLru(_) => 3,
    }
}

fn defines(dtype: DType, form: usize, field: Field, vector: usize) -> Vec<Define> {
    let sizes = [("FORM", form), ("PARTS", field.parts()), ("VEC", vector)];
    std::iter::once(Define::dtype("T", dtype)).chain(sizes.map(|(name, size)| Define::new(name, size))).collect()
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let real = [0, 1, 2, 3].map(|form| (form, Field::Real));
    let forms = real.into_iter().chain([0, 1].map(|form| (form, Field::Complex)));
    let vectors = [(DType::F32, 1), (DType::Bf16, 8)];
    let all = forms.flat_map(|(form, field)| vectors.map(|(dtype, vector)| defines(dtype, form, field, vector)));
    all.map(|defines| Unit { source: &SOURCE, entries: &ENTRIES, defines }).collect()
}
