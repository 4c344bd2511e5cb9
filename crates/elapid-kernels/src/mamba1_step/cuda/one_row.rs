//! A single row: channels stay with their block (`one_row.cu`).

use super::model::{Dims, LAYER, Model, RawLayer};
use crate::cuda::{Buffer, Define, Gpu, Launch, Result, Source, Unit};
use crate::resident::{BARRIERS, CHUNKS, WARPS, chunks, int, room, transpose};

static SOURCE: Source = Source {
    name: "mamba1_one_row",
    text: concat!(
        include_str!("../../resident/resident.cuh"),
        include_str!("../../resident/one_row.cuh"),
        include_str!("../layer.cuh"),
        include_str!("../one_row.cu")
    ),
};
/// The largest piece of weights in bytes; at least three of them are in flight.
const WHOLE: usize = 40 << 10;
/// Number of copies of sums: of the residual stream, and of x_proj's output.
const COPIES: usize = 4;
const COPIES_DBC: usize = 4;
/// Maximum layers times blocks for which the integer sums of the source do not overflow.
const SUMS: usize = 16_384;

/// A step, with the buffers that its blocks exchange.
#[derive(Debug)]
pub(super) struct OneRow {
    args: Args,
    chunks: usize,
    scratch: Vec<Buffer>,
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
    dbc: u64,
    broken: u64,
    logits: u64,
    best: u64,
    arrived: u64,
    eps: f32,
    count: i32,
    d: i32,
    ed: i32,
    n: i32,
    r: i32,
    k: i32,
    v: i32,
    shared: i32,
}

/// Shared memory without the ring in bytes: `Block` of the source.
fn shared(Dims { d, ed, n, r, .. }: Dims, blocks: usize) -> usize {
    let threads = 32 * WARPS;
    let numbers = (4 * threads).max(d) + 2 * d + WARPS + r + 2 * n + 7 * ed.div_ceil(blocks);
    (BARRIERS + 2 * LAYER + 2 * 256 * chunks(d) + 4 * numbers).next_multiple_of(128)
}

/// Whether they fit.
pub(super) fn suits(gpu: &Gpu, layers: usize, dims: Dims) -> bool {
    let blocks = gpu.multiprocessors();
    let fits = shared(dims, blocks) + 3 * WHOLE <= room(gpu) && layers * blocks <= SUMS;
    // A row of x_proj and what a pass of the scan reads of dt_proj are a piece at most.
    fits && dims.b == 1 && chunks(dims.d) <= CHUNKS && dims.r <= 256 && dims.n <= 256
}

impl OneRow {
    pub(super) fn new(
        gpu: Gpu,
        dims: Dims,
        model: &Model<'_>,
        mut layers: Vec<RawLayer>,
        ids: u64,
        logits: u64,
    ) -> Result<Self> {
        let Dims { d, ed, n, r, k, v, .. } = dims;
        let mut scratch = Vec::new();
        for (raw, layer) in layers.iter_mut().zip(&model.layers) {
            let transposed = |matrix| transpose(&gpu, &SOURCE, &defines(chunks(d)), matrix);
            let [x_proj, out_proj] = [transposed(layer.x_proj)?, transposed(layer.out_proj)?];
            (raw.x_proj, raw.out_proj) = (x_proj.address(), out_proj.address());
            scratch.extend([x_proj, out_proj]);
        }
        let table = gpu.upload(&layers)?;
        let sums = gpu.upload(&vec![0u64; COPIES * d + 2 * COPIES_DBC * (r + 2 * n)])?;
        let (broken, arrived) = (gpu.upload(&[0u32])?, gpu.upload(&[0u32; 2])?);
        let best = gpu.alloc(gpu.multiprocessors() * 8)?;
        let args = Args {
            layers: table.address(),
            embedding: model.embedding.address(),
            norm: model.norm.address(),
            head: model.head.address(),
            ids,
            residual: sums.address(),
            dbc: sums.address() + 8 * (COPIES * d) as u64,
            broken: broken.address(),
            logits,
            best: best.address(),
            arrived: arrived.address(),
            eps: model.eps,
            count: int(layers.len()),
            d: int(d),
            ed: int(ed),
            n: int(n),
            r: int(r),
            k: int(k),
            v: int(v),
            shared: int(room(&gpu)),
        };
        scratch.extend([table, sums, broken, best, arrived]);
        Ok(Self { args, chunks: chunks(d), scratch })
    }

    /// What its blocks give each other.
    pub(super) fn scratch(&self) -> &[Buffer] {
        &self.scratch
    }

    pub(super) fn launch(&self, gpu: &Gpu, launch: Launch) -> Result<()> {
        let kernel = gpu.kernel(&SOURCE, "one_row", &defines(self.chunks))?;
        // SAFETY: `Args` and the table are laid out as in the source; sizes were checked when they were made.
        unsafe { kernel.launch(launch, &self.args) }
    }
}

fn defines(chunks: usize) -> Vec<Define> {
    [("CHUNKS", chunks), ("COPIES", COPIES), ("COPIES_DBC", COPIES_DBC), ("WHOLE", WHOLE)]
        .map(|(name, value)| Define::new(name, value))
        .to_vec()
}

/// Every specialisation.
pub(super) fn units() -> Vec<Unit> {
    (1..=CHUNKS)
        .map(|chunks| Unit { source: &SOURCE, entries: &["one_row", "transpose"], defines: defines(chunks) })
        .collect()
}
