//! Arguments of the cells.

use std::convert::Infallible;

use crate::cuda::{Gpu, Mat, MatMut, Result};
use crate::error::{self, Check};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("cell");

/// What a cell computes; the equations are in the [module](super).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A vanilla RNN, h = tanh(a).
    Tanh,
    /// A vanilla RNN, h = max(a, 0).
    Relu,
    /// Gates i, f, g, o; state h, c.
    Lstm,
    /// Gates r, z, n; state h.
    Gru,
    /// Gates i, f, z, o; state h, c, n, m.
    Slstm,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Tanh, Self::Relu, Self::Lstm, Self::Gru, Self::Slstm];

    /// Vectors `[d]` of x at a position.
    pub const fn gates(self) -> usize {
        match self {
            Self::Tanh | Self::Relu => 1,
            Self::Gru => 3,
            Self::Lstm | Self::Slstm => 4,
        }
    }

    /// Vectors `[d]` of the state; the first is h.
    pub const fn states(self) -> usize {
        match self {
            Self::Tanh | Self::Relu | Self::Gru => 1,
            Self::Lstm => 2,
            Self::Slstm => 4,
        }
    }

    /// Values per channel that the nonlinearities of a position read: a of every gate; of the GRU r, z, x_n and q_n.
    pub(super) const fn reads(self) -> usize {
        match self {
            Self::Gru => 4,
            _ => self.gates(),
        }
    }

    /// Vectors `[d]` that [`Saved`] has of a position: what was read, then the states after it but h.
    pub(super) const fn saved(self) -> usize {
        self.reads() + self.states() - 1
    }
}

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch.
    pub b: usize,
    /// Length.
    pub l: usize,
    /// Channels of h, at least 1.
    pub d: usize,
    /// Blocks of U, a divisor of d.
    pub heads: usize,
}

impl Dims {
    /// Elements of all states.
    pub(super) fn states(self, kind: Kind) -> usize {
        self.b * kind.states() * self.d
    }
}

/// What the cells read.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// What a cell computes.
    pub kind: Kind,
    /// `[b l (gate d)]`, the gates' inputs.
    pub x: V,
    /// `[(head gate d/heads) d/heads]` without gaps, of the format of x: U. With one head the rows are those of the gates.
    pub recurrent: V,
    /// `[(gate d)]` f32, added to U h.
    pub bias: Option<V::Flat>,
    /// `[b s d]` f32: the state before position 0; zeros if absent.
    pub initial: Option<V::Flat>,
    /// Padding and packed documents.
    pub segments: V::Segments,
}

/// What [`forward`](super::forward) wrote, and the gradients that arrive there.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<V: Matrix> {
    /// `[b l d]`, as [`forward`](super::forward) left it.
    pub y: V,
    /// `[b l d]`, of the format of y.
    pub dy: V,
    /// `[b s d]` f32: arrives at `last` from a next chunk.
    pub dlast: Option<V::Flat>,
}

/// What the backward writes and adds to.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[b l (gate d)]` (=), of the format of x.
    pub dx: M,
    /// f32, the shape of U (+=).
    pub drecurrent: M::Flat,
    /// `[(gate d)]` f32 (+=).
    pub dbias: Option<M::Flat>,
    /// `[b s d]` f32 (=); without `initial`, the gradient at its zeros.
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
            kind: self.kind,
            x: f("x", self.x)?,
            recurrent: f("recurrent", self.recurrent)?,
            bias: self.bias.map(|x| flat("bias", x)).transpose()?,
            initial: self.initial.map(|x| flat("initial", x)).transpose()?,
            segments,
        })
    }
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> error::Result<Args<Rows<'a>>> {
        self.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x), self.segments.host(CHECK)?)
    }
}

impl<'a> Args<View<'a>> {
    pub(super) fn device(self, gpu: Gpu) -> error::Result<Args<Mat<'a>>> {
        let on = |name, x| CHECK.device(name, x, gpu);
        let segments = self.segments.device(CHECK, gpu)?;
        self.map(on, on, segments)
    }
}

impl<'a> From<Args<Mat<'a>>> for Args<View<'a>> {
    fn from(args: Args<Mat<'a>>) -> Self {
        let segments = args.segments.into();
        let Ok(args) = args.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()), segments);
        args
    }
}

impl<'a> From<Outputs<Mat<'a>>> for Outputs<View<'a>> {
    fn from(outputs: Outputs<Mat<'a>>) -> Self {
        let Ok(outputs) = outputs.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()));
        outputs
    }
}

impl<'a> From<Grads<MatMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(grads: Grads<MatMut<'a>>) -> Self {
        let Ok(grads) = grads.map::<ViewMut<'a>, Infallible>(|_, m| Ok(m.into()), |_, m| Ok(m.into()));
        grads
    }
}

impl<'a> From<Args<Rows<'a>>> for Args<View<'a>> {
    fn from(args: Args<Rows<'a>>) -> Self {
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

impl<M: MatrixMut> Grads<M> {
    pub(super) fn map<W: MatrixMut, E>(
        self,
        f: impl Fn(&'static str, M) -> Result<W, E>,
        flat: impl Fn(&'static str, M::Flat) -> Result<W::Flat, E>,
    ) -> Result<Grads<W>, E> {
        Ok(Grads {
            dx: f("dx", self.dx)?,
            drecurrent: flat("drecurrent", self.drecurrent)?,
            dbias: self.dbias.map(|m| flat("dbias", m)).transpose()?,
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
