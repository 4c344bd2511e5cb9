//! Several rows: three launches a layer, captured as a graph (`batch_step`, `update.cu`).

use std::sync::Arc;

use super::model::{Dims, Gate, Model, raw_layer};
use crate::DType;
use crate::batch_step::{self, Batch, Ends, First, Last, Stream};
use crate::cuda::{Buffer, Define, Gpu, Held, Launch, Result, Source, Unit};
use crate::resident::int;

static SOURCE: Source = Source { name: "mamba2_update", text: include_str!("../update.cu") };
/// Threads that update a head's state.
const UPDATERS: usize = 256;
/// The most state elements of a head: registers hold them.
const STATES: usize = 64 * 256;

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Update {
    packed: u64,
    dt_bias: u64,
    a_log: u64,
    skip: u64,
    gated_norm: u64,
    states: u64,
    y: u64,
    squares: u64,
    dt_min: f32,
    dt_max: f32,
    rows: i32,
    h: i32,
    g: i32,
    skips: i32,
    norm_first: i32,
}

/// A step, with the buffers that its launches exchange.
#[derive(Debug)]
pub(super) struct Rows {
    batch: Batch,
    scratch: Vec<Buffer>,
}

/// Whether threads can share a head's state, and vectors divide what is exchanged.
pub(super) fn suits(dims: Dims) -> bool {
    let Dims { b, d, ed, h, n, g, .. } = dims;
    let p = ed / h;
    let shared = p.is_power_of_two() && (4..=64).contains(&p) && n * p <= STATES;
    shared
        && b <= batch_step::ROWS
        && d.is_multiple_of(8)
        && ed.is_multiple_of(8)
        && (2 * g * n).is_multiple_of(4)
        && h.is_multiple_of(4)
}

impl Rows {
    // Long: the launches of a layer with their arguments, in order.
    pub(super) fn new(
        gpu: Gpu,
        dims: Dims,
        model: &Model<'_>,
        (ids, logits): (&Arc<Buffer>, u64),
        kept: impl Iterator<Item = Held>,
    ) -> Result<Self> {
        let Dims { b, d, ed, h, v, .. } = dims;
        let (embedding, head) = (model.embedding, model.head);
        let ends = Ends { gpu, b, d, ed, v, eps: model.eps, embedding, head, ids: ids.clone() };
        let (mut batch, mut scratch) = (Batch::new(gpu), Vec::new());
        let stream = ends.stream(&mut scratch)?;
        let all = [gpu.alloc(b * dims.rows() * 2)?, gpu.alloc(b * ed * 2)?, gpu.alloc(h * b * 4)?];
        let exchange = all.each_ref().map(Buffer::address);
        scratch.extend(all);
        let norms = model.layers.iter().map(|layer| layer.norm).chain([model.norm]);
        let norms: Vec<u64> = norms.map(|norm| norm.address()).collect();
        ends.embed(&mut batch, Stream { norm: norms[0], ..stream })?;
        for (layer, &next) in model.layers.iter().zip(&norms[1..]) {
            let raw = raw_layer(dims, layer)?;
            let [packed, y, squares] = exchange;
            let first = First {
                w: raw.in_proj,
                outputs: dims.rows(),
                conv: (ed, dims.conv(), dims.k),
                taps: raw.conv,
                bias: raw.conv_bias,
                state: raw.conv_state,
                packed,
            };
            ends.input(&mut batch, stream, first)?;
            let update = Update {
                packed,
                dt_bias: raw.dt_bias,
                a_log: raw.a_log,
                skip: raw.skip,
                gated_norm: raw.gated_norm,
                states: raw.ssm_state,
                y,
                squares,
                dt_min: dims.limits.0,
                dt_max: dims.limits.1,
                rows: int(b),
                h: int(h),
                g: int(dims.g),
                skips: int(dims.skips()),
                norm_first: i32::from(dims.gate == Gate::AfterNorm),
            };
            let kernel = gpu.kernel(&SOURCE, "update", &defines(dims.n, ed / h, dims.state))?;
            let grid = (h as u32, b as u32, 1);
            let launch = Launch { grid, ..Launch::linear(1, UPDATERS as u32) }.overlapping();
            // SAFETY: laid out as in the source; sizes were checked, and the step keeps the memory.
            unsafe { batch.push(kernel, launch, update) };
            let normed = dims.gate != Gate::Plain;
            let squares = if normed { squares } else { 0 };
            let last = Last { y, w: raw.out_proj, squares, parts: h, eps: dims.gate_eps };
            ends.output(&mut batch, Stream { norm: next, ..stream }, last)?;
        }
        ends.head(&mut batch, stream, logits, &mut scratch)?;
        let kept: Vec<Held> = kept.chain(scratch.iter().map(Buffer::hold)).collect();
        batch.capture(&kept)?;
        Ok(Self { batch, scratch })
    }

    /// What its launches give each other.
    pub(super) fn scratch(&self) -> &[Buffer] {
        &self.scratch
    }

    pub(super) fn launch(&self) -> Result<()> {
        self.batch.launch()
    }

    pub(super) fn launches(&self) -> u64 {
        self.batch.launches()
    }
}

fn defines(n: usize, p: usize, state: DType) -> Vec<Define> {
    vec![Define::new("N", n), Define::new("P", p), Define::new("UPDATERS", UPDATERS), Define::dtype("S", state)]
}

/// Every specialisation but for the sizes of heads, which are the published ones here.
pub(super) fn units() -> Vec<Unit> {
    [DType::F32, DType::Bf16]
        .map(|state| Unit { source: &SOURCE, entries: &["update"], defines: defines(128, 64, state) })
        .to_vec()
}
