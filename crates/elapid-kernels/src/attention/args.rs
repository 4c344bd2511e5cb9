//! Arguments of attention.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::cuda::{self, Gpu, Mat, MatMut};
use crate::error::{Check, Result};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("attention");

/// Sizes, scores, and what a position sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Factor of the products.
    pub scale: f32,
    /// Which positions each sees.
    pub mask: Mask,
    /// Scores x become c tanh(x / c); 0 leaves them alone.
    pub softcap: f32,
    /// Whether distance lowers the scores (ALiBi, Press et al. 2022): score - slope (t - s), with slope 2^(-8 (h + 1) / heads) in
    /// head h.
    pub alibi: bool,
}

impl Attention {
    /// How much ALiBi lowers the scores of a head for each position of distance.
    pub(super) fn slope(&self, head: usize) -> f64 {
        (-8.0 * (head + 1) as f64 / self.heads as f64).exp2()
    }
}

/// Which positions s of a document position t sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Whether it sees none after it; else distances count in both directions.
    pub causal: bool,
    /// The last so many positions, t among them; 0 is all.
    pub window: usize,
    /// Of the window, every so many: t - s is 0, r, ..., (window - 1) r.
    pub dilation: usize,
    /// Beside the window, all whose distance is divisible by it (Child et al. 2019).
    pub strided: bool,
    /// Beside it, the first so many positions.
    pub sinks: usize,
    /// Beside it, these positions; and they see all.
    pub globals: Arc<[usize]>,
}

impl Default for Mask {
    /// Everything before.
    fn default() -> Self {
        Self { causal: true, window: 0, dilation: 1, strided: false, sinks: 0, globals: Arc::new([]) }
    }
}

impl Mask {
    /// Whether t sees s.
    pub fn visible(&self, t: usize, s: usize) -> bool {
        if self.causal && s > t {
            return false;
        }
        let distance = t.abs_diff(s);
        if self.window == 0 || s < self.sinks || self.globals.contains(&t) || self.globals.contains(&s) {
            return true;
        }
        let near = distance / self.dilation < self.window && distance.is_multiple_of(self.dilation);
        near || (self.strided && distance.is_multiple_of(self.window))
    }

    /// How many positions, counted from each, it may have to see beside the first ones; none if any.
    pub fn reach(&self) -> Option<usize> {
        let bounded = self.window > 0 && !self.strided && self.globals.is_empty();
        bounded.then(|| (self.window - 1) * self.dilation + 1)
    }
}

/// Positions per [`Page`].
pub const PAGE: usize = 64;

/// Keys and values of [`PAGE`] neighbouring positions.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a, E = f32> {
    /// `[kv_heads 64 dk]`.
    pub k: &'a [E],
    /// `[kv_heads 64 dv]`.
    pub v: &'a [E],
}

/// A run of queries of one document and its keys: those in pages, then those in rows, in the order of their positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Rows of q and y.
    pub queries: Range<usize>,
    /// Pages whose keys come first.
    pub pages: Range<usize>,
    /// Keys in the pages; all of them are full but the last.
    pub paged: usize,
    /// Rows of k and v.
    pub keys: Range<usize>,
    /// Index of the key at the position of the first query.
    pub offset: usize,
    /// Keys that are the document's first positions, before positions that are not there.
    pub sinks: usize,
    /// How many are not there.
    pub gap: usize,
}

impl Stretch {
    /// Keys in rows that begin with their document's first position and lack none.
    pub fn whole(queries: Range<usize>, keys: Range<usize>, offset: usize) -> Self {
        Self { queries, keys, offset, ..Self::default() }
    }

    /// Number of keys.
    pub(super) fn count(&self) -> usize {
        self.paged + self.keys.len()
    }

    /// The position in the document of a key.
    fn position(&self, key: usize) -> usize {
        if key < self.sinks { key } else { key + self.gap }
    }

    /// The position in the document of a query.
    pub(super) fn time(&self, query: usize) -> usize {
        self.position(self.offset + query)
    }

    /// Positions up to the last key.
    pub(super) fn end(&self) -> usize {
        self.position(self.count())
    }

    /// The key at a position of the document.
    pub(super) fn key(&self, position: usize) -> Option<usize> {
        let key = if position < self.sinks { position } else { position.checked_sub(self.gap)? };
        (self.position(key) == position && key < self.count()).then_some(key)
    }

    /// The row of a key; none if it is in a page.
    pub(super) fn row(&self, key: usize) -> Option<usize> {
        Some(self.keys.start + key.checked_sub(self.paged)?)
    }

    /// The keys that query `i` sees, in the order of their positions, each with its distance.
    pub(super) fn seen(&self, mask: &Mask, i: usize) -> Vec<(usize, usize)> {
        let last = self.offset + i;
        let t = self.position(last);
        // Keys before the first that is near: those of sinks.
        let near = mask.reach().map_or(0, |reach| (last + 1).saturating_sub(reach));
        let end = if mask.causal { last + 1 } else { self.count() };
        let keys = (0..self.sinks.max(mask.sinks).min(near)).chain(near..end).map(|key| (key, self.position(key)));
        keys.filter(|&(_, s)| mask.visible(t, s)).map(|(key, s)| (key, t.abs_diff(s))).collect()
    }
}

/// Which rows of a batch on a GPU belong together: `b` rows of `l` queries, each with `past + l` keys.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Rows.
    pub b: usize,
    /// Queries per row.
    pub l: usize,
    /// Keys before the first query, those of earlier calls. With some, there is one row, and no gradient.
    pub past: usize,
    /// Padding and packed documents, of `past + l` positions a row; the kernels read them at every launch, so that a captured one sees those of its time.
    pub segments: cuda::Segments<'a>,
}

/// [`Stretch`]es on the CPU, a [`Batch`] on a GPU.
#[derive(Debug, Clone, Copy)]
pub enum Together<'a> {
    /// On the CPU.
    Host(&'a [Stretch]),
    /// On a GPU.
    Device(Batch<'a>),
}

/// What [`Args`] are generic over.
pub trait Side: Matrix {
    /// Keys and values of earlier calls, read in place.
    type Pages: Copy + Debug;
    /// Which rows belong together.
    type Stretches: Copy + Debug;
}

impl<'a> Side for View<'a> {
    type Pages = &'a [Page<'a>];
    type Stretches = Together<'a>;
}

impl<'a, E: Copy + Debug> Side for Rows<'a, E> {
    type Pages = &'a [Page<'a, E>];
    type Stretches = &'a [Stretch];
}

impl<'a> Side for Mat<'a> {
    type Pages = ();
    type Stretches = Batch<'a>;
}

/// The inputs of attention, of one dtype.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Side> {
    /// `[m heads·dk]`.
    pub q: V,
    /// `[n kv_heads·dk]`.
    pub k: V,
    /// `[n kv_heads·dv]`.
    pub v: V,
    /// `[heads]` f32: a learned logit of each head, one more term of its softmax's sum, without a value.
    pub sink_logits: Option<V::Flat>,
    /// Constants of earlier calls, before the rows of k and v; on the CPU only.
    pub pages: V::Pages,
    /// Which rows belong together; queries outside all stretches are padding.
    pub stretches: V::Stretches,
}

/// What [`forward`](super::forward) wrote, and the gradient that arrives there.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<V: Matrix> {
    /// `[m heads·dv]`, as [`forward`](super::forward) left it; the CPU does not read it.
    pub y: V,
    /// `[m heads·dv]`.
    pub dy: V,
}

/// Gradients of [`forward`](super::forward), of the dtype of the inputs.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// As q (=), 0 at padding.
    pub dq: M,
    /// As k (=); keys in pages get none.
    pub dk: M,
    /// As v (=); values in pages get none.
    pub dv: M,
    /// `[heads]` f32 (+=).
    pub dsink_logits: Option<M::Flat>,
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> Result<Args<Rows<'a>>> {
        let on = |name, m| CHECK.host(name, m);
        let (q, k, v) = (on("q", self.q)?, on("k", self.k)?, on("v", self.v)?);
        let sink_logits = self.sink_logits.map(|x| CHECK.host_flat("sink_logits", x)).transpose()?;
        match self.stretches {
            Together::Host(stretches) => Ok(Args { q, k, v, pages: self.pages, sink_logits, stretches }),
            Together::Device(_) => Err(CHECK.fault("stretches", "those of a CPU".into(), "those of a GPU".into())),
        }
    }

    pub(super) fn device(self, gpu: Gpu) -> Result<Args<Mat<'a>>> {
        let on = |name, m| CHECK.device(name, m, gpu);
        let (q, k, v) = (on("q", self.q)?, on("k", self.k)?, on("v", self.v)?);
        let sink_logits = self.sink_logits.map(|x| on("sink_logits", x)).transpose()?;
        let stretches = match self.stretches {
            Together::Device(batch) => batch,
            Together::Host(_) => {
                return Err(CHECK.fault("stretches", "those of a GPU".into(), "those of a CPU".into()));
            }
        };
        match stretches.segments.gpu() {
            Some(other) if other != gpu => CHECK.wrong_place("segments", Some(gpu), Some(other)),
            _ => Ok(Args { q, k, v, pages: (), sink_logits, stretches }),
        }
    }
}

impl<'a> From<Args<Rows<'a>>> for Args<View<'a>> {
    fn from(Args { q, k, v, pages, sink_logits, stretches }: Args<Rows<'a>>) -> Self {
        let (sink_logits, stretches) = (sink_logits.map(View::from), Together::Host(stretches));
        Self { q: q.into(), k: k.into(), v: v.into(), pages, sink_logits, stretches }
    }
}

impl<'a> From<Args<Mat<'a>>> for Args<View<'a>> {
    fn from(Args { q, k, v, pages: (), sink_logits, stretches }: Args<Mat<'a>>) -> Self {
        let (sink_logits, stretches) = (sink_logits.map(View::from), Together::Device(stretches));
        Self { q: q.into(), k: k.into(), v: v.into(), pages: &[], sink_logits, stretches }
    }
}

impl<'a> From<Outputs<Rows<'a>>> for Outputs<View<'a>> {
    fn from(Outputs { y, dy }: Outputs<Rows<'a>>) -> Self {
        Self { y: y.into(), dy: dy.into() }
    }
}

impl<'a> From<Outputs<Mat<'a>>> for Outputs<View<'a>> {
    fn from(Outputs { y, dy }: Outputs<Mat<'a>>) -> Self {
        Self { y: y.into(), dy: dy.into() }
    }
}

impl<M: MatrixMut> Grads<M> {
    pub(super) fn map<W: MatrixMut>(
        self,
        f: impl Fn(&'static str, M) -> Result<W>,
        flat: impl Fn(&'static str, M::Flat) -> Result<W::Flat>,
    ) -> Result<Grads<W>> {
        let dsink_logits = self.dsink_logits.map(|m| flat("dsink_logits", m)).transpose()?;
        Ok(Grads { dq: f("dq", self.dq)?, dk: f("dk", self.dk)?, dv: f("dv", self.dv)?, dsink_logits })
    }
}

impl<'a> From<Grads<RowsMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(Grads { dq, dk, dv, dsink_logits }: Grads<RowsMut<'a>>) -> Self {
        Self { dq: dq.into(), dk: dk.into(), dv: dv.into(), dsink_logits: dsink_logits.map(ViewMut::from) }
    }
}

impl<'a> From<Grads<MatMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(Grads { dq, dk, dv, dsink_logits }: Grads<MatMut<'a>>) -> Self {
        Self { dq: dq.into(), dk: dk.into(), dv: dv.into(), dsink_logits: dsink_logits.map(ViewMut::from) }
    }
}
