//! Arguments of the loss.

use crate::{Rows, RowsMut};

/// The inputs of the loss.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a, T = f32> {
    /// `[m d]`, the last hidden states.
    pub h: Rows<'a, T>,
    /// `[v d]`, the output projection.
    pub w: Rows<'a, T>,
    /// `[m]`; negative: the row is ignored.
    pub targets: &'a [i32],
    /// ε, from 0 to below 1: the share of a target that is spread over all tokens.
    pub smoothing: T,
    /// c: logits become c tanh(z / c) (Gemma 2, arXiv 2408.00118, section 2); 0 disables it.
    pub softcap: T,
}

/// Gradients to compute in the same pass.
#[derive(Debug)]
pub struct Grads<'a, T = f32> {
    /// `[m d]` (=), zeros where a row is ignored.
    pub dh: RowsMut<'a, T>,
    /// `[v d]` (+=).
    pub dw: RowsMut<'a, T>,
    /// Factor of both; usually 1 over the number of rows that are not ignored.
    pub scale: T,
}
