//! Launches of `tensor_forward.cu` and `tensor_backward.cu`.

use super::raw::{Raw, Special, address};
use super::walk::{CHUNK, THREADS, WARPS, Walk};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, Result, Source, Unit};
use crate::error::product;
use crate::linear_attention::args::{Args, CHECK, Dims};

static FORWARD: Source = Source {
    name: "linear_attention_forward",
    text: concat!(
        include_str!("../args.cuh"),
        include_str!("../tensor.cuh"),
        include_str!("../walk.cuh"),
        include_str!("../tensor_forward.cu")
    ),
};
static BACKWARD: Source = Source {
    name: "linear_attention_backward",
    text: concat!(
        include_str!("../args.cuh"),
        include_str!("../tensor.cuh"),
        include_str!("../walk.cuh"),
        include_str!("../tensor_backward.cu")
    ),
};
const FORWARDS: [&str; 5] = ["sums", "walk", "walk_ends", "walk_starts", "outputs"];
const BACKWARDS: [&str; 8] =
    ["walk_back", "walk_back_ends", "walk_back_starts", "queries", "keys", "decays", "parameters", "join_blocks"];

/// How a call divides its work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    dims: Dims,
    special: Special,
    /// Columns of a value that a block has.
    columns: usize,
    walk: Walk,
    chunks: usize,
}

/// What the forward leaves for the backward.
#[derive(Debug)]
pub(super) struct Saved {
    sums: Buffer,
    starts: Option<Buffer>,
    before: Buffer,
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        self.sums.bytes() + self.before.bytes() + self.starts.as_ref().map_or(0, Buffer::bytes)
    }
}

impl Form {
    /// None where tensor cores are not for the sizes or the options. The same for the forward and its backward.
    pub(super) fn new(dims: Dims, args: &Args<Mat<'_>>) -> Option<Self> {
        let special = Special::new(args);
        let columns = [64, 48, 32, 16].into_iter().find(|&columns| dims.v.is_multiple_of(columns))?;
        let fits = special.dtype == DType::Bf16
            && special.decay.0 <= 2
            && !special.bonus
            && !special.normalised
            && dims.k.is_multiple_of(16)
            && dims.k <= 128
            && dims.b * dims.l > 0
            && [args.q, args.k, args.v].iter().all(Mat::is_aligned);
        let form = Self::of(dims, special, columns)?;
        let shared = form.output_shared().max(form.gradient_shared(2)) as usize;
        (fits && shared <= most_shared(args.q.gpu().capability())).then_some(form)
    }

    fn of(dims: Dims, special: Special, columns: usize) -> Option<Self> {
        let keys = [64, 48, 32, 16].into_iter().find(|&keys| dims.k.is_multiple_of(keys))?;
        let walk = Walk::new(dims, keys, columns, false);
        Some(Self { dims, special, columns, walk, chunks: dims.l.div_ceil(CHUNK) })
    }

    fn parts(&self) -> usize {
        self.dims.v / self.columns
    }

    /// Heads times parts of a group that a block works on: as many as leave two blocks for each multiprocessor.
    fn together(&self, gpu: Gpu) -> usize {
        let Dims { b, groups, heads, .. } = self.dims;
        let of_group = heads / groups * self.parts();
        let blocks = (2 * gpu.multiprocessors()).div_ceil(b * self.chunks * groups).clamp(1, of_group);
        of_group.div_ceil(blocks)
    }

    fn blocks(&self, gpu: Gpu) -> usize {
        (self.dims.heads / self.dims.groups * self.parts()).div_ceil(self.together(gpu))
    }

    fn defines(&self) -> Vec<Define> {
        let sizes = [("HK", self.dims.k), ("HV", self.columns)].into_iter().chain(self.walk.defines());
        self.special.defines().into_iter().chain(sizes.map(|(name, size)| Define::new(name, size))).collect()
    }

    fn check(&self, gpu: Gpu) -> Result<()> {
        let Dims { b, l, groups, heads, .. } = self.dims;
        let blocks = product(&[b, self.chunks, groups, self.blocks(gpu)]).max(product(&[b, heads, self.parts()]));
        let few = blocks < i32::MAX as usize && l < 1 << 29;
        Ok(CHECK.that(few, "q", || "fewer positions on a GPU".into(), || format!("{b} rows of {l}"))?)
    }

    fn raw(&self, gpu: Gpu, raw: Raw, saved: &Saved) -> Raw {
        Raw {
            sums: saved.sums.address(),
            starts: address(&saved.starts),
            before: saved.before.address(),
            chunks: self.chunks as i64,
            parts: self.parts() as i32,
            together: self.together(gpu) as i32,
            shares: (self.dims.b * self.chunks) as i64,
            ..raw
        }
    }

    /// Bytes of tiles in shared memory: of keys, values and a state.
    fn tiles(&self) -> (usize, usize, usize) {
        let (keys, columns) = (2 * (self.dims.k + 8), 2 * (self.columns + 8));
        (CHUNK * keys, CHUNK * columns, self.dims.k * columns)
    }

    /// Of `OutputTiles`.
    fn output_shared(&self) -> u32 {
        let (keys, values, state) = self.tiles();
        (keys + 2 * keys.max(values + state) + 2 * 12 * CHUNK) as u32
    }

    /// Of `GradientTiles` with `heads` of a block.
    fn gradient_shared(&self, heads: usize) -> u32 {
        let (keys, values, state) = self.tiles();
        (2 * keys + heads.min(2) * (2 * values + state + 12 * CHUNK)) as u32
    }

    fn launch(&self, gpu: Gpu, entry: &'static str, blocks: usize, shared: u32, raw: &Raw) -> Result<()> {
        let source = if FORWARDS.contains(&entry) { &FORWARD } else { &BACKWARD };
        let kernel = gpu.kernel(source, entry, &self.defines())?;
        let launch = Launch { shared, ..Launch::linear(blocks, THREADS) };
        // SAFETY: `Raw` is laid out as in the source; `mod.rs` has checked all sizes and formats, and the buffers were made for this
        // form.
        unsafe { kernel.launch(launch, raw) }
    }

    fn walk(&self, gpu: Gpu, back: bool, raw: &Raw) -> Result<()> {
        self.walk.run(gpu, back, raw, |entry, blocks, shared, raw| self.launch(gpu, entry, blocks, shared, raw))
    }

    /// States of every chunk, bf16.
    fn states(&self, gpu: Gpu) -> Result<Buffer> {
        let Dims { b, heads, k, v, .. } = self.dims;
        gpu.alloc(product(&[b, heads, self.chunks, k, v, 2]))
    }

    pub(super) fn forward(&self, gpu: Gpu, raw: Raw) -> Result<Saved> {
        self.check(gpu)?;
        let Dims { b, groups, heads, .. } = self.dims;
        let rows = product(&[b, self.chunks * CHUNK, 4]);
        let saved = Saved {
            sums: gpu.alloc(product(&[rows, heads]))?,
            starts: (raw.resets != 0).then(|| gpu.alloc(rows)).transpose()?,
            before: self.states(gpu)?,
        };
        let raw = self.raw(gpu, raw, &saved);
        self.launch(gpu, "sums", (b * heads * self.chunks + b).div_ceil(WARPS), 0, &raw)?;
        self.walk(gpu, false, &raw)?;
        let blocks = b * self.chunks * groups * self.blocks(gpu);
        self.launch(gpu, "outputs", blocks, self.output_shared(), &raw)?;
        Ok(saved)
    }

    pub(super) fn backward(&self, gpu: Gpu, raw: Raw, saved: &Saved) -> Result<()> {
        let Dims { b, l, groups, heads, k, v } = self.dims;
        let some = |wanted: bool, sizes: &[usize]| -> Result<Option<Buffer>> {
            wanted.then(|| gpu.alloc(product(sizes))).transpose()
        };
        let (parts, chunks, blocks) = (self.parts(), self.chunks, self.blocks(gpu));
        let decays = raw.ddecay.data != 0 || raw.dconstant != 0;
        let positions = [b, heads, parts, chunks * CHUNK, 4];
        let dafter = self.states(gpu)?;
        let (of_queries, of_keys) = (some(decays, &positions)?, some(decays, &positions)?);
        let (of_inter, of_write) = (some(decays, &positions)?, some(raw.dwrite.data != 0, &positions)?);
        let (tiles, pieces) = self.walk.shares();
        let of_pass = some(decays, &[b, heads, pieces, tiles, chunks, self.walk.keys / 16, 4])?;
        let dconstant = some(raw.dconstant != 0, &[b, chunks, heads, 4])?;
        let each = if raw.skip_channels != 0 { v } else { parts * WARPS };
        let dskip = some(raw.dskip != 0, &[b, chunks, heads, each, 4])?;
        let shares = [b, l, groups, blocks, k, 4];
        let (dq, dk) = (some(blocks > 1, &shares)?, some(blocks > 1, &shares)?);
        let raw = Raw {
            dafter: dafter.address(),
            of_queries: address(&of_queries),
            of_keys: address(&of_keys),
            of_inter: address(&of_inter),
            of_write: address(&of_write),
            of_pass: address(&of_pass),
            dconstant_rows: address(&dconstant),
            dskip_rows: address(&dskip),
            dq_heads: address(&dq),
            dk_heads: address(&dk),
            ..self.raw(gpu, raw, saved)
        };
        self.walk(gpu, true, &raw)?;
        for entry in ["queries", "keys"] {
            self.launch(gpu, entry, b * chunks * groups * blocks, self.gradient_shared(self.together(gpu)), &raw)?;
        }
        if decays || raw.dwrite.data != 0 {
            self.launch(gpu, "decays", (b * heads * chunks).div_ceil(WARPS), 0, &raw)?;
        }
        if raw.dconstant != 0 || raw.dskip != 0 {
            self.launch(gpu, "parameters", (heads * v).div_ceil(WARPS), 0, &raw)?;
        }
        if blocks > 1 {
            self.launch(gpu, "join_blocks", (b * l * groups * k).div_ceil(THREADS as usize), 0, &raw)?;
        }
        Ok(())
    }
}

/// Bytes of shared memory that a block can have.
pub(super) fn most_shared(capability: (u32, u32)) -> usize {
    match capability {
        (9 | 10, _) => 226 << 10,
        (8, 0 | 7) | (11, _) => 162 << 10,
        _ => 98 << 10,
    }
}

/// Every decay of a head, and some widths.
pub(super) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for (decay, k, v) in [(0, 64, 64), (2, 128, 64), (2, 128, 48), (1, 16, 16)] {
        let special = Special { dtype: DType::Bf16, decay: (decay, DType::F32), bonus: false, normalised: false };
        let dims = Dims { b: 1, l: 1, groups: 1, heads: 1, k, v };
        let Some(form) = Form::of(dims, special, v) else { continue };
        units.push(Unit { source: &FORWARD, entries: &FORWARDS, defines: form.defines() });
        units.push(Unit { source: &BACKWARD, entries: &BACKWARDS, defines: form.defines() });
    }
    units
}
