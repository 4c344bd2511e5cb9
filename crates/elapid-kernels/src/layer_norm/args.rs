//! Arguments of the norm.

use crate::cuda::{Gpu, Mat, MatMut};
use crate::error::{Check, Result};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("layer_norm");

/// What is added to x before the norm: s = keep r + scale x.
#[derive(Debug, Clone, Copy)]
pub struct Residual<V> {
    /// r `[m d]` f32.
    pub r: V,
    /// Its factor.
    pub keep: f32,
    /// The factor of x.
    pub scale: f32,
}

/// The inputs of the norm.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// `[m d]`.
    pub x: V,
    /// None: s is x.
    pub residual: Option<Residual<V>>,
    /// `[d]` f32; none: 1.
    pub weight: Option<V::Flat>,
    /// `[d]` f32; none: 0.
    pub bias: Option<V::Flat>,
    /// Added to the variance.
    pub eps: f32,
}

/// What the backward reads of the forward.
#[derive(Debug, Clone, Copy)]
pub struct Saved<V: Matrix> {
    /// s `[m d]`: the sum, f32, or x where there was no residual.
    pub s: V,
    /// As in [`Args`].
    pub weight: Option<V::Flat>,
    /// `[m 2]` f32: mean and 1 / sqrt(variance + eps) of each row.
    pub statistics: V::Flat,
    /// Factors of the residual and of x, 1 if absent.
    pub factors: (f32, f32),
}

/// The outputs of the backward.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[m d]` (=) of the format of dy.
    pub dx: M,
    /// `[m d]` f32 (=).
    pub dresidual: Option<M>,
    /// `[d]` f32 (+=).
    pub dweight: Option<M::Flat>,
    /// `[d]` f32 (+=).
    pub dbias: Option<M::Flat>,
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> Result<Args<Rows<'a>>> {
        let Self { x, residual, weight, bias, eps } = self;
        let residual = residual.map(|Residual { r, keep, scale }| {
            Ok::<_, crate::Error>(Residual { r: CHECK.host("residual", r)?, keep, scale })
        });
        Ok(Args {
            x: CHECK.host("x", x)?,
            residual: residual.transpose()?,
            weight: weight.map(|weight| CHECK.host_flat("weight", weight)).transpose()?,
            bias: bias.map(|bias| CHECK.host_flat("bias", bias)).transpose()?,
            eps,
        })
    }

    pub(super) fn device(self, gpu: Gpu) -> Result<Args<Mat<'a>>> {
        let Self { x, residual, weight, bias, eps } = self;
        let residual = residual.map(|Residual { r, keep, scale }| {
            Ok::<_, crate::Error>(Residual { r: CHECK.device("residual", r, gpu)?, keep, scale })
        });
        Ok(Args {
            x: CHECK.device("x", x, gpu)?,
            residual: residual.transpose()?,
            weight: weight.map(|weight| CHECK.device("weight", weight, gpu)).transpose()?,
            bias: bias.map(|bias| CHECK.device("bias", bias, gpu)).transpose()?,
            eps,
        })
    }
}

impl<'a> Saved<View<'a>> {
    pub(super) fn host(self) -> Result<Saved<Rows<'a>>> {
        Ok(Saved {
            s: CHECK.host("s", self.s)?,
            weight: self.weight.map(|weight| CHECK.host_flat("weight", weight)).transpose()?,
            statistics: CHECK.host_flat("statistics", self.statistics)?,
            factors: self.factors,
        })
    }

    pub(super) fn device(self, gpu: Gpu) -> Result<Saved<Mat<'a>>> {
        Ok(Saved {
            s: CHECK.device("s", self.s, gpu)?,
            weight: self.weight.map(|weight| CHECK.device("weight", weight, gpu)).transpose()?,
            statistics: CHECK.device("statistics", self.statistics, gpu)?,
            factors: self.factors,
        })
    }
}

impl<'a> Grads<ViewMut<'a>> {
    pub(super) fn host(self) -> Result<Grads<RowsMut<'a>>> {
        let Self { dx, dresidual, dweight, dbias } = self;
        Ok(Grads {
            dx: CHECK.host_mut("dx", dx)?,
            dresidual: dresidual.map(|m| CHECK.host_mut("dresidual", m)).transpose()?,
            dweight: dweight.map(|m| CHECK.host_flat_mut("dweight", m)).transpose()?,
            dbias: dbias.map(|m| CHECK.host_flat_mut("dbias", m)).transpose()?,
        })
    }

    pub(super) fn device(self, gpu: Gpu) -> Result<Grads<MatMut<'a>>> {
        let Self { dx, dresidual, dweight, dbias } = self;
        Ok(Grads {
            dx: CHECK.device_mut("dx", dx, gpu)?,
            dresidual: dresidual.map(|m| CHECK.device_mut("dresidual", m, gpu)).transpose()?,
            dweight: dweight.map(|m| CHECK.device_mut("dweight", m, gpu)).transpose()?,
            dbias: dbias.map(|m| CHECK.device_mut("dbias", m, gpu)).transpose()?,
        })
    }
}
