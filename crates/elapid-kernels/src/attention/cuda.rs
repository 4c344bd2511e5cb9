//! On a GPU: not yet.

use super::{Args, Attention, CHECK, Grads, Outputs};
use crate::cuda::{Mat, MatMut, Result};

/// What the forward leaves for the backward.
#[derive(Debug)]
pub(super) struct Saved {}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        0
    }

    /// Whether a forward of these arguments left it.
    pub(super) fn is_for(&self, _attention: &Attention, _args: &Args<Mat<'_>>) -> bool {
        false
    }
}

pub(super) fn forward(
    _attention: &Attention,
    _args: &Args<Mat<'_>>,
    y: MatMut<'_>,
    _keep: bool,
) -> Result<Option<Saved>> {
    Err(CHECK.fault("y", "memory of the CPU".into(), format!("memory of {:?}", y.gpu())).into())
}

pub(super) fn backward(
    _attention: &Attention,
    _args: &Args<Mat<'_>>,
    _saved: &Saved,
    outputs: Outputs<Mat<'_>>,
    _grads: Grads<MatMut<'_>>,
) -> Result<()> {
    Err(CHECK.fault("dy", "memory of the CPU".into(), format!("memory of {:?}", outputs.dy.gpu())).into())
}
