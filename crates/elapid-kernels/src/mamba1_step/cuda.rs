//! On a GPU: a kernel whose blocks are all resident and wait for each other between stages (`mamba1_step.cu`).

use std::sync::Arc;

use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, Pod, Result, Source, Unit};
use crate::error::Check;

static SOURCE: Source = Source { name: "mamba1_step", text: include_str!("mamba1_step.cu") };
const CHECK: Check = Check("mamba1_step");
/// Warps that compute; two more fetch weights, and ask for what is small.
const WARPS: usize = 16;
const THREADS: u32 = 32 * (WARPS as u32 + 2);
/// Outputs that tensor cores make at a time.
const GROUP: usize = 16;
/// Dynamic shared memory of a block on every device since sm_80; sm_90 has 64 KiB more.
const SHARED: usize = 163 << 10;
/// Of that, what says which pieces have come, and where they are.
const BARRIERS: usize = 32 * (8 + 8 + 4 + 4);
/// Of that, which outputs are the block's.
const PARTS: usize = 6 * 8;
/// The largest piece of weights, in bytes: three of these at least are on their way.
const PIECE: usize = GROUP * (2 * 512 + 64);

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows, each with its own state.
    pub b: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Channels of a mixer.
    pub ed: usize,
    /// State numbers a channel.
    pub n: usize,
    /// Rank of Δ.
    pub r: usize,
    /// Taps of the convolution.
    pub k: usize,
    /// Vocabulary.
    pub v: usize,
}

impl Dims {
    /// `ROWS` of the source.
    fn rows(&self) -> usize {
        self.b.next_power_of_two().max(8)
    }

    /// Shared memory but for the ring, in bytes: as `Block` of the source.
    fn shared(&self, blocks: usize) -> usize {
        let rows = self.rows();
        let sums = WARPS * GROUP * (32 / rows) * self.b;
        let [ins, scanned, outs] = [2 * self.ed, self.ed, self.d].map(|outputs| outputs.div_ceil(blocks));
        let own = (ins + scanned + outs) * self.b + ins + 2 * scanned;
        let numbers = (WARPS + 2 * self.n) * rows + sums + self.d + own;
        let stride = self.d.max(self.ed).max(self.r.next_multiple_of(32)).next_multiple_of(64) + 32;
        (BARRIERS + PARTS + 2 * size_of::<RawLayer>() + 4 * numbers).next_multiple_of(128)
            + (self.b * stride * 2).next_multiple_of(128)
    }
}

/// Shared memory of a block, in bytes: as much as the device has, so that weights come far ahead.
fn room(gpu: &Gpu) -> usize {
    if gpu.capability() >= (9, 0) { SHARED + (64 << 10) } else { SHARED }
}

/// The parameters and the state of one layer. Matrices of products are bf16, everything else f32.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Of the norm, `[d]`.
    pub norm: Mat<'a>,
    /// `[2 ed, d]`
    pub in_proj: Mat<'a>,
    /// `[ed k]`
    pub conv: Mat<'a>,
    /// `[ed]`
    pub conv_bias: Option<Mat<'a>>,
    /// `[r + 2 n, ed]`
    pub x_proj: Mat<'a>,
    /// `[ed, r]`
    pub dt_proj: Mat<'a>,
    /// `[ed]`
    pub dt_bias: Mat<'a>,
    /// `[ed n]`
    pub a_log: Mat<'a>,
    /// D, `[ed]`.
    pub skip: Mat<'a>,
    /// `[d, ed]`
    pub out_proj: Mat<'a>,
    /// The last inputs of the convolution, `[b, k - 1, ed]`; moved on.
    pub conv_state: Mat<'a>,
    /// `[b, ed, n]`; moved on.
    pub ssm_state: Mat<'a>,
}

/// A model.
#[derive(Debug, Clone)]
pub struct Model<'a> {
    /// From first to last.
    pub layers: Vec<Layer<'a>>,
    /// `[v, d]`
    pub embedding: Mat<'a>,
    /// Of the last norm, `[d]`.
    pub norm: Mat<'a>,
    /// `[v, d]`
    pub head: Mat<'a>,
    /// Added to mean squares.
    pub eps: f32,
}

/// The step of a model, ready to be launched again and again.
///
/// It works on the memory that it was made with: the model's, the states' and the tokens'.
#[derive(Debug)]
pub struct Step {
    gpu: Gpu,
    dims: Dims,
    args: Args,
    logits: Buffer,
    _ids: Arc<Buffer>,
    _scratch: Vec<Buffer>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RawLayer {
    norm: u64,
    in_proj: u64,
    conv: u64,
    conv_bias: u64,
    x_proj: u64,
    dt_proj: u64,
    dt_bias: u64,
    a_log: u64,
    skip: u64,
    out_proj: u64,
    conv_state: u64,
    ssm_state: u64,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Args {
    layers: u64,
    embedding: u64,
    norm: u64,
    head: u64,
    ids: u64,
    residual: u64,
    u: u64,
    z: u64,
    dbc: u64,
    y: u64,
    logits: u64,
    best: u64,
    arrived: u64,
    eps: f32,
    count: i32,
    batch: i32,
    d: i32,
    ed: i32,
    n: i32,
    r: i32,
    k: i32,
    v: i32,
    shared: i32,
}

/// Whether a model of these sizes can be stepped so: up to 32 rows that fit into shared memory, sizes that tensor cores
/// take without a rest.
pub fn suits(gpu: &Gpu, dims: Dims) -> bool {
    let Dims { b, d, ed, n, r, k, v } = dims;
    let whole = d.is_multiple_of(32) && ed.is_multiple_of(32) && r.is_multiple_of(8) && n.is_multiple_of(4);
    let some = [b, d, ed, n, r, k, v].iter().all(|&size| size > 0);
    let small = [2 * ed * d, v * d, v * b, b * ed * n, b * ed * k].iter().all(|&size| i32::try_from(size).is_ok());
    whole && some && small && b <= 32 && dims.shared(gpu.multiprocessors()) + 3 * PIECE <= room(gpu)
}

impl Step {
    /// Prepares the step; `ids` `[b]` u32 holds the tokens that are read, then those that were chosen.
    ///
    /// # Errors
    /// If sizes do not suit (see [`suits`]), shapes or formats differ, or there is too little memory.
    pub fn new(gpu: Gpu, dims: Dims, model: &Model<'_>, ids: &Arc<Buffer>) -> Result<Self> {
        let Dims { b, d, ed, n, r, k, v } = dims;
        CHECK.that(
            suits(&gpu, dims),
            "sizes",
            || "sizes that one launch can work on".into(),
            || format!("{dims:?}"),
        )?;
        CHECK.that(ids.bytes() >= 4 * b, "ids", || format!("{b} ids"), || (ids.bytes() / 4).to_string())?;
        for (name, m) in [("embedding", model.embedding), ("head", model.head)] {
            matrix(name, m, (v, d))?;
        }
        vector("norm", model.norm, d)?;
        let layers = model.layers.iter().map(|layer| raw_layer(dims, layer)).collect::<Result<Vec<_>>>()?;
        let table = gpu.upload(&layers)?;
        let blocks = gpu.multiprocessors();
        let [residual, dbc, logits] = [b * d, b * (r + 2 * n), b * v].map(|numbers| gpu.alloc(numbers * 4));
        let [u, z, y] = [(); 3].map(|()| gpu.alloc(b * ed * 2));
        let (residual, dbc, logits, u, z, y) = (residual?, dbc?, logits?, u?, z?, y?);
        let (best, arrived) = (gpu.alloc(b * blocks * 8)?, gpu.upload(&[0u32; 2])?);
        let int = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
        let args = Args {
            layers: table.address(),
            embedding: model.embedding.address(),
            norm: model.norm.address(),
            head: model.head.address(),
            ids: ids.address(),
            residual: residual.address(),
            u: u.address(),
            z: z.address(),
            dbc: dbc.address(),
            y: y.address(),
            logits: logits.address(),
            best: best.address(),
            arrived: arrived.address(),
            eps: model.eps,
            count: int(layers.len()),
            batch: int(b),
            d: int(d),
            ed: int(ed),
            n: int(n),
            r: int(r),
            k: int(k),
            v: int(v),
            shared: int(room(&gpu)),
        };
        let scratch = vec![table, residual, dbc, u, z, y, best, arrived];
        Ok(Self { gpu, dims, args, logits, _ids: ids.clone(), _scratch: scratch })
    }

    /// Reads a token of every row, moves the states on and chooses the likeliest next tokens; does not wait. A row whose
    /// logits are no numbers gets the largest u32.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn launch(&self) -> Result<()> {
        let blocks = self.gpu.multiprocessors();
        let shared = u32::try_from(room(&self.gpu)).unwrap_or(u32::MAX);
        let kernel = self.gpu.kernel(&SOURCE, "step", &defines(self.dims.rows()))?;
        // SAFETY: `Args` and the table are laid out as in the source; sizes were checked when they were made.
        unsafe { kernel.launch(Launch { shared, ..Launch::linear(blocks, THREADS) }, &self.args) }
    }

    /// Logits `[b v]` f32 of the last launch.
    pub fn logits(&self) -> &Buffer {
        &self.logits
    }
}

// SAFETY: addresses, without padding.
unsafe impl Pod for RawLayer {}

fn raw_layer(Dims { b, d, ed, n, r, k, .. }: Dims, layer: &Layer<'_>) -> Result<RawLayer> {
    matrix("in_proj", layer.in_proj, (2 * ed, d))?;
    matrix("x_proj", layer.x_proj, (r + 2 * n, ed))?;
    matrix("dt_proj", layer.dt_proj, (ed, r))?;
    matrix("out_proj", layer.out_proj, (d, ed))?;
    vector("norm", layer.norm, d)?;
    vector("conv", layer.conv, ed * k)?;
    for (name, m) in [("dt_bias", layer.dt_bias), ("D", layer.skip)] {
        vector(name, m, ed)?;
    }
    if let Some(bias) = layer.conv_bias {
        vector("conv_bias", bias, ed)?;
    }
    vector("A_log", layer.a_log, ed * n)?;
    vector("conv_state", layer.conv_state, b * (k - 1) * ed)?;
    vector("ssm_state", layer.ssm_state, b * ed * n)?;
    Ok(RawLayer {
        norm: layer.norm.address(),
        in_proj: layer.in_proj.address(),
        conv: layer.conv.address(),
        conv_bias: layer.conv_bias.as_ref().map_or(0, Mat::address),
        x_proj: layer.x_proj.address(),
        dt_proj: layer.dt_proj.address(),
        dt_bias: layer.dt_bias.address(),
        a_log: layer.a_log.address(),
        skip: layer.skip.address(),
        out_proj: layer.out_proj.address(),
        conv_state: layer.conv_state.address(),
        ssm_state: layer.ssm_state.address(),
    })
}

/// A weight of a product: bf16 rows without gaps, aligned.
fn matrix(name: &'static str, m: Mat<'_>, shape: (usize, usize)) -> Result<()> {
    CHECK.shape(name, m.shape(), shape)?;
    let fits = m.dtype == DType::Bf16 && m.is_contiguous() && m.address().is_multiple_of(16);
    CHECK.that(fits, name, || "bf16, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

fn vector(name: &'static str, m: Mat<'_>, len: usize) -> Result<()> {
    CHECK.len(name, m.len(), len)?;
    let fits = m.dtype == DType::F32 && m.is_contiguous() && m.address().is_multiple_of(16);
    CHECK.that(fits, name, || "f32, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

fn defines(rows: usize) -> Vec<Define> {
    vec![Define::new("ROWS", rows)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [8, 16, 32].map(|rows| Unit { source: &SOURCE, entries: &["step"], defines: defines(rows) }).to_vec()
}
