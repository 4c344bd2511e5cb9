//! On a GPU: bf16 on tensor cores (`tensor_*.cu`, over the products of `tensor.cuh` or, at the usual widths on Hopper, of
//! `hopper.cuh`), everything else by plain sums (`plain.cu`), all with f32 sums.
//!
//! No scores are ever in memory. The forward keeps the log-sum-exp of each query's scores, from which the backward
//! recomputes them: once for dq, by blocks that own queries, and once for dk and dv, by blocks that own keys, so that every
//! sum has one order. Documents are found on the device (`documents.cu`), at every launch. Tiles in which nothing is visible
//! are left out; what else the mask hides is told element by element (`mask.cuh`).

use super::args::{Args, Attention, Batch, CHECK, Grads, Outputs};
use crate::DType;
use crate::cuda::{Buffer, Gpu, Launch, Mat, MatMut, RawMat, Result};
use crate::error::product;

mod forms;

pub(crate) use forms::units;
use forms::{DOCUMENTS, Form, Kind, Mask, SINKS, Special};

/// Global positions of a mask, at most.
const GLOBALS: usize = 64;
/// Beyond all positions: `NOWHERE` of `mask.cuh`.
const NOWHERE: i32 = 0x3fff_ffff;
/// Rows of per-query values are padded to this.
const PADDED: usize = 128;
/// Keys and values of heads that are worked on side by side: a third of the L2 cache of a large GPU.
const TOGETHER: usize = 16 << 20;

/// What the forward leaves for the backward.
#[derive(Debug)]
pub(super) struct Saved {
    /// `[b heads padded]` f32.
    lse: Buffer,
    /// Where documents are; none if every row is one.
    documents: Option<Buffer>,
    /// b, l and the heads.
    sizes: (usize, usize, usize),
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        self.lse.bytes() + self.documents.as_ref().map_or(0, Buffer::bytes)
    }

    /// Whether a forward of these sizes left it, on this device.
    pub(super) fn is_for(&self, attention: &Attention, args: &Args<Mat<'_>>) -> bool {
        let batch = args.stretches;
        self.sizes == (batch.b, batch.l, attention.heads) && self.lse.gpu() == args.q.gpu()
    }
}

/// `Args` of `mask.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Raw {
    pub(super) q: RawMat,
    pub(super) k: RawMat,
    pub(super) v: RawMat,
    pub(super) y: RawMat,
    dy: RawMat,
    dq: RawMat,
    dk: RawMat,
    dv: RawMat,
    lse: u64,
    delta: u64,
    lengths: u64,
    resets: u64,
    starts: u64,
    ends: u64,
    marks: u64,
    pub(super) sink_logits: u64,
    dsink_logits: u64,
    scale: f32,
    softcap: f32,
    b: i32,
    l: i32,
    padded: i32,
    heads: i32,
    kv_heads: i32,
    together: i32,
    reach: i32,
    dense: i32,
    causal: i32,
    window: i32,
    dilation: i32,
    strided: i32,
    sinks: i32,
    alibi: i32,
    globals: i32,
    global: [i32; GLOBALS],
}

impl Raw {
    /// Without matrices, and of no positions.
    const NOTHING: Self = Self {
        q: RawMat::NULL,
        k: RawMat::NULL,
        v: RawMat::NULL,
        y: RawMat::NULL,
        dy: RawMat::NULL,
        dq: RawMat::NULL,
        dk: RawMat::NULL,
        dv: RawMat::NULL,
        lse: 0,
        delta: 0,
        lengths: 0,
        resets: 0,
        starts: 0,
        ends: 0,
        marks: 0,
        sink_logits: 0,
        dsink_logits: 0,
        scale: 0.0,
        softcap: 0.0,
        b: 0,
        l: 0,
        padded: 0,
        heads: 0,
        kv_heads: 0,
        together: 0,
        reach: 0,
        dense: 0,
        causal: 0,
        window: 0,
        dilation: 1,
        strided: 0,
        sinks: 0,
        alibi: 0,
        globals: 0,
        global: [0; GLOBALS],
    };
}

/// One call: its sizes as the kernels count them, and which kernels it takes.
struct Call {
    gpu: Gpu,
    special: Special,
    b: usize,
    /// Positions of keys in each row, ...
    l: usize,
    /// ... of which so many come before the queries.
    past: usize,
    padded: usize,
    heads: usize,
    kv_heads: usize,
    raw: Raw,
}

impl Call {
    fn new(attention: &Attention, args: &Args<Mat<'_>>, others: &[&Mat<'_>]) -> Result<Self> {
        let Attention { heads, kv_heads, scale, ref mask, softcap, alibi } = *attention;
        let Batch { b, l: own, past, segments } = args.stretches;
        // Positions of keys; queries are the last of them.
        let l = past.saturating_add(own);
        let (hk, hv) = (args.q.cols() / heads, args.v.cols() / kv_heads);
        let padded = l.next_multiple_of(PADDED);
        let small = padded < NOWHERE as usize && product(&[b, heads, padded / 16]) < i32::MAX as usize;
        CHECK.that(small, "q", || "fewer positions on a GPU".into(), || format!("{b} rows of {l}, {heads} heads"))?;
        let raw = raw(attention, l, [hk, hv])?;
        let bounded = mask.window > 0;
        let sparse = !mask.causal || bounded && (mask.dilation > 1 || mask.strided || raw.globals > 0);
        let documents = segments.lengths.is_some() || segments.resets.is_some();
        let mask_kind = match (sparse, documents || bounded && mask.window < l) {
            (true, _) => Mask::Sparse,
            (false, true) => Mask::Window,
            (false, false) => Mask::Causal,
        };
        let mats = [&args.q, &args.k, &args.v].into_iter().chain(others.iter().copied());
        let tensor = args.q.dtype() == DType::Bf16
            && hk.is_multiple_of(8)
            && hv.is_multiple_of(8)
            && mats.into_iter().all(Mat::is_aligned);
        let special = Special {
            tensor,
            dtype: args.q.dtype(),
            hk,
            hv,
            mask: mask_kind,
            // The kernels for bare scores take the largest product before they scale it.
            scores: softcap > 0.0 || alibi || scale <= 0.0,
        };
        let of_head = product(&[l, hk + hv, args.q.dtype().bytes()]) / (heads / kv_heads);
        let all = b.max(1) * heads;
        let raw = Raw {
            q: args.q.raw(),
            k: args.k.raw(),
            v: args.v.raw(),
            lengths: segments.lengths_address(),
            resets: segments.resets_address(),
            sink_logits: args.sink_logits.map_or(0, |x| x.address()),
            b: count(b),
            l: count(l),
            padded: count(padded),
            // Blocks that begin with the last queries of all heads, so that those before the chunk can be left out.
            together: count(if past > 0 { all } else { (TOGETHER / of_head.max(1)).clamp(1, all) }),
            ..raw
        };
        Ok(Self { gpu: args.q.gpu(), special, b, l, past, padded, heads, kv_heads, raw })
    }

    fn is_empty(&self) -> bool {
        self.b * (self.l - self.past) == 0
    }

    /// Memory for one f32 of each query and head.
    fn per_query(&self) -> Result<Buffer> {
        self.gpu.alloc(product(&[self.b, self.heads, self.padded, 4]))
    }

    /// Memory for starts, ends and marks, if the kernels read them.
    fn documents(&self) -> Result<Option<Buffer>> {
        let needed = self.special.mask != Mask::Causal;
        needed.then(|| self.gpu.alloc(product(&[self.b, self.padded, 9]))).transpose()
    }

    fn with_documents(&self, documents: Option<&Buffer>) -> Raw {
        let Some(buffer) = documents else { return self.raw };
        let (starts, i32s) = (buffer.address(), 4 * (self.b * self.padded) as u64);
        Raw { starts, ends: starts + i32s, marks: starts + 2 * i32s, ..self.raw }
    }

    fn form(&self, kind: Kind) -> Form {
        Form::new(kind, &self.special, self.gpu.capability())
    }

    fn run(&self, kind: Kind, raw: &Raw) -> Result<()> {
        let heads = if kind == Kind::Queries || kind == Kind::Forward { self.heads } else { self.kv_heads };
        let form = self.form(kind);
        // Blocks begin with the last queries: those before the chunk are at the end and left out.
        let blocks = self.b * heads * (self.l.div_ceil(form.tile()) - self.past / form.tile());
        let launch = Launch { shared: form.shared() as u32, ..Launch::linear(blocks, form.threads() as u32) };
        let kernel = self.gpu.kernel(form.source(), kind.entry(), &form.defines())?;
        // SAFETY: `Raw` is laid out as in the source; `super` has checked all sizes and formats, and what was allocated was
        // sized by this call.
        unsafe { kernel.launch(launch, raw) }
    }
}

/// What the kernels are told of scores and the mask, and nothing else yet. `l`: positions of a row.
pub(super) fn raw(attention: &Attention, l: usize, [hk, hv]: [usize; 2]) -> Result<Raw> {
    let Attention { heads, kv_heads, scale, ref mask, softcap, alibi } = *attention;
    for (name, width) in [("q", hk), ("v", hv)] {
        let fits = (1..=256).contains(&width);
        CHECK.that(fits, name, || "1 to 256 columns of a head on a GPU".into(), || width.to_string())?;
    }
    let globals: Vec<i32> = mask.globals.iter().filter(|&&at| at < l).map(|&at| count(at)).collect();
    let few = globals.len() <= GLOBALS;
    CHECK.that(few, "globals", || format!("at most {GLOBALS} on a GPU"), || globals.len().to_string())?;
    let mut global = [0; GLOBALS];
    global[..globals.len()].copy_from_slice(&globals);
    Ok(Raw {
        scale,
        softcap,
        heads: count(heads),
        kv_heads: count(kv_heads),
        reach: mask.reach().map_or(NOWHERE, count),
        dense: match (mask.window, mask.dilation) {
            (0, _) => NOWHERE,
            (window, 1) => count(window),
            _ => 1,
        },
        causal: mask.causal.into(),
        window: count(mask.window),
        dilation: count(mask.dilation),
        strided: mask.strided.into(),
        sinks: count(mask.sinks),
        alibi: alibi.into(),
        globals: count(globals.len()),
        global,
        ..Raw::NOTHING
    })
}

/// As the kernels count; everything beyond all positions is the same to them.
fn count(x: usize) -> i32 {
    i32::try_from(x).map_or(NOWHERE, |x| x.min(NOWHERE))
}

pub(super) fn forward(attention: &Attention, args: &Args<Mat<'_>>, y: MatMut<'_>, keep: bool) -> Result<Option<Saved>> {
    let call = Call::new(attention, args, &[&y.as_mat()])?;
    let documents = call.documents()?;
    let lse = if keep { Some(call.per_query()?) } else { None };
    if !call.is_empty() {
        let raw = Raw { lse: lse.as_ref().map_or(0, Buffer::address), ..call.with_documents(documents.as_ref()) };
        if documents.is_some() {
            let kernel = call.gpu.kernel(&DOCUMENTS, "documents", &forms::documents())?;
            // SAFETY: as in `run`.
            unsafe { kernel.launch(Launch::linear(call.b, 1024), &raw)? };
        }
        match call.past {
            0 => call.run(Kind::Forward, &Raw { y: y.raw(), ..raw })?,
            _ => after(&call, raw, args.q, y)?,
        }
    }
    Ok(lse.map(|lse| Saved { lse, documents, sizes: (call.b, call.l, call.heads) }))
}

/// The forward of a row whose queries come after `past` keys. The kernels count queries from the first key on, by tiles: they
/// see a matrix that would begin there, of which only the tiles from the first query's on are read and written.
fn after(call: &Call, raw: Raw, q: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let before = call.past % call.form(Kind::Forward).tile();
    let from_first_key = |m: &Mat<'_>, before: usize| {
        let skipped = ((call.past - before) * m.stride() * m.dtype().bytes()) as u64;
        RawMat { data: m.address().wrapping_sub(skipped), stride: m.stride() as i64 }
    };
    if before == 0 {
        let raw = Raw { q: from_first_key(&q, 0), y: from_first_key(&y.as_mat(), 0), ..raw };
        return call.run(Kind::Forward, &raw);
    }
    // The first tile has queries that are not there.
    let padded = |m: &Mat<'_>| call.gpu.alloc(product(&[before + m.rows(), m.cols(), m.dtype().bytes()]));
    let (own_q, own_y) = (padded(&q)?, padded(&y.as_mat())?);
    let mut all = own_q.mat_mut(before + q.rows(), q.cols(), q.dtype());
    call.gpu.zero(all.reborrow().rows_range(0, before))?;
    call.gpu.copy(q, all.reborrow().rows_range(before, q.rows()))?;
    let out = own_y.mat(before + y.rows(), y.cols(), y.dtype());
    let raw = Raw { q: from_first_key(&all.as_mat(), before), y: from_first_key(&out, before), ..raw };
    call.run(Kind::Forward, &raw)?;
    call.gpu.copy(out.rows_range(before, y.rows()), y)
}

pub(super) fn backward(
    attention: &Attention,
    args: &Args<Mat<'_>>,
    saved: &Saved,
    Outputs { y, dy }: Outputs<Mat<'_>>,
    Grads { dq, dk, dv, dsink_logits }: Grads<MatMut<'_>>,
) -> Result<()> {
    let call = Call::new(attention, args, &[&y, &dy, &dq.as_mat(), &dk.as_mat(), &dv.as_mat()])?;
    let found = saved.documents.is_some() || call.special.mask == Mask::Causal;
    CHECK.that(found, "saved", || "what a forward of this mask left".into(), || "that of another".into())?;
    if call.is_empty() {
        return Ok(());
    }
    let delta = call.per_query()?;
    let raw = Raw {
        y: y.raw(),
        dy: dy.raw(),
        dq: dq.raw(),
        dk: dk.raw(),
        dv: dv.raw(),
        lse: saved.lse.address(),
        delta: delta.address(),
        dsink_logits: dsink_logits.map_or(0, |x| x.address()),
        ..call.with_documents(saved.documents.as_ref())
    };
    // The first writes `delta`, which the others read.
    call.run(Kind::Queries, &raw)?;
    for &kind in Kind::of_keys(&call.special) {
        call.run(kind, &raw)?;
    }
    if raw.dsink_logits != 0 {
        let kernel = call.gpu.kernel(&SINKS, "sinks", &forms::documents())?;
        // SAFETY: as in `run`; `super` has checked that there are logits.
        unsafe { kernel.launch(Launch::linear(call.heads, 1024), &raw)? };
    }
    Ok(())
}
