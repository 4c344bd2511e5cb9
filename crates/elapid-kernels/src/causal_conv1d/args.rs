//! Arguments of the convolution.

use std::convert::Infallible;

use crate::cuda::{Gpu, Mat, MatMut, Result};
use crate::error::{self, Check};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("causal_conv1d");

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch.
    pub b: usize,
    /// Length; ignored in [`step`](super::step), where it is 1.
    pub l: usize,
    /// Channels.
    pub d: usize,
    /// Taps, at least 1.
    pub k: usize,
}

/// The inputs of the convolution.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// `[b l d]`, as `b * l` rows.
    pub x: V,
    /// `[d k]` f32.
    pub weight: V::Flat,
    /// `[d]` f32.
    pub bias: Option<V::Flat>,
    /// `[b k-1 d]` f32: the raw inputs before position 0, oldest first; zeros if absent.
    pub initial: Option<V::Flat>,
    /// Padding and packed documents.
    pub segments: V::Segments,
    /// Whether x sigmoid(x) follows.
    pub silu: bool,
}

/// The outputs of the backward.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[b l d]` (=), of the format of x.
    pub dx: M,
    /// `[d k]` f32 (+=).
    pub dweight: M::Flat,
    /// `[d]` f32 (+=).
    pub dbias: Option<M::Flat>,
    /// `[b k-1 d]` f32 (=); without `initial`, the gradient at its zeros.
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
            x: f("x", self.x)?,
            weight: flat("weight", self.weight)?,
            bias: self.bias.map(|bias| flat("bias", bias)).transpose()?,
            initial: self.initial.map(|initial| flat("initial", initial)).transpose()?,
            segments,
            silu: self.silu,
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
        let Ok(args) = args.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()), args.segments.into());
        args
    }
}

impl<'a> From<Args<Mat<'a>>> for Args<View<'a>> {
    fn from(args: Args<Mat<'a>>) -> Self {
        let Ok(args) = args.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()), args.segments.into());
        args
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
            dweight: flat("dweight", self.dweight)?,
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

impl<'a> From<Grads<MatMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(grads: Grads<MatMut<'a>>) -> Self {
        let Ok(grads) = grads.map::<ViewMut<'a>, Infallible>(|_, m| Ok(m.into()), |_, m| Ok(m.into()));
        grads
    }
}
