//! What the loss reads and writes.

use crate::{Rows, RowsMut};

/// What the loss reads.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a, T = f32> {
    /// `[m d]`, the last hidden states.
    pub h: Rows<'a, T>,
    /// `[v d]`, the output projection.
    pub w: Rows<'a, T>,
    /// `[m]`; negative: the row is ignored.
    pub targets: &'a [i32],
    /// ε, 0 to below 1: what part of a target all tokens share alike.
    pub smoothing: T,
    /// c: logits become c tanh(z / c) (Gemma 2, arXiv 2408.00118, section 2); 0 leaves them alone.
    pub softcap: T,
}

/// Gradients to make in the same pass.
#[derive(Debug)]
pub struct Grads<'a, T = f32> {
    /// `[m d]` (=), zeros where a row is ignored.
    pub dh: RowsMut<'a, T>,
    /// `[v d]` (+=).
    pub dw: RowsMut<'a, T>,
    /// What multiplies both; usually 1 over the number of rows that count.
    pub scale: T,
}
