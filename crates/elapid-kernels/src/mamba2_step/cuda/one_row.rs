//! A single row: channels stay with their block (`one_row.cu`).

use super::model::{Dims, LAYER, Model, raw_layer};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Result, Source, Unit};
use crate::resident::{BARRIERS, CHUNKS, WARPS, chunks, int, launch, room, transpose};

static SOURCE: Source = Source {
    name: "mamba2_one_row",
    text: concat!(
        include_str!("../../resident/resident.cuh"),
        include_str!("../../resident/one_row.cuh"),
        include_str!("../one_row.cu")
    ),
};
/// The largest piece of weights in bytes; at least three of them are in flight.
const WHOLE: usize = 44 << 10;
/// Number of copies of sums.
const COPIES: usize = 4;
/// Maximum blocks for which the integer sums of the source do not overflow.
const SUMS: usize = 256;

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
    sums: u64,
    broken: u64,
    exchange: u64,
    squares: u64,
    logits: u64,
    best: u64,
    arrived: u64,
    eps: f32,
    gate_eps: f32,
    dt_min: f32,
    dt_max: f32,
    gate: i32,
    skips: i32,
    count: i32,
    d: i32,
    ed: i32,
    h: i32,
    n: i32,
    g: i32,
    k: i32,
    v: i32,
    shared: i32,
}

/// What blocks exchange of in_proj: B, C and Δ.
fn exchanged(Dims { g, n, h, .. }: Dims) -> usize {
    2 * g * n + h
}

/// Shared memory without the ring in bytes: `Block` of the source.
fn shared(dims: Dims, blocks: usize) -> usize {
    let Dims { d, ed, .. } = dims;
    let (each, all) = (4 * (ed / 4).div_ceil(blocks), exchanged(dims));
    let common = all.div_ceil(blocks);
    let numbers = (4 * 32 * WARPS + each).max(d) + 2 * d + WARPS + 9 * each + 3 * common + all;
    (BARRIERS + 2 * LAYER + 2 * 256 * chunks(d) + 4 * numbers).next_multiple_of(128)
}

/// Whether they fit.
pub(super) fn suits(gpu: &Gpu, dims: Dims) -> bool {
    let blocks = gpu.multiprocessors();
    let fits = shared(dims, blocks) + 3 * WHOLE <= room(gpu) && blocks <= SUMS;
    // A thread has four channels at least.
    fits && dims.b == 1
        && dims.state == DType::F32
        && chunks(dims.d) <= CHUNKS
        && dims.ed.div_ceil(blocks) <= 4 * 32 * WARPS
}

impl OneRow {
    pub(super) fn new(gpu: Gpu, dims: Dims, model: &Model<'_>, ids: u64, logits: u64) -> Result<Self> {
        let Dims { d, ed, h, n, g, k, v, gate, gate_eps, limits, .. } = dims;
        let (mut scratch, mut layers) = (Vec::new(), Vec::with_capacity(model.layers.len()));
        for layer in &model.layers {
            let mut raw = raw_layer(dims, layer)?;
            let out_proj = transpose(&gpu, &SOURCE, &defines(chunks(d)), layer.out_proj)?;
            raw.out_proj = out_proj.address();
            scratch.push(out_proj);
            layers.push(raw);
        }
        let (table, blocks) = (gpu.upload(&layers)?, gpu.multiprocessors());
        let sums = gpu.upload(&vec![0u64; 2 * COPIES * d])?;
        let (broken, arrived) = (gpu.upload(&[0u32])?, gpu.upload(&[0u32; 2])?);
        let (exchange, squares) = (gpu.alloc(4 * exchanged(dims))?, gpu.alloc(4 * blocks)?);
        let best = gpu.alloc(blocks * 8)?;
        let args = Args {
            layers: table.address(),
            embedding: model.embedding.address(),
            norm: model.norm.address(),
            head: model.head.address(),
            ids,
            sums: sums.address(),
            broken: broken.address(),
            exchange: exchange.address(),
            squares: squares.address(),
            logits,
            best: best.address(),
            arrived: arrived.address(),
            eps: model.eps,
            gate_eps,
            dt_min: limits.0,
            dt_max: limits.1,
            gate: gate as i32,
            skips: int(dims.skips()),
            count: int(layers.len()),
            d: int(d),
            ed: int(ed),
            h: int(h),
            n: int(n),
            g: int(g),
            k: int(k),
            v: int(v),
            shared: int(room(&gpu)),
        };
        scratch.extend([table, sums, broken, arrived, exchange, squares, best]);
        Ok(Self { args, chunks: chunks(d), scratch })
    }

    /// What its blocks give each other.
    pub(super) fn scratch(&self) -> &[Buffer] {
        &self.scratch
    }

    pub(super) fn launch(&self, gpu: &Gpu) -> Result<()> {
        let kernel = gpu.kernel(&SOURCE, "one_row", &defines(self.chunks))?;
        // SAFETY: `Args` and the table are laid out as in the source; sizes were checked when they were made.
        unsafe { kernel.launch(launch(gpu), &self.args) }
    }
}

fn defines(chunks: usize) -> Vec<Define> {
    [("CHUNKS", chunks), ("COPIES", COPIES), ("WHOLE", WHOLE)].map(|(name, value)| Define::new(name, value)).to_vec()
}

/// Every specialisation.
pub(super) fn units() -> Vec<Unit> {
    (1..=CHUNKS)
        .map(|chunks| Unit { source: &SOURCE, entries: &["one_row", "transpose"], defines: defines(chunks) })
        .collect()
}
