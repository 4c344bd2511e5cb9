//! Arguments of linear attention.

use std::convert::Infallible;

use crate::cuda::{Gpu, Mat, MatMut, Result};
use crate::error::{self, Check};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("linear_attention");

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch.
    pub b: usize,
    /// Length; ignored in [`step`](super::step), where it is 1.
    pub l: usize,
    /// Heads of q and k, a divisor of `heads`; each serves `heads / groups` neighbouring heads.
    pub groups: usize,
    /// Heads of v, y and the state.
    pub heads: usize,
    /// Width of a query and a key, at least 1, and at most 288 on a GPU.
    pub k: usize,
    /// Width of a value, at least 1, and at most 512 on a GPU.
    pub v: usize,
}

/// What the state is multiplied by at each position, as a logarithm, which should be at most 0.
#[derive(Debug, Clone, Copy)]
pub enum Decay<V: Matrix> {
    /// Nothing.
    None,
    /// `[h]` f32: a constant of each head (RetNet).
    Head(V::Flat),
    /// `[b l h]` f32 (Mamba-2, with ΔA).
    HeadVarying(V),
    /// `[(h k)]` f32: a constant of each row of the state (RWKV-5).
    Key(V::Flat),
    /// `[b l (h k)]`, f32 or of the format of the activations (GLA, RWKV-6, HGRN2).
    KeyVarying(V),
}

/// What the operation reads. Activations are of one format.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// `[b l (g k)]`.
    pub q: V,
    /// `[b l (g k)]`.
    pub k: V,
    /// `[b l (h v)]`.
    pub v: V,
    /// Factor of every product of a query.
    pub scale: f32,
    /// g, as its logarithm.
    pub decay: Decay<V>,
    /// `[b l h]` f32: w, the weight of what a position writes; 1 if absent.
    pub write: Option<V>,
    /// `[(h k)]` f32: u. With it a position reads the state before it, and its own write times u.
    pub bonus: Option<V::Flat>,
    /// `[h]` or `[(h v)]` f32: the weight of v in the output, beside all else.
    pub skip: Option<V::Flat>,
    /// ε of the normaliser.
    pub normaliser: Option<f32>,
    /// `[b h k v]` f32, `[b h k v+1]` with a normaliser: the state before position 0; zeros if absent.
    pub initial: Option<V::Flat>,
    /// Padding and packed documents.
    pub segments: V::Segments,
}

/// What [`forward`](super::forward) wrote, and the gradients that arrive there.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<V: Matrix> {
    /// `[b l (h v)]`, as [`forward`](super::forward) left it.
    pub y: V,
    /// `[b l (h v)]`, of the format of y.
    pub dy: V,
    /// The shape of the state, f32: arrives at `last` from a next chunk.
    pub dlast: Option<V::Flat>,
}

/// What the backward writes and adds to. Gradients of activations are of their format, all others f32.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[b l (g k)]` (=).
    pub dq: M,
    /// `[b l (g k)]` (=).
    pub dk: M,
    /// `[b l (h v)]` (=).
    pub dv: M,
    /// The shape and format of a varying decay (=).
    pub ddecay: Option<M>,
    /// The shape of a constant decay (+=).
    pub ddecay_constant: Option<M::Flat>,
    /// `[b l h]` (=); needs `write`.
    pub dwrite: Option<M>,
    /// `[(h k)]` (+=); needs `bonus`.
    pub dbonus: Option<M::Flat>,
    /// The shape of `skip` (+=), which it needs.
    pub dskip: Option<M::Flat>,
    /// The shape of the state (=).
    pub dinitial: Option<M::Flat>,
}

impl Dims {
    /// Columns of the state: those of a value, and the normaliser's.
    pub(super) fn columns(self, normalised: bool) -> usize {
        self.v + usize::from(normalised)
    }

    /// Elements of all states, once `check` has seen that they can be counted.
    pub(super) fn states(self, normalised: bool) -> usize {
        self.b * self.heads * self.k * self.columns(normalised)
    }
}

impl<V: Matrix> Decay<V> {
    fn map<W: Matrix, E>(
        self,
        f: impl Fn(&'static str, V) -> Result<W, E>,
        flat: impl Fn(&'static str, V::Flat) -> Result<W::Flat, E>,
    ) -> Result<Decay<W>, E> {
        Ok(match self {
            Self::None => Decay::None,
            Self::Head(x) => Decay::Head(flat("decay", x)?),
            Self::HeadVarying(x) => Decay::HeadVarying(f("decay", x)?),
            Self::Key(x) => Decay::Key(flat("decay", x)?),
            Self::KeyVarying(x) => Decay::KeyVarying(f("decay", x)?),
        })
    }
}

impl<V: Matrix> Args<V> {
    pub(super) fn map<W: Matrix, E>(
        self,
        f: impl Fn(&'static str, V) -> Result<W, E>,
        flat: impl Fn(&'static str, V::Flat) -> Result<W::Flat, E>,
        segments: W::Segments,
    ) -> Result<Args<W>, E> {
        Ok(Args {
            q: f("q", self.q)?,
            k: f("k", self.k)?,
            v: f("v", self.v)?,
            scale: self.scale,
            decay: self.decay.map(&f, &flat)?,
            write: self.write.map(|x| f("write", x)).transpose()?,
            bonus: self.bonus.map(|x| flat("bonus", x)).transpose()?,
            skip: self.skip.map(|x| flat("skip", x)).transpose()?,
            normaliser: self.normaliser,
            initial: self.initial.map(|x| flat("initial", x)).transpose()?,
            segments,
        })
    }
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> error::Result<Args<Rows<'a>>> {
        self.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x), self.segments.host(CHECK)?)
    }

    pub(super) fn device(self, gpu: Gpu) -> error::Result<Args<Mat<'a>>> {
        let on = |name, x| CHECK.device(name, x, gpu);
        self.map(on, on, self.segments.device(CHECK, gpu)?)
    }
}

impl<'a> From<Args<Rows<'a>>> for Args<View<'a>> {
    fn from(args: Args<Rows<'a>>) -> Self {
        let segments = args.segments.into();
        let Ok(args) = args.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()), segments);
        args
    }
}

impl<'a> From<Args<Mat<'a>>> for Args<View<'a>> {
    fn from(args: Args<Mat<'a>>) -> Self {
        let segments = args.segments.into();
        let Ok(args) = args.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()), segments);
        args
    }
}

impl<V: Matrix> Outputs<V> {
    pub(super) fn map<W: Matrix, E>(
        self,
        f: impl Fn(&'static str, V) -> Result<W, E>,
        flat: impl Fn(&'static str, V::Flat) -> Result<W::Flat, E>,
    ) -> Result<Outputs<W>, E> {
        let dlast = self.dlast.map(|x| flat("dlast", x)).transpose()?;
        Ok(Outputs { y: f("y", self.y)?, dy: f("dy", self.dy)?, dlast })
    }
}

impl<'a> From<Outputs<Rows<'a>>> for Outputs<View<'a>> {
    fn from(outputs: Outputs<Rows<'a>>) -> Self {
        let Ok(outputs) = outputs.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()));
        outputs
    }
}

impl<'a> From<Outputs<Mat<'a>>> for Outputs<View<'a>> {
    fn from(outputs: Outputs<Mat<'a>>) -> Self {
        let Ok(outputs) = outputs.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()));
        outputs
    }
}

impl<M: MatrixMut> Grads<M> {
    pub(super) fn map<W: MatrixMut, E>(
        self,
        f: impl Fn(&'static str, M) -> Result<W, E>,
        flat: impl Fn(&'static str, M::Flat) -> Result<W::Flat, E>,
    ) -> Result<Grads<W>, E> {
        Ok(Grads {
            dq: f("dq", self.dq)?,
            dk: f("dk", self.dk)?,
            dv: f("dv", self.dv)?,
            ddecay: self.ddecay.map(|m| f("ddecay", m)).transpose()?,
            ddecay_constant: self.ddecay_constant.map(|m| flat("ddecay_constant", m)).transpose()?,
            dwrite: self.dwrite.map(|m| f("dwrite", m)).transpose()?,
            dbonus: self.dbonus.map(|m| flat("dbonus", m)).transpose()?,
            dskip: self.dskip.map(|m| flat("dskip", m)).transpose()?,
            dinitial: self.dinitial.map(|m| flat("dinitial", m)).transpose()?,
        })
    }
}

impl<'a> From<Grads<RowsMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(grads: Grads<RowsMut<'a>>) -> Self {
        let Ok(grads) = grads.map::<ViewMut<'a>, Infallible>(|_, m| Ok(m.into()), |_, m| Ok(m.into()));
        grads
    }
}

impl<'a> From<Grads<MatMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(grads: Grads<MatMut<'a>>) -> Self {
        let Ok(grads) = grads.map::<ViewMut<'a>, Infallible>(|_, m| Ok(m.into()), |_, m| Ok(m.into()));
        grads
    }
}
