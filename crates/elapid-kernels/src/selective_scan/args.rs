//! Arguments of the scan.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use crate::cuda::{Gpu, Mat, MatMut, Result};
use crate::error::{self, Check, Error};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("selective_scan");

/// The discretisation: how Ā and B̄ follow from Δ, A and B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Discretisation {
    /// Ā = exp(ΔA), B̄ = ΔB: what the released Mamba models use.
    #[default]
    ExpEuler,
    /// Zero-order hold, equation 4 of the paper: Ā = exp(ΔA), B̄ = (exp(ΔA) - 1) / A · B; ΔB where ΔA = 0.
    Zoh,
    /// Ā = (1 + ΔA/2) / (1 - ΔA/2), B̄ = Δ / (1 - ΔA/2) · B (S4, arXiv 2111.00396, equation 3). ΔA must not be 2.
    Bilinear,
}

impl Discretisation {
    /// Every rule.
    pub const ALL: [Self; 3] = [Self::ExpEuler, Self::Zoh, Self::Bilinear];

    /// `exp-euler`, `zoh` or `bilinear`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExpEuler => "exp-euler",
            Self::Zoh => "zoh",
            Self::Bilinear => "bilinear",
        }
    }
}

impl fmt::Display for Discretisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Discretisation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|rule| rule.name() == name);
        found.ok_or_else(|| CHECK.fault("rule", Self::ALL.map(Self::name).join(", "), name.to_owned()))
    }
}

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch.
    pub b: usize,
    /// Length; ignored in [`step`](super::step), where it is 1.
    pub l: usize,
    /// Channels, at least 1.
    pub d: usize,
    /// State size of a channel, at least 1, and at most 256 on a GPU.
    pub n: usize,
}

/// What the scan reads. Activations are of one format, all else is f32.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// `[b l d]`, the input.
    pub u: V,
    /// `[b l d]`, Δ before bias and softplus.
    pub delta: V,
    /// `[d]`.
    pub delta_bias: Option<V::Flat>,
    /// Whether Δ goes through softplus.
    pub softplus: bool,
    /// `[d n]`: A itself, negative for a state that decays.
    pub a: V::Flat,
    /// `[b l n]`.
    pub b: V,
    /// `[b l n]`.
    pub c: V,
    /// `[d]`: D, the weight of the input in the output.
    pub skip: Option<V::Flat>,
    /// `[b l d]`, the gate.
    pub z: Option<V>,
    /// `[b d n]`: the state before position 0; zeros if absent.
    pub initial: Option<V::Flat>,
    /// Padding and packed documents.
    pub segments: V::Segments,
    /// How Ā and B̄ come about.
    pub rule: Discretisation,
}

/// What [`forward`](super::forward) wrote, and the gradients that arrive there.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<V: Matrix> {
    /// `[b l d]`, as [`forward`](super::forward) left it.
    pub y: V,
    /// `[b l d]`, of the format of y.
    pub dy: V,
    /// `[b d n]` f32: arrives at `last` from a next chunk.
    pub dlast: Option<V::Flat>,
}

/// What the backward writes and adds to. Gradients of activations are of their format, all others f32.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[b l d]` (=).
    pub du: M,
    /// `[b l d]` (=), of `delta` before bias and softplus.
    pub ddelta: M,
    /// `[d]` (+=).
    pub ddelta_bias: Option<M::Flat>,
    /// `[d n]` (+=).
    pub da: M::Flat,
    /// `[b l n]` (=).
    pub db: M,
    /// `[b l n]` (=).
    pub dc: M,
    /// `[d]` (+=).
    pub dskip: Option<M::Flat>,
    /// `[b l d]` (=); needs `z`.
    pub dz: Option<M>,
    /// `[b d n]` (=).
    pub dinitial: Option<M::Flat>,
}

impl<V: Matrix> Args<V> {
    pub(super) fn map<W: Matrix, E>(
        self,
        f: impl Fn(&'static str, V) -> Result<W, E>,
        flat: impl Fn(&'static str, V::Flat) -> Result<W::Flat, E>,
        segments: W::Segments,
    ) -> Result<Args<W>, E> {
        Ok(Args {
            u: f("u", self.u)?,
            delta: f("delta", self.delta)?,
            delta_bias: self.delta_bias.map(|x| flat("delta_bias", x)).transpose()?,
            softplus: self.softplus,
            a: flat("a", self.a)?,
            b: f("b", self.b)?,
            c: f("c", self.c)?,
            skip: self.skip.map(|x| flat("skip", x)).transpose()?,
            z: self.z.map(|x| f("z", x)).transpose()?,
            initial: self.initial.map(|x| flat("initial", x)).transpose()?,
            segments,
            rule: self.rule,
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

impl<'a> From<Outputs<Rows<'a>>> for Outputs<View<'a>> {
    fn from(Outputs { y, dy, dlast }: Outputs<Rows<'a>>) -> Self {
        Self { y: y.into(), dy: dy.into(), dlast: dlast.map(View::from) }
    }
}

impl<'a> From<Outputs<Mat<'a>>> for Outputs<View<'a>> {
    fn from(Outputs { y, dy, dlast }: Outputs<Mat<'a>>) -> Self {
        Self { y: y.into(), dy: dy.into(), dlast: dlast.map(View::from) }
    }
}

impl<M: MatrixMut> Grads<M> {
    pub(super) fn map<W: MatrixMut, E>(
        self,
        f: impl Fn(&'static str, M) -> Result<W, E>,
        flat: impl Fn(&'static str, M::Flat) -> Result<W::Flat, E>,
    ) -> Result<Grads<W>, E> {
        Ok(Grads {
            du: f("du", self.du)?,
            ddelta: f("ddelta", self.ddelta)?,
            ddelta_bias: self.ddelta_bias.map(|m| flat("ddelta_bias", m)).transpose()?,
            da: flat("da", self.da)?,
            db: f("db", self.db)?,
            dc: f("dc", self.dc)?,
            dskip: self.dskip.map(|m| flat("dskip", m)).transpose()?,
            dz: self.dz.map(|m| f("dz", m)).transpose()?,
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
