//! What the convolution reads and writes.

use crate::{Rows, RowsMut, Segments};

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch.
    pub b: usize,
    /// Length; 1 in [`step`](super::step), which does not look at it.
    pub l: usize,
    /// Channels.
    pub d: usize,
    /// Taps, at least 1.
    pub k: usize,
}

/// What the convolution reads.
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
    /// Whether x sigmoid(x) follows.
    pub silu: bool,
}

/// What the backward writes and adds to.
#[derive(Debug)]
pub struct Grads<'a, T = f32> {
    /// `[b l d]` (=).
    pub dx: RowsMut<'a, T>,
    /// `[d k]` (+=).
    pub dweight: &'a mut [T],
    /// `[d]` (+=).
    pub dbias: Option<&'a mut [T]>,
    /// `[b k-1 d]` (=); without `initial`, the gradient at its zeros.
    pub dinitial: Option<&'a mut [T]>,
}
