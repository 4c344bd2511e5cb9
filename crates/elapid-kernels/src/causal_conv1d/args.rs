//! Arguments of the convolution.

use crate::{Rows, RowsMut, Segments};

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
pub struct Args<'a, T = f32> {
    /// `[b l d]`, as `b * l` rows.
    pub x: Rows<'a, T>,
    /// `[d k]`.
    pub weight: &'a [T],
    /// `[d]`.
    pub bias: Option<&'a [T]>,
    /// `[b k-1 d]`: the raw inputs before position 0, oldest first; zeros if absent.
    pub initial: Option<&'a [T]>,
    /// Padding and packed documents.
    pub segments: Segments<'a>,
    /// Whether SiLU is applied, x sigmoid(x).
    pub silu: bool,
}

/// The outputs of the backward.
#[derive(Debug)]
pub struct Grads<'a, T = f32> {
    /// `[b l d]` (=).
    pub dx: RowsMut<'a, T>,
    /// `[d k]` (+=).
    pub dweight: &'a mut [T],
    /// `[d]` (+=).
    pub dbias: Option<&'a mut [T]>,
    /// `[b k-1 d]` (=); without `initial`, the gradient with respect to its zeros.
    pub dinitial: Option<&'a mut [T]>,
}
