//! Arguments of the loss.

use std::convert::Infallible;

use crate::cuda::{Gpu, Mat, MatMut, Result};
use crate::error::{self, Check};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("cross_entropy");

/// The inputs of the loss.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// `[m d]`, the last hidden states.
    pub h: V,
    /// `[v d]`, the output projection, of the format of h.
    pub w: V,
    /// `[m]`; negative: the row is ignored.
    pub targets: V::Array<i32>,
    /// ε, 0 to below 1: what part of a target all tokens share alike.
    pub smoothing: f32,
    /// c: logits become c tanh(z / c) (Gemma 2, arXiv 2408.00118, section 2); 0 leaves them alone.
    pub softcap: f32,
}

/// Gradients of `scale` times the mean loss, made in the same pass.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[m d]` (=) of the format of h, zeros where a row is ignored.
    pub dh: M,
    /// `[v d]` f32 (=).
    pub dw: M,
    /// What the mean is multiplied by.
    pub scale: f32,
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> error::Result<Args<Rows<'a>>> {
        let Self { h, w, targets, smoothing, softcap } = self;
        let targets = CHECK.host_array("targets", targets)?;
        Ok(Args { h: CHECK.host("h", h)?, w: CHECK.host("w", w)?, targets, smoothing, softcap })
    }

    pub(super) fn device(self, gpu: Gpu) -> error::Result<Args<Mat<'a>>> {
        let Self { h, w, targets, smoothing, softcap } = self;
        let targets = CHECK.device_array("targets", targets, gpu)?;
        Ok(Args { h: CHECK.device("h", h, gpu)?, w: CHECK.device("w", w, gpu)?, targets, smoothing, softcap })
    }
}

impl<'a> From<Args<Rows<'a>>> for Args<View<'a>> {
    fn from(Args { h, w, targets, smoothing, softcap }: Args<Rows<'a>>) -> Self {
        Self { h: h.into(), w: w.into(), targets: targets.into(), smoothing, softcap }
    }
}

impl<'a> From<Args<Mat<'a>>> for Args<View<'a>> {
    fn from(Args { h, w, targets, smoothing, softcap }: Args<Mat<'a>>) -> Self {
        Self { h: h.into(), w: w.into(), targets: targets.into(), smoothing, softcap }
    }
}

impl<M: MatrixMut> Grads<M> {
    pub(super) fn map<W: MatrixMut, E>(self, f: impl Fn(&'static str, M) -> Result<W, E>) -> Result<Grads<W>, E> {
        Ok(Grads { dh: f("dh", self.dh)?, dw: f("dw", self.dw)?, scale: self.scale })
    }
}

impl<'a> From<Grads<RowsMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(grads: Grads<RowsMut<'a>>) -> Self {
        let Ok(grads) = grads.map::<ViewMut<'a>, Infallible>(|_, m| Ok(m.into()));
        grads
    }
}

impl<'a> From<Grads<MatMut<'a>>> for Grads<ViewMut<'a>> {
    fn from(grads: Grads<MatMut<'a>>) -> Self {
        let Ok(grads) = grads.map::<ViewMut<'a>, Infallible>(|_, m| Ok(m.into()));
        grads
    }
}
