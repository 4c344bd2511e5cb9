//! Arguments of step sizes.

use crate::error::Check;
use crate::view::{Matrix, MatrixMut};

pub(super) const CHECK: Check = Check("step_sizes");

/// The inputs.
#[derive(Debug, Clone, Copy)]
pub struct Args<V: Matrix> {
    /// Δ before bias and softplus, `[m h]`.
    pub x: V,
    /// Added to it, `[h]` f32.
    pub bias: V::Flat,
    /// log(-A), `[h]` f32.
    pub a_log: V::Flat,
    /// Δ is kept between these.
    pub limits: (f32, f32),
}

/// Gradients of the inputs.
#[derive(Debug)]
pub struct Grads<M: MatrixMut> {
    /// As x (=).
    pub dx: M,
    /// `[h]` f32 (+=).
    pub dbias: Option<M::Flat>,
    /// `[h]` f32 (+=).
    pub da_log: Option<M::Flat>,
}
