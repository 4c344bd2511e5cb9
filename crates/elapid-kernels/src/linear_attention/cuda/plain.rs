//! Launches of `plain.cu`, `join.cu` and `step.cu`.

use super::raw::{Raw, Special, address};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Result, Source, Unit};
use crate::error::product;
use crate::linear_attention::args::Dims;

static PLAIN: Source =
    Source { name: "linear_attention_plain", text: concat!(include_str!("../args.cuh"), include_str!("../plain.cu")) };
static JOIN: Source =
    Source { name: "linear_attention_join", text: concat!(include_str!("../args.cuh"), include_str!("../join.cu")) };
static STEP: Source =
    Source { name: "linear_attention_step", text: concat!(include_str!("../args.cuh"), include_str!("../step.cu")) };
const ENTRIES: [&str; 5] = ["forward", "divisors", "backward_queries", "backward_keys", "backward_values"];
const JOINS: [&str; 3] = ["join_heads", "join_keys", "join_rows"];

/// Positions between states that are kept; `SEGMENT` of the source.
const SEGMENT: usize = 256;
/// Columns, or keys, of a warp.
const OF_WARP: usize = 4;
const WARPS: usize = 4;
const THREADS: u32 = 128;
/// Columns and threads of a block of `step.cu`.
const STEP_COLUMNS: usize = 64;
const STEP_THREADS: u32 = 256;

/// Memory for the states after every segment.
pub(super) fn states(gpu: Gpu, dims: Dims, special: Special) -> Result<Buffer> {
    gpu.alloc(product(&[dims.states(special.normalised), dims.l.div_ceil(SEGMENT), 4]))
}

/// Memory for what the normaliser divides by, `[b h l]`.
pub(super) fn divisors(gpu: Gpu, dims: Dims) -> Result<Buffer> {
    gpu.alloc(product(&[dims.b, dims.heads, dims.l, 4]))
}

fn defines(dims: Dims, special: Special) -> Vec<Define> {
    let lanes = |size: usize| size.div_ceil(32);
    let sizes = [("KN", lanes(dims.k)), ("VN", lanes(dims.columns(special.normalised)))];
    special.defines().into_iter().chain(sizes.map(|(name, size)| Define::new(name, size))).collect()
}

/// Warps for every `of_warp` of `size` of each head.
fn tiles(dims: Dims, size: usize) -> Launch {
    let warps = product(&[dims.b, dims.heads, size.div_ceil(OF_WARP)]);
    Launch::linear(warps.div_ceil(WARPS), THREADS)
}

pub(super) fn forward(gpu: Gpu, dims: Dims, special: Special, raw: Raw) -> Result<()> {
    let kernel = gpu.kernel(&PLAIN, "forward", &defines(dims, special))?;
    // SAFETY: `Raw` is laid out as in the source; `mod.rs` has checked all sizes and formats, and the buffers were made for them.
    unsafe { kernel.launch(tiles(dims, dims.v), &raw) }
}

/// One position, without a normaliser; the state is in `initial` and goes to `last`.
pub(super) fn step(gpu: Gpu, dims: Dims, special: Special, raw: Raw) -> Result<()> {
    let blocks = product(&[dims.b, dims.heads, dims.v.div_ceil(STEP_COLUMNS)]);
    if blocks == 0 {
        return Ok(());
    }
    let kernel = gpu.kernel(&STEP, "step", &special.defines())?;
    // SAFETY: as in `forward`.
    unsafe { kernel.launch(Launch::linear(blocks, STEP_THREADS).overlapping(), &raw) }
}

pub(super) fn backward(gpu: Gpu, dims: Dims, special: Special, raw: Raw) -> Result<()> {
    let Dims { b, l, heads, k, v, .. } = dims;
    let some = |wanted: bool, sizes: &[usize]| -> Result<Option<Buffer>> {
        wanted.then(|| gpu.alloc(product(sizes))).transpose()
    };
    let shares = [b, l, heads, k, 4];
    let (dq, dk) = (some(true, &shares)?, some(true, &shares)?);
    let ddecay = some(special.decay.0 == 2 && raw.ddecay.data != 0, &shares)?;
    let dconstant = some(raw.dconstant != 0, &[b, heads, k, 4])?;
    let dbonus = some(raw.dbonus != 0, &[b, heads, k, 4])?;
    let dskip = some(raw.dskip != 0, &[b, heads, v, 4])?;
    let ddivisors = some(special.normalised, &[b, heads, l, 4])?;
    let raw = Raw {
        dq_heads: address(&dq),
        dk_heads: address(&dk),
        ddecay_heads: address(&ddecay),
        dconstant_rows: address(&dconstant),
        dbonus_rows: address(&dbonus),
        dskip_rows: address(&dskip),
        ddivisors: address(&ddivisors),
        ..raw
    };
    let heads_of_rows = Launch::linear(product(&[b, l, heads]).div_ceil(WARPS), THREADS);
    let launch = |entry: &'static str, launch: Launch| -> Result<()> {
        let kernel = gpu.kernel(&PLAIN, entry, &defines(dims, special))?;
        // SAFETY: as in `forward`.
        unsafe { kernel.launch(launch, &raw) }
    };
    if special.normalised {
        launch("divisors", heads_of_rows)?;
    }
    launch("backward_queries", tiles(dims, k))?;
    launch("backward_keys", tiles(dims, k))?;
    launch("backward_values", tiles(dims, v))?;
    let elements = product(&[b, l, dims.groups, k]);
    join(gpu, special, "join_heads", Launch::linear(elements.div_ceil(THREADS as usize), THREADS), raw)?;
    if raw.dwrite.data != 0 || raw.ddecay_heads != 0 {
        join(gpu, special, "join_keys", heads_of_rows, raw)?;
    }
    let parameters = [(raw.dconstant, k), (raw.dbonus, k), (raw.dskip, v)];
    let most = parameters.into_iter().filter(|(to, _)| *to != 0).map(|(_, width)| heads * width).max().unwrap_or(0);
    join(gpu, special, "join_rows", Launch::linear(most.div_ceil(WARPS), THREADS), raw)
}

/// A launch of a kernel of `join.cu`.
pub(super) fn join(gpu: Gpu, special: Special, entry: &'static str, launch: Launch, raw: Raw) -> Result<()> {
    let kernel = gpu.kernel(&JOIN, entry, &special.defines())?;
    // SAFETY: as in `forward`.
    unsafe { kernel.launch(launch, &raw) }
}

/// Every decay in bf16, a bonus and a normaliser in f32, and the widest.
pub(super) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    let dims = |k, v| Dims { b: 1, l: 1, groups: 1, heads: 1, k, v };
    let special = |dtype, decay, bonus, normalised| {
        let of_decay = (decay, if decay == 4 { dtype } else { DType::F32 });
        Special { dtype, decay: of_decay, bonus, normalised }
    };
    let plain = |special: Special, dims| Unit { source: &PLAIN, entries: &ENTRIES, defines: defines(dims, special) };
    let all = (0..5).map(|decay| special(DType::Bf16, decay, false, false));
    for special in all.chain([special(DType::F32, 2, true, true), special(DType::F32, 4, true, true)]) {
        units.push(plain(special, dims(64, 64)));
        units.push(Unit { source: &JOIN, entries: &JOINS, defines: special.defines() });
        let special = Special { normalised: false, ..special };
        units.push(Unit { source: &STEP, entries: &["step"], defines: special.defines() });
    }
    units.push(plain(special(DType::Bf16, 0, false, true), dims(288, 512)));
    units.push(plain(special(DType::F32, 3, true, false), dims(288, 512)));
    units
}
