//! The launches of pages and steps.

use super::super::args::{Attention, CHECK};
use super::super::cuda::{Raw, raw};
use super::args::{Past, Run};
use super::page::PAGE;
use super::tables::{COUNTERS, Place};
use crate::DType;
use crate::cuda::{Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::product;

static MOVE: Source = Source { name: "attention_pages", text: include_str!("move.cu") };
static TENSOR: Source = Source {
    name: "attention_step",
    text: concat!(
        include_str!("../mask.cuh"),
        include_str!("../tensor.cuh"),
        include_str!("pages.cuh"),
        include_str!("step.cuh"),
        include_str!("step_tensor.cu")
    ),
};
static PLAIN: Source = Source {
    name: "attention_step_plain",
    text: concat!(
        include_str!("../mask.cuh"),
        include_str!("pages.cuh"),
        include_str!("step.cuh"),
        include_str!("step_plain.cu")
    ),
};

/// Threads of a block of `move.cu`, and positions that it moves.
const MOVERS: u32 = 256;
const SLOTS: usize = 16;
/// Threads of a step's block.
const THREADS: u32 = 128;

/// `Args` of `move.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Move {
    x: RawMat,
    rows: u64,
    addresses: u64,
    l: i64,
    groups: i32,
    dim: i32,
    of_pages: i32,
}

pub(super) fn store(x: Mat<'_>, l: usize, runs: &[Run<'_>]) -> Result<()> {
    transfer(x, l, runs, false)
}

pub(super) fn gather(x: MatMut<'_>, l: usize, runs: &[Run<'_>]) -> Result<()> {
    transfer(x.as_mat(), l, runs, true)
}

fn transfer(x: Mat<'_>, l: usize, runs: &[Run<'_>], of_pages: bool) -> Result<()> {
    let most = runs.iter().map(|run| run.count).max().unwrap_or(0);
    let Some(shape) = runs.iter().find_map(|run| run.pages.first()).map(|page| page.shape()) else { return Ok(()) };
    if most == 0 || x.is_empty() {
        return Ok(());
    }
    let gpu = x.gpu();
    let (mut rows, mut addresses) = (Vec::with_capacity(4 * runs.len()), Vec::new());
    for run in runs {
        rows.extend([run.slot, run.at, run.count, addresses.len()].map(|x| x as u64));
        addresses.extend(run.pages.iter().map(|page| page.address()));
    }
    let begins = rows.len();
    rows.append(&mut addresses);
    let table = gpu.upload(&rows)?;
    let args = Move {
        x: x.raw(),
        rows: table.address(),
        addresses: table.address() + 8 * begins as u64,
        l: l as i64,
        groups: shape.groups as i32,
        dim: shape.dim as i32,
        of_pages: of_pages.into(),
    };
    let kernel = gpu.kernel(&MOVE, "move", &[Define::dtype("T", x.dtype())])?;
    let across = u32::try_from(most.div_ceil(SLOTS)).unwrap_or(u32::MAX);
    let down = u32::try_from(runs.len()).unwrap_or(u32::MAX);
    let launch = Launch { grid: (across, down, 1), ..Launch::linear(1, MOVERS) };
    // SAFETY: `Move` is laid out as in the source; `super` has checked that runs lie inside x and their pages.
    unsafe { kernel.launch(launch, &args) }
}

/// `Table` of `pages.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Table {
    addresses: u64,
    sinks: i32,
    ring: i32,
    grows: i32,
    unused: i32,
}

/// `Step` of `step.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    args: Raw,
    keys: Table,
    values: Table,
    positions: u64,
    partial: u64,
    done: u64,
    splits: i32,
    blocks: i32,
}

/// How a step divides its work.
struct Form {
    tensor: bool,
    dtype: DType,
    hk: usize,
    hv: usize,
    /// Whether the mask has more than a window and sinks, and scores are more than scaled products.
    sparse: bool,
    scores: bool,
    /// Query heads of a block.
    heads: usize,
    stages: usize,
}

impl Form {
    fn new(
        dtype: DType,
        (hk, hv): (usize, usize),
        group: usize,
        attention: &Attention,
        capability: (u32, u32),
    ) -> Self {
        let mask = &attention.mask;
        let sparse = mask.window > 0 && (mask.dilation > 1 || mask.strided || !mask.globals.is_empty());
        let scores = attention.softcap > 0.0 || attention.alibi;
        let tensor = dtype == DType::Bf16 && hk.is_multiple_of(8) && hv.is_multiple_of(8);
        let widest = hk.max(hv);
        let heads = if tensor && (group <= 8 || widest > 128) { 8 } else { group.min(16) };
        let heads = if tensor { heads.next_multiple_of(8) } else { heads };
        let form = |stages| Self { tensor, dtype, hk, hv, sparse, scores, heads, stages };
        let large = matches!(capability, (8, 0) | (8, 7) | (9, _) | (10, _) | (11, _));
        let most = if large { 110 << 10 } else { 96 << 10 };
        let fits = (1..=3).rev().find(|&stages| form(stages).shared() <= most);
        form(fits.unwrap_or(1))
    }

    fn shared(&self) -> usize {
        let &Self { tensor, hk, hv, heads, stages, .. } = self;
        let (dk, dv) = (hk.next_multiple_of(16), hv.next_multiple_of(16));
        match tensor {
            true => (4 * stages * 16 * (dk + 8 + dv + 8) * 2).max(4 * heads * (dv + 2) * 4),
            false => 4 * (PAGE * (hk.max(hv) | 1) + heads * (hk + hv + PAGE + 3)),
        }
    }

    fn defines(&self) -> Vec<Define> {
        let mut defines = vec![
            Define::dtype("T", self.dtype),
            Define::new("HK", self.hk),
            Define::new("HV", self.hv),
            Define::new("HB", self.heads),
            Define::new("MASK", if self.sparse { 2 } else { 1 }),
        ];
        if self.tensor {
            defines.extend([Define::new("SCORES", u8::from(self.scores)), Define::new("STAGES", self.stages)]);
        }
        defines
    }

    fn source(&self) -> &'static Source {
        if self.tensor { &TENSOR } else { &PLAIN }
    }
}

pub(super) fn step(
    attention: &Attention,
    [q, k, v]: [Mat<'_>; 3],
    sink_logits: Option<Mat<'_>>,
    past: Past<'_>,
    [keys, values]: [&Place; 2],
    y: MatMut<'_>,
) -> Result<()> {
    let (gpu, rows) = (q.gpu(), q.rows());
    if rows == 0 {
        return Ok(());
    }
    let &Attention { heads, kv_heads, .. } = attention;
    let (hk, hv, group) = (keys.shape.dim, values.shape.dim, heads / kv_heads);
    let form = Form::new(q.dtype(), (hk, hv), group, attention, gpu.capability());
    let blocks = group.div_ceil(form.heads);
    let counted = product(&[kv_heads, blocks]) <= COUNTERS;
    CHECK.that(counted, "heads", || format!("at most {COUNTERS} on a GPU"), || heads.to_string())?;
    let kernel = gpu.kernel(form.source(), "step", &form.defines())?;
    // As many parts as run at once, each of more pages than are loaded at a time.
    let resident = gpu.multiprocessors() * kernel.resident_blocks(THREADS, form.shared() as u32)?;
    let pages = (keys.columns.sinks + keys.columns.ring) / (form.stages + 1);
    let splits = (resident / (rows * kv_heads * blocks)).clamp(1, pages.max(1));
    let partial = gpu.alloc(product(&[rows, heads, splits, (hv + 2).next_multiple_of(4), 4]))?;
    let table = |place: &Place| Table {
        addresses: past.tables.address(place),
        sinks: place.columns.sinks as i32,
        ring: place.columns.ring as i32,
        grows: place.columns.grows.into(),
        unused: 0,
    };
    let mut args = raw(attention, usize::MAX, [hk, hv])?;
    (args.q, args.k, args.v, args.y) = (q.raw(), k.raw(), v.raw(), y.raw());
    args.sink_logits = sink_logits.map_or(0, |x| x.address());
    let step = Step {
        args,
        keys: table(keys),
        values: table(values),
        positions: past.positions.address(),
        partial: partial.address(),
        done: past.tables.counters(),
        splits: splits as i32,
        blocks: blocks as i32,
    };
    let count = |x: usize| u32::try_from(x).unwrap_or(u32::MAX);
    let launch = Launch {
        grid: (count(splits), count(kv_heads * blocks), count(rows)),
        shared: count(form.shared()),
        ..Launch::linear(1, THREADS).overlapping()
    };
    // SAFETY: `Step` is laid out as in the source; `super` has checked all sizes and formats; the tables hold the pages that
    // they name, each of the shape that the kernel counts with; counters are zero between launches, and `partial` has room
    // for all parts.
    unsafe { kernel.launch(launch, &step) }
}

/// Specialisations: usual widths and masks.
pub(crate) fn units() -> Vec<Unit> {
    let moves = [DType::F32, DType::Bf16].map(|dtype| Unit {
        source: &MOVE,
        entries: &["move"],
        defines: vec![Define::dtype("T", dtype)],
    });
    let mut units = moves.to_vec();
    for (dtype, width, group, sparse) in [
        (DType::Bf16, 64, 1, false),
        (DType::Bf16, 64, 8, true),
        (DType::Bf16, 128, 4, false),
        (DType::Bf16, 128, 16, true),
        (DType::Bf16, 256, 16, true),
        (DType::F32, 64, 1, true),
        (DType::F32, 256, 16, true),
        (DType::Bf16, 7, 3, true),
    ] {
        let form = Form { sparse, scores: sparse, ..Form::new(dtype, (width, width), group, &plain(), (9, 0)) };
        units.push(Unit { source: form.source(), entries: &["step"], defines: form.defines() });
    }
    units
}

fn plain() -> Attention {
    Attention {
        heads: 1,
        kv_heads: 1,
        scale: 1.0,
        mask: super::super::args::Mask::default(),
        softcap: 0.0,
        alibi: false,
    }
}
