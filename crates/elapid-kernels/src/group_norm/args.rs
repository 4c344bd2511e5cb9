//! Arguments of the norm.

use std::convert::Infallible;

use crate::cuda::{Gpu, Mat, MatMut};
use crate::error::{Check, Result};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("group_norm");

/// Where silu(z) is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// y = norm(x silu(z)): Mamba-2.
    Before,
    /// y = norm(x) silu(z): RetNet, GLA, Mamba-2 with `norm_before_gate`.
    After,
}

/// A gate.
#[derive(Debug, Clone, Copy)]
pub struct Gate<V> {
    /// `[m d]`, of the format of x.
    pub z: V,
    /// Before or after the norm.
    pub place: Place,
}

/// What the norm reads.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// `[m d]`.
    pub x: V,
    /// Multiplies by silu(z).
    pub gate: Option<Gate<V>>,
    /// Groups of neighbouring channels, a divisor of d. Each is normalised by itself.
    pub groups: usize,
    /// Whether the mean of a group is subtracted: layer normalisation, else RMS.
    pub centred: bool,
    /// `[d]`, or `[d/groups]` for all groups, f32; none: 1.
    pub weight: Option<V::Flat>,
    /// `[d]` or `[d/groups]` f32; none: 0.
    pub bias: Option<V::Flat>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// What the backward writes and adds to.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[m d]` (=), of the format of dy.
    pub dx: M,
    /// `[m d]` (=), of the format of dy; needs a gate.
    pub dz: Option<M>,
    /// f32, the shape of the weight (+=).
    pub dweight: Option<M::Flat>,
    /// f32, the shape of the bias (+=).
    pub dbias: Option<M::Flat>,
}

impl<V: Matrix> Args<V> {
    /// The matrix of the gate, if it is there.
    pub(super) fn z(&self, place: Place) -> Option<V> {
        self.gate.filter(|gate| gate.place == place).map(|gate| gate.z)
    }

    fn map<W: Matrix, E>(
        self,
        f: impl Fn(&'static str, V) -> Result<W, E>,
        flat: impl Fn(&'static str, V::Flat) -> Result<W::Flat, E>,
    ) -> Result<Args<W>, E> {
        let Self { x, gate, groups, centred, weight, bias, eps } = self;
        Ok(Args {
            x: f("x", x)?,
            gate: gate.map(|Gate { z, place }| Ok(Gate { z: f("z", z)?, place })).transpose()?,
            groups,
            centred,
            weight: weight.map(|x| flat("weight", x)).transpose()?,
            bias: bias.map(|x| flat("bias", x)).transpose()?,
            eps,
        })
    }
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> Result<Args<Rows<'a>>> {
        self.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x))
    }

    pub(super) fn device(self, gpu: Gpu) -> Result<Args<Mat<'a>>> {
        let on = |name, x| CHECK.device(name, x, gpu);
        self.map(on, on)
    }
}

impl<'a> From<Args<Rows<'a>>> for Args<View<'a>> {
    fn from(args: Args<Rows<'a>>) -> Self {
        let Ok(args) = args.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()));
        args
    }
}

impl<'a> From<Args<Mat<'a>>> for Args<View<'a>> {
    fn from(args: Args<Mat<'a>>) -> Self {
        let Ok(args) = args.map::<View<'a>, Infallible>(|_, x| Ok(x.into()), |_, x| Ok(x.into()));
        args
    }
}

impl<M: MatrixMut> Grads<M> {
    fn map<W: MatrixMut, E>(
        self,
        f: impl Fn(&'static str, M) -> Result<W, E>,
        flat: impl Fn(&'static str, M::Flat) -> Result<W::Flat, E>,
    ) -> Result<Grads<W>, E> {
        Ok(Grads {
            dx: f("dx", self.dx)?,
            dz: self.dz.map(|m| f("dz", m)).transpose()?,
            dweight: self.dweight.map(|m| flat("dweight", m)).transpose()?,
            dbias: self.dbias.map(|m| flat("dbias", m)).transpose()?,
        })
    }
}

impl<'a> Grads<ViewMut<'a>> {
    pub(super) fn host(self) -> Result<Grads<RowsMut<'a>>> {
        self.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))
    }

    pub(super) fn device(self, gpu: Gpu) -> Result<Grads<MatMut<'a>>> {
        let on = |name, m| CHECK.device_mut(name, m, gpu);
        self.map(on, on)
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
