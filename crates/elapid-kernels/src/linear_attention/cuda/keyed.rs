//! Launches of `keyed_forward.cu` and `keyed_backward.cu`.

use super::raw::{Raw, Special, address};
use super::tensor::most_shared;
use super::walk::{CHUNK, THREADS, WARPS, Walk};
use super::{CHECK, plain};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, Result, Source, Unit};
use crate::error::product;
use crate::linear_attention::args::{Args, Dims};

static FORWARD: Source = Source {
    name: "linear_attention_keyed_forward",
    text: concat!(
        include_str!("../args.cuh"),
        include_str!("../tensor.cuh"),
        include_str!("../keyed.cuh"),
        include_str!("../walk.cuh"),
        include_str!("../keyed_forward.cu")
    ),
};
static BACKWARD: Source = Source {
    name: "linear_attention_keyed_backward",
    text: concat!(
        include_str!("../args.cuh"),
        include_str!("../tensor.cuh"),
        include_str!("../keyed.cuh"),
        include_str!("../walk.cuh"),
        include_str!("../keyed_backward.cu")
    ),
};
const FORWARDS: [&str; 6] = ["starts", "prepare_keys", "walk", "walk_ends", "walk_starts", "outputs"];
const BACKWARDS: [&str; 8] = [
    "prepare_queries",
    "walk_back",
    "walk_back_ends",
    "walk_back_starts",
    "values",
    "gradients",
    "writes",
    "parameters",
];

/// How a call divides its work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    dims: Dims,
    special: Special,
    /// Keys of a tile, and columns of a part of a value.
    keys: usize,
    part: usize,
    walk: Walk,
    chunks: usize,
}

/// What the forward leaves for the backward.
#[derive(Debug)]
pub(super) struct Saved {
    starts: Option<Buffer>,
    before: Buffer,
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        self.before.bytes() + self.starts.as_ref().map_or(0, Buffer::bytes)
    }
}

impl Form {
    /// None where tensor cores are not for the sizes or the options. The same for the forward and its backward.
    pub(super) fn new(dims: Dims, args: &Args<Mat<'_>>) -> Option<Self> {
        let special = Special::new(args);
        let form = Self::of(dims, special)?;
        let fits = special.dtype == DType::Bf16
            && special.decay.0 >= 3
            && !special.normalised
            && dims.b * dims.l > 0
            && [args.q, args.k, args.v].iter().all(Mat::is_aligned);
        let shared = form.answer_shared().max(form.gradient_shared()).max(form.walk.shared(true));
        (fits && shared as usize <= most_shared(args.q.gpu().capability())).then_some(form)
    }

    fn of(dims: Dims, special: Special) -> Option<Self> {
        let divisor = |size: usize| [64, 48, 32, 16].into_iter().find(|&tile| size.is_multiple_of(tile));
        let (keys, part) = (divisor(dims.k)?, divisor(dims.v)?);
        let walk = Walk::new(dims, keys, part, true);
        Some(Self { dims, special, keys, part, walk, chunks: dims.l.div_ceil(CHUNK) })
    }

    fn parts(&self) -> usize {
        self.dims.v / self.part
    }

    fn tiles(&self) -> usize {
        self.dims.k / self.keys
    }

    fn defines(&self) -> Vec<Define> {
        let sizes =
            [("KEYS", self.dims.k), ("HK", self.keys), ("HV", self.part)].into_iter().chain(self.walk.defines());
        self.special.defines().into_iter().chain(sizes.map(|(name, size)| Define::new(name, size))).collect()
    }

    fn check(&self) -> Result<()> {
        let Dims { b, l, heads, k, v, .. } = self.dims;
        let blocks = product(&[b, self.chunks, heads, self.tiles()]).max(product(&[b, heads, k, v]));
        let few = blocks < i32::MAX as usize && l < 1 << 29;
        Ok(CHECK.that(few, "q", || "fewer positions on a GPU".into(), || format!("{b} rows of {l}"))?)
    }

    /// Bytes of `Decays`.
    fn decays(&self) -> usize {
        4 * (CHUNK * (self.keys + 4) + 4 * self.keys)
    }

    /// Of `AnswerTiles`, with `Positions`.
    fn answer_shared(&self) -> u32 {
        let (keys, part) = (self.keys + 8, self.part + 8);
        let tiles = CHUNK * (self.dims.k + 8) + CHUNK * keys + CHUNK * part + self.dims.k * part;
        (2 * tiles + self.decays() + 8 * CHUNK) as u32
    }

    /// Of `GradientTiles`.
    fn gradient_shared(&self) -> u32 {
        let scaled = 4 * CHUNK * (self.keys + 8);
        let (inputs, results) = (4 * (CHUNK + self.keys) * (self.part + 8), 8 * CHUNK * (self.keys + 4));
        let sums = 4 * (4 * self.keys + 3 * 128);
        (scaled + self.decays() + inputs.max(results) + 8 * CHUNK + sums) as u32
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

    fn raw(&self, raw: Raw, saved: &Saved, scaled: &Buffer, passes: &Buffer) -> Raw {
        Raw {
            starts: address(&saved.starts),
            before: saved.before.address(),
            scaled: scaled.address(),
            passes: passes.address(),
            chunks: self.chunks as i64,
            parts: self.parts() as i32,
            shares: (self.dims.b * self.chunks) as i64,
            ..raw
        }
    }

    /// Scaled keys or queries, and decays of chunks.
    fn prepared(&self, gpu: Gpu) -> Result<(Buffer, Buffer)> {
        let Dims { b, heads, k, .. } = self.dims;
        let chunks = [b, heads, self.chunks, k];
        Ok((gpu.alloc(product(&[product(&chunks), CHUNK, 2]))?, gpu.alloc(product(&[product(&chunks), 4]))?))
    }

    pub(super) fn forward(&self, gpu: Gpu, raw: Raw) -> Result<Saved> {
        self.check()?;
        let Dims { b, heads, k, v, .. } = self.dims;
        let saved = Saved {
            starts: (raw.resets != 0).then(|| gpu.alloc(product(&[b, self.chunks * CHUNK, 4]))).transpose()?,
            before: gpu.alloc(product(&[b, heads, self.chunks + 1, k, v, 2]))?,
        };
        let (scaled, passes) = self.prepared(gpu)?;
        let raw = self.raw(raw, &saved, &scaled, &passes);
        if raw.resets != 0 {
            self.launch(gpu, "starts", b.div_ceil(WARPS), 0, &raw)?;
        }
        let of_heads = b * heads * self.chunks;
        self.launch(gpu, "prepare_keys", of_heads * self.tiles(), 0, &raw)?;
        self.walk(gpu, false, &raw)?;
        self.launch(gpu, "outputs", of_heads, self.answer_shared(), &raw)?;
        Ok(saved)
    }

    pub(super) fn backward(&self, gpu: Gpu, raw: Raw, saved: &Saved) -> Result<()> {
        let Dims { b, l, groups, heads, k, v } = self.dims;
        let some = |wanted: bool, sizes: &[usize]| -> Result<Option<Buffer>> {
            wanted.then(|| gpu.alloc(product(sizes))).transpose()
        };
        let chunks = self.chunks;
        let (scaled, passes) = self.prepared(gpu)?;
        let dafter = gpu.alloc(product(&[b, heads, chunks, k, v, 2]))?;
        let decays = raw.ddecay.data != 0 || raw.dconstant != 0;
        let of_pass = some(decays, &[b, heads, self.walk.shares().1, chunks, k, 4])?;
        let of_write = some(raw.dwrite.data != 0, &[b, heads, self.tiles(), chunks * CHUNK, 4])?;
        let dconstant = some(raw.dconstant != 0, &[b, chunks, heads, k, 4])?;
        let dbonus = some(raw.dbonus != 0, &[b, chunks, heads, k, 4])?;
        let dskip = some(raw.dskip != 0, &[b, chunks, heads, v, 4])?;
        let shares = [b, l, heads, k, 4];
        let (dq, dk) = (some(heads > groups, &shares)?, some(heads > groups, &shares)?);
        let raw = Raw {
            dafter: dafter.address(),
            of_pass: address(&of_pass),
            of_write: address(&of_write),
            dconstant_rows: address(&dconstant),
            dbonus_rows: address(&dbonus),
            dskip_rows: address(&dskip),
            dq_heads: address(&dq),
            dk_heads: address(&dk),
            ..self.raw(raw, saved, &scaled, &passes)
        };
        let (of_heads, of_tiles) = (b * heads * chunks, b * heads * chunks * self.tiles());
        self.launch(gpu, "prepare_queries", of_tiles, 0, &raw)?;
        self.walk(gpu, true, &raw)?;
        self.launch(gpu, "values", of_heads, self.answer_shared(), &raw)?;
        self.launch(gpu, "gradients", of_tiles, self.gradient_shared(), &raw)?;
        if heads > groups {
            let blocks = product(&[b, l, groups, k]).div_ceil(THREADS as usize);
            plain::join(gpu, self.special, "join_heads", Launch::linear(blocks, THREADS), raw)?;
        }
        if raw.dwrite.data != 0 {
            self.launch(gpu, "writes", product(&[b, l, heads]).div_ceil(THREADS as usize), 0, &raw)?;
        }
        if raw.dconstant != 0 || raw.dbonus != 0 || raw.dskip != 0 {
            self.launch(gpu, "parameters", (heads * k.max(v)).div_ceil(WARPS), 0, &raw)?;
        }
        Ok(())
    }
}

/// Decays in both dtypes, a bonus, and some widths.
pub(super) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for (decay, of_decay, bonus, k, v) in
        [(4, DType::F32, false, 64, 64), (4, DType::Bf16, true, 128, 48), (3, DType::F32, true, 256, 128)]
    {
        let special = Special { dtype: DType::Bf16, decay: (decay, of_decay), bonus, normalised: false };
        let dims = Dims { b: 1, l: 1, groups: 1, heads: 1, k, v };
        let Some(form) = Form::of(dims, special) else { continue };
        units.push(Unit { source: &FORWARD, entries: &FORWARDS, defines: form.defines() });
        units.push(Unit { source: &BACKWARD, entries: &BACKWARDS, defines: form.defines() });
    }
    units
}
