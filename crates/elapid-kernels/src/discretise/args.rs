//! Arguments of the discretisation.

use std::convert::Infallible;

use crate::cuda::{Gpu, Mat, MatMut, Result};
use crate::error::{self, Check};
use crate::selective_scan::Discretisation;
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("discretise");

/// The greatest Re λ with `clip`.
pub(super) const GREATEST: f64 = -1e-4;

/// How ā and b̄ follow from the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// From continuous time; the parameters are Re λ, Im λ and log Δ.
    S5 {
        /// The discretisation.
        rule: Discretisation,
        /// Factor of Δ.
        rescale: f32,
        /// Whether Re λ is at most -1e-4.
        clip: bool,
    },
    /// The parameters are log ν, log θ and log γ.
    Lru,
}

/// What the discretisation reads.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// Each `[n]` f32: see [`Form`].
    pub params: [V::Flat; 3],
    /// `[(2 n) d]` f32.
    pub b: V,
}

/// What the backward adds to.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// Each `[n]` f32 (+=).
    pub params: [M::Flat; 3],
    /// `[(2 n) d]` f32 (+=).
    pub db: M,
}

impl<V: Matrix> Args<V> {
    fn map<W: Matrix, E>(
        self,
        f: impl Fn(&'static str, V) -> Result<W, E>,
        flat: impl Fn(&'static str, V::Flat) -> Result<W::Flat, E>,
    ) -> Result<Args<W>, E> {
        let [one, two, three] = self.params;
        let params = [flat("params", one)?, flat("params", two)?, flat("params", three)?];
        Ok(Args { params, b: f("B", self.b)? })
    }
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> error::Result<Args<Rows<'a>>> {
        self.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x))
    }

    pub(super) fn device(self, gpu: Gpu) -> error::Result<Args<Mat<'a>>> {
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
    pub(super) fn map<W: MatrixMut, E>(
        self,
        f: impl Fn(&'static str, M) -> Result<W, E>,
        flat: impl Fn(&'static str, M::Flat) -> Result<W::Flat, E>,
    ) -> Result<Grads<W>, E> {
        let [one, two, three] = self.params;
        let params = [flat("dparams", one)?, flat("dparams", two)?, flat("dparams", three)?];
        Ok(Grads { params, db: f("dB", self.db)? })
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
