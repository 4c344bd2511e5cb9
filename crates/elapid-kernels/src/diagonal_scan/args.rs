//! Arguments of the scan.

use std::convert::Infallible;

use crate::cuda::{Gpu, Mat, MatMut, Result};
use crate::error::{self, Check};
use crate::view::{Matrix, MatrixMut};
use crate::{Rows, RowsMut, View, ViewMut};

pub(super) const CHECK: Check = Check("diagonal_scan");

/// c of the RG-LRU: log a = -c r softplus(Λ).
pub(super) const SHARPNESS: f32 = 8.0;

/// The least 4 (1 - a²) in the gradient of the RG-LRU's root, which is thus at most 1000.
pub(super) const LEAST_SQUARE: f32 = 1e-6;

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch.
    pub b: usize,
    /// Length.
    pub l: usize,
    /// Channels, at least 1; complex ones count once.
    pub d: usize,
}

/// What states are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Field {
    /// Real numbers: a row is `[d]`.
    #[default]
    Real,
    /// Complex numbers: a row is `[2 d]`, the real parts of all channels and then the imaginary parts.
    Complex,
}

impl Field {
    /// Elements of a channel.
    pub const fn parts(self) -> usize {
        match self {
            Self::Real => 1,
            Self::Complex => 2,
        }
    }
}

/// The factors a_t. With p parts of a channel:
#[derive(Debug, Clone, Copy)]
pub enum Decay<V: Matrix> {
    /// One for all positions, `[(p d)]` f32.
    Constant(V::Flat),
    /// `[b l (p d)]`, of the format of x. bf16 cannot tell 0.998 from 1: use [`Logs`](Self::Logs) there.
    Values(V),
    /// log a_t, `[b l d]`, real, of the format of x.
    Logs(V),
    /// The gates of an RG-LRU, real.
    RgLru(RgLru<V>),
}

/// The gates of an RG-LRU.
#[derive(Debug, Clone, Copy)]
pub struct RgLru<V: Matrix> {
    /// `[b l d]`, of the format of x: what the sigmoid of r reads.
    pub recurrence: V,
    /// `[b l d]`, of the format of x: what the sigmoid of i reads.
    pub input: V,
    /// `[d]` f32: Λ.
    pub lambda: V::Flat,
}

/// What the scan reads.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// Real or complex.
    pub field: Field,
    /// `[b l (p d)]`: x.
    pub x: V,
    /// a.
    pub decay: Decay<V>,
    /// `[b (p d)]` f32: the state before the first position, in reverse that after the last one; zeros if absent.
    pub initial: Option<V::Flat>,
    /// Padding and packed documents.
    pub segments: V::Segments,
    /// Whether time runs backwards: h_t follows from h_{t+1}.
    pub reverse: bool,
}

/// What [`forward`](super::forward) wrote, and the gradients that arrive there.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<V: Matrix> {
    /// `[b l (p d)]`, as [`forward`](super::forward) left it.
    pub h: V,
    /// `[b l (p d)]`, of the format of h.
    pub dh: V,
    /// `[b (p d)]` f32: arrives at `last` from a next chunk.
    pub dlast: Option<V::Flat>,
}

/// Gradients of the factors, in the form in which these were given.
#[derive(Debug)]
pub enum DecayGrads<M: MatrixMut> {
    /// `[(p d)]` f32 (+=).
    Constant(M::Flat),
    /// Of [`Decay::Values`] `[b l (p d)]` (=), of [`Decay::Logs`] `[b l d]` (=).
    Varying(M),
    /// Of [`RgLru`].
    RgLru {
        /// `[b l d]` (=).
        drecurrence: M,
        /// `[b l d]` (=).
        dinput: M,
        /// `[d]` f32 (+=).
        dlambda: M::Flat,
    },
}

/// What the backward writes and adds to. Gradients of activations are of their format. That of a complex number has the
/// derivative with respect to its real part, and that with respect to its imaginary part.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// `[b l (p d)]` (=).
    pub dx: M,
    /// Of the factors.
    pub decay: Option<DecayGrads<M>>,
    /// `[b (p d)]` f32 (=); without `initial`, the gradient at its zeros.
    pub dinitial: Option<M::Flat>,
}

impl<V: Matrix> Args<V> {
    fn map<W: Matrix, E>(
        self,
        f: impl Fn(&'static str, V) -> Result<W, E>,
        flat: impl Fn(&'static str, V::Flat) -> Result<W::Flat, E>,
        segments: W::Segments,
    ) -> Result<Args<W>, E> {
        Ok(Args {
            field: self.field,
            x: f("x", self.x)?,
            decay: match self.decay {
                Decay::Constant(a) => Decay::Constant(flat("a", a)?),
                Decay::Values(a) => Decay::Values(f("a", a)?),
                Decay::Logs(a) => Decay::Logs(f("a", a)?),
                Decay::RgLru(RgLru { recurrence, input, lambda }) => Decay::RgLru(RgLru {
                    recurrence: f("recurrence", recurrence)?,
                    input: f("input", input)?,
                    lambda: flat("lambda", lambda)?,
                }),
            },
            initial: self.initial.map(|x| flat("initial", x)).transpose()?,
            segments,
            reverse: self.reverse,
        })
    }
}

impl<'a> Args<View<'a>> {
    pub(super) fn host(self) -> error::Result<Args<Rows<'a>>> {
        let segments = self.segments.host(CHECK)?;
        self.map(|name, x| CHECK.host(name, x), |name, x| CHECK.host_flat(name, x), segments)
    }

    pub(super) fn device(self, gpu: Gpu) -> error::Result<Args<Mat<'a>>> {
        let segments = self.segments.device(CHECK, gpu)?;
        let on = |name, x| CHECK.device(name, x, gpu);
        self.map(on, on, segments)
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
        Ok(Outputs { h: f("h", self.h)?, dh: f("dh", self.dh)?, dlast })
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
        let decay = |decay| {
            Ok(match decay {
                DecayGrads::Constant(da) => DecayGrads::Constant(flat("da", da)?),
                DecayGrads::Varying(da) => DecayGrads::Varying(f("da", da)?),
                DecayGrads::RgLru { drecurrence, dinput, dlambda } => DecayGrads::RgLru {
                    drecurrence: f("drecurrence", drecurrence)?,
                    dinput: f("dinput", dinput)?,
                    dlambda: flat("dlambda", dlambda)?,
                },
            })
        };
        Ok(Grads {
            dx: f("dx", self.dx)?,
            decay: self.decay.map(decay).transpose()?,
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
