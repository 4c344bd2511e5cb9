//! Several rows: one matrix product on tensor cores per stage (`mamba1_step.cu`).

use super::model::{Dims, LAYER, Model, RawLayer};
use crate::cuda::{Buffer, Define, Gpu, Launch, Result, Source, Unit};
use crate::resident::{BARRIERS, WARPS, int, room};

static SOURCE: Source = Source {
    name: "mamba1_step",
    text: concat!(
        include_str!("../../resident/resident.cuh"),
        include_str!("../layer.cuh"),
        include_str!("../mamba1_step.cu")
    ),
};
/// Outputs that tensor cores make at a time.
const GROUP: usize = 16;
/// Shared memory for the list of the block's outputs.
const PARTS: usize = 6 * 8;
/// The largest piece of weights in bytes; at least three of them are in flight.
const PIECE: usize = GROUP * (2 * 512 + 64);

/// A step, with the buffers that its blocks exchange.
#[derive(Debug)]
pub(super) struct Rows {
    args: Args,
    rows: usize,
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

/// `ROWS` of the source.
fn rows(b: usize) -> usize {
    b.next_power_of_two().max(8)
}

/// Shared memory without the ring in bytes: `Block` of the source.
fn shared(dims: Dims, blocks: usize) -> usize {
    let Dims { b, d, ed, n, r, .. } = dims;
    let rows = rows(b);
    let sums = WARPS * GROUP * (32 / rows) * b;
    let [ins, scanned, outs] = [2 * ed, ed, d].map(|outputs| outputs.div_ceil(blocks));
    let own = (ins + scanned + outs) * b + ins + 2 * scanned;
    let numbers = (WARPS + 2 * n) * rows + sums + d + own;
    let stride = d.max(ed).max(r.next_multiple_of(32)).next_multiple_of(64) + 32;
    (BARRIERS + PARTS + 2 * LAYER + 4 * numbers).next_multiple_of(128) + (b * stride * 2).next_multiple_of(128)
}

/// Whether they fit.
pub(super) fn suits(gpu: &Gpu, dims: Dims) -> bool {
    dims.b <= 32 && shared(dims, gpu.multiprocessors()) + 3 * PIECE <= room(gpu)
}

impl Rows {
    pub(super) fn new(
        gpu: Gpu,
        dims: Dims,
        model: &Model<'_>,
        layers: &[RawLayer],
        ids: u64,
        logits: u64,
    ) -> Result<Self> {
        let Dims { b, d, ed, n, r, k, v } = dims;
        let (table, blocks) = (gpu.upload(layers)?, gpu.multiprocessors());
        let [residual, dbc] = [b * d, b * (r + 2 * n)].map(|numbers| gpu.alloc(numbers * 4));
        let [u, z, y] = [(); 3].map(|()| gpu.alloc(b * ed * 2));
        let (residual, dbc, u, z, y) = (residual?, dbc?, u?, z?, y?);
        let (best, arrived) = (gpu.alloc(b * blocks * 8)?, gpu.upload(&[0u32; 2])?);
        let args = Args {
            layers: table.address(),
            embedding: model.embedding.address(),
            norm: model.norm.address(),
            head: model.head.address(),
            ids,
            residual: residual.address(),
            u: u.address(),
            z: z.address(),
            dbc: dbc.address(),
            y: y.address(),
            logits,
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
        Ok(Self { args, rows: rows(b), scratch: vec![table, residual, dbc, u, z, y, best, arrived] })
    }

    /// What its blocks give each other.
    pub(super) fn scratch(&self) -> &[Buffer] {
        &self.scratch
    }

    pub(super) fn launch(&self, gpu: &Gpu, launch: Launch) -> Result<()> {
        let kernel = gpu.kernel(&SOURCE, "step", &defines(self.rows))?;
        // SAFETY: `Args` and the table are laid out as in the source; sizes were checked when they were made.
        unsafe { kernel.launch(launch, &self.args) }
    }
}

fn defines(rows: usize) -> Vec<Define> {
    vec![Define::new("ROWS", rows)]
}

/// Every specialisation.
pub(super) fn units() -> Vec<Unit> {
    [8, 16, 32].map(|rows| Unit { source: &SOURCE, entries: &["step"], defines: defines(rows) }).to_vec()
}
