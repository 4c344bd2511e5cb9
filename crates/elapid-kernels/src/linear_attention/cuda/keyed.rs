//! Launches of `keyed_forward.cu` and `keyed_backward.cu`.

use super::raw::{Raw, Special, address};
use super::tensor::most_shared;
use super::walk::{CHUNK, THREADS, WARPS, Walk};
use super::{CHECK, plain};
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, RawMat, Result, Source, Unit};
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
const FORWARDS: [&str; 8] =
    ["starts", "prepare_keys", "walk", "walk_ends", "walk_starts", "walk_sums", "outputs", "pad"];
const BACKWARDS: [&str; 10] = [
    "divide",
    "prepare_queries",
    "walk_back",
    "walk_back_ends",
    "walk_back_starts",
    "walk_sums_back",
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
    /// Columns of a key: those of the call, and zeros up to a multiple of 16.
    width: usize,
    /// Whether q and k are copied to rows of that width.
    padded: bool,
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
    /// Of the normaliser: its columns of states, and what it divides by.
    z: Option<Buffer>,
    divisors: Option<Buffer>,
}

/// What is made of the inputs for either direction.
struct Prepared {
    rows: Option<(Buffer, Buffer)>,
    scaled: Buffer,
    passes: Buffer,
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        let rest = [&self.starts, &self.z, &self.divisors].into_iter().flatten();
        self.before.bytes() + rest.map(Buffer::bytes).sum::<usize>()
    }
}

impl Form {
    /// None where tensor cores are not for the sizes or the options. The same for the forward and its backward.
    pub(super) fn new(dims: Dims, args: &Args<Mat<'_>>) -> Option<Self> {
        let special = Special::new(args);
        let form = Self::of(dims, special, ![args.q, args.k].iter().all(Mat::is_aligned))?;
        let fits = special.dtype == DType::Bf16 && dims.b * dims.l > 0 && args.v.is_aligned();
        let shared = form.answer_shared().max(form.gradient_shared()).max(form.walk.shared(true));
        (fits && shared as usize <= most_shared(args.q.gpu().capability())).then_some(form)
    }

    fn of(dims: Dims, special: Special, padded: bool) -> Option<Self> {
        let divisor = |size: usize| [64, 48, 32, 16].into_iter().find(|&tile| size.is_multiple_of(tile));
        let width = dims.k.next_multiple_of(16);
        let (keys, part) = (divisor(width)?, divisor(dims.v)?);
        let walk = Walk::new(Dims { k: width, ..dims }, keys, part, true);
        let padded = padded || width > dims.k;
        Some(Self { dims, special, width, padded, keys, part, walk, chunks: dims.l.div_ceil(CHUNK) })
    }

    fn parts(&self) -> usize {
        self.dims.v / self.part
    }

    fn tiles(&self) -> usize {
        self.width / self.keys
    }

    fn defines(&self) -> Vec<Define> {
        let sizes = [("KEYS", self.width), ("HK", self.keys), ("HV", self.part)].into_iter().chain(self.walk.defines());
        self.special.defines().into_iter().chain(sizes.map(|(name, size)| Define::new(name, size))).collect()
    }

    fn check(&self) -> Result<()> {
        let Dims { b, l, heads, v, .. } = self.dims;
        let blocks = product(&[b, self.chunks, heads, self.tiles()]).max(product(&[b, heads, self.width, v]));
        let few = blocks < i32::MAX as usize && l < 1 << 29;
        Ok(CHECK.that(few, "q", || "fewer positions on a GPU".into(), || format!("{b} rows of {l}"))?)
    }

    /// Bytes of `Decays` and `Positions`.
    fn of_chunk(&self) -> usize {
        4 * (CHUNK * (self.keys + 4) + 4 * self.keys) + CHUNK * if self.special.normalised { 12 } else { 8 }
    }

    /// Of `AnswerTiles`.
    fn answer_shared(&self) -> u32 {
        let (keys, part) = (self.keys + 8, self.part + 8);
        let tiles = CHUNK * (self.width + 8) + CHUNK * keys + CHUNK * part + self.width * part;
        (2 * tiles + self.of_chunk()) as u32
    }

    /// Of `GradientTiles`.
    fn gradient_shared(&self) -> u32 {
        let scaled = 4 * CHUNK * (self.keys + 8);
        let (inputs, results) = (4 * (CHUNK + self.keys) * (self.part + 8), 8 * CHUNK * (self.keys + 4));
        let sums = 4 * (4 * self.keys + 3 * 128);
        (scaled + self.of_chunk() + inputs.max(results) + sums) as u32
    }

    fn launch(&self, gpu: Gpu, entry: &'static str, blocks: usize, shared: u32, raw: &Raw) -> Result<()> {
        let source = if FORWARDS.contains(&entry) { &FORWARD } else { &BACKWARD };
        let kernel = gpu.kernel(source, entry, &self.defines())?;
        let launch = Launch { shared, ..Launch::linear(blocks, THREADS) };
        // SAFETY: `Raw` is laid out as in the source; `mod.rs` has checked all sizes and formats, and the buffers were made for this
        // form.
        unsafe { kernel.launch(launch, raw) }
    }

    /// A launch with a thread for each of some elements.
    fn launch_all(&self, gpu: Gpu, entry: &'static str, elements: &[usize], raw: &Raw) -> Result<()> {
        self.launch(gpu, entry, product(elements).div_ceil(THREADS as usize), 0, raw)
    }

    fn walk(&self, gpu: Gpu, back: bool, raw: &Raw) -> Result<()> {
        self.walk.run(gpu, back, raw, |entry, blocks, shared, raw| self.launch(gpu, entry, blocks, shared, raw))
    }

    /// Room for scaled keys or queries and decays of chunks; and copies of q and k with rows of `width`, which `raw` then has.
    fn prepare(&self, gpu: Gpu, raw: Raw, saved: &Saved) -> Result<(Prepared, Raw)> {
        let Dims { b, l, groups, heads, .. } = self.dims;
        let chunks = product(&[b, heads, self.chunks, self.width]);
        let sizes = [b, l, groups, self.width, 2];
        let rows = || -> Result<(Buffer, Buffer)> { Ok((gpu.alloc(product(&sizes))?, gpu.alloc(product(&sizes))?)) };
        let prepared = Prepared {
            rows: self.padded.then(rows).transpose()?,
            scaled: gpu.alloc(product(&[chunks, CHUNK, 2]))?,
            passes: gpu.alloc(product(&[chunks, 4]))?,
        };
        let mut raw = Raw {
            starts: address(&saved.starts),
            before: saved.before.address(),
            z: address(&saved.z),
            divisors: address(&saved.divisors),
            scaled: prepared.scaled.address(),
            passes: prepared.passes.address(),
            chunks: self.chunks as i64,
            parts: self.parts() as i32,
            shares: (b * self.chunks) as i64,
            ..raw
        };
        if let Some((q, k)) = &prepared.rows {
            let of = |rows: &Buffer| RawMat { data: rows.address(), stride: (groups * self.width) as i64 };
            let padded = Raw { q: of(q), k: of(k), ..raw };
            self.launch_all(gpu, "pad", &sizes[..4], &Raw { dq: raw.q, dk: raw.k, ..padded })?;
            raw = padded;
        }
        Ok((prepared, raw))
    }

    pub(super) fn forward(&self, gpu: Gpu, raw: Raw) -> Result<Saved> {
        self.check()?;
        let Dims { b, l, heads, v, .. } = self.dims;
        let some = |wanted: bool, sizes: &[usize]| -> Result<Option<Buffer>> {
            wanted.then(|| gpu.alloc(product(sizes))).transpose()
        };
        let normalised = self.special.normalised;
        let saved = Saved {
            starts: some(raw.resets != 0, &[b, self.chunks * CHUNK, 4])?,
            before: gpu.alloc(product(&[b, heads, self.chunks + 1, self.width, v, 2]))?,
            z: some(normalised, &[b, heads, self.chunks + 1, self.width, 4])?,
            divisors: some(normalised, &[b, heads, l, 4])?,
        };
        let (_prepared, raw) = self.prepare(gpu, raw, &saved)?;
        if raw.resets != 0 {
            self.launch(gpu, "starts", b.div_ceil(WARPS), 0, &raw)?;
        }
        let of_heads = b * heads * self.chunks;
        self.launch(gpu, "prepare_keys", of_heads * self.tiles(), 0, &raw)?;
        self.walk(gpu, false, &raw)?;
        if normalised {
            self.launch_all(gpu, "walk_sums", &[b, heads, self.width], &raw)?;
        }
        self.launch(gpu, "outputs", of_heads, self.answer_shared(), &raw)?;
        Ok(saved)
    }

    pub(super) fn backward(&self, gpu: Gpu, raw: Raw, saved: &Saved) -> Result<()> {
        let Dims { b, l, groups, heads, k, v } = self.dims;
        let some = |wanted: bool, sizes: &[usize]| -> Result<Option<Buffer>> {
            wanted.then(|| gpu.alloc(product(sizes))).transpose()
        };
        let (chunks, width, normalised) = (self.chunks, self.width, self.special.normalised);
        let (_prepared, raw) = self.prepare(gpu, raw, saved)?;
        let dafter = gpu.alloc(product(&[b, heads, chunks, width, v, 2]))?;
        let decays = raw.ddecay.data != 0 || raw.dconstant != 0;
        let of_head = self.special.decay.0 == 2 && raw.ddecay.data != 0;
        let of_pass = some(decays, &[b, heads, self.walk.shares().1, chunks, width, 4])?;
        let positions = [b, heads, self.tiles(), chunks * CHUNK, 4];
        let (of_write, of_queries) = (some(raw.dwrite.data != 0, &positions)?, some(of_head, &positions)?);
        let parameters = [b, chunks, heads, k, 4];
        let (dconstant, dbonus) = (some(raw.dconstant != 0, &parameters)?, some(raw.dbonus != 0, &parameters)?);
        let dskip = some(raw.dskip != 0, &[b, chunks, heads, v, 4])?;
        let shares = [b, l, heads, k, 4];
        let (dq, dk) = (some(heads > groups, &shares)?, some(heads > groups, &shares)?);
        let (dr, ddivisors) = (some(normalised, &[b, l, heads, v, 2])?, some(normalised, &[b, heads, l, 4])?);
        let dz = some(normalised, &[b, heads, chunks + 1, width, 4])?;
        let raw = Raw {
            dr: dr.as_ref().map_or(raw.dy, |dr| RawMat { data: dr.address(), stride: (heads * v) as i64 }),
            ddivisors: address(&ddivisors),
            dz: address(&dz),
            dafter: dafter.address(),
            of_pass: address(&of_pass),
            of_write: address(&of_write),
            of_queries: address(&of_queries),
            dconstant_rows: address(&dconstant),
            dbonus_rows: address(&dbonus),
            dskip_rows: address(&dskip),
            dq_heads: address(&dq),
            dk_heads: address(&dk),
            ..raw
        };
        if normalised {
            self.launch(gpu, "divide", product(&[b, l, heads]).div_ceil(WARPS), 0, &raw)?;
        }
        let (of_heads, of_tiles) = (b * heads * chunks, b * heads * chunks * self.tiles());
        self.launch(gpu, "prepare_queries", of_tiles, 0, &raw)?;
        self.walk(gpu, true, &raw)?;
        if normalised {
            self.launch_all(gpu, "walk_sums_back", &[b, heads, width], &raw)?;
        }
        self.launch(gpu, "values", of_heads, self.answer_shared(), &raw)?;
        self.launch(gpu, "gradients", of_tiles, self.gradient_shared(), &raw)?;
        self.join(gpu, &raw)
    }

    /// Sums of shares.
    fn join(&self, gpu: Gpu, raw: &Raw) -> Result<()> {
        let Dims { b, l, groups, heads, k, v } = self.dims;
        if heads > groups {
            let blocks = product(&[b, l, groups, k]).div_ceil(THREADS as usize);
            plain::join(gpu, self.special, "join_heads", Launch::linear(blocks, THREADS), *raw)?;
        }
        if raw.of_write != 0 || raw.of_queries != 0 {
            self.launch_all(gpu, "writes", &[b, l, heads], raw)?;
        }
        if raw.dconstant != 0 || raw.dbonus != 0 || raw.dskip != 0 {
            self.launch(gpu, "parameters", (heads * k.max(v)).div_ceil(WARPS), 0, raw)?;
        }
        Ok(())
    }
}

/// Decays in both dtypes, a bonus, a normaliser, and some widths.
pub(super) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for (decay, of_decay, bonus, normalised, k, v) in [
        (4, DType::F32, false, false, 64, 64),
        (4, DType::Bf16, true, false, 128, 48),
        (3, DType::F32, true, false, 256, 128),
        (0, DType::F32, false, true, 153, 64),
    ] {
        let special = Special { dtype: DType::Bf16, decay: (decay, of_decay), bonus, normalised };
        let dims = Dims { b: 1, l: 1, groups: 1, heads: 1, k, v };
        let Some(form) = Form::of(dims, special, false) else { continue };
        units.push(Unit { source: &FORWARD, entries: &FORWARDS, defines: form.defines() });
        units.push(Unit { source: &BACKWARD, entries: &BACKWARDS, defines: form.defines() });
    }
    units
}
