//! Arguments of attention.

use std::ops::Range;

use crate::{Rows, RowsMut};

/// Sizes, and which keys a position sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Factor of the products.
    pub scale: f32,
    /// Number of keys that a position sees, including its own; 0 is all before it.
    pub window: usize,
}

/// A run of queries of one document and its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Rows of q and y.
    pub queries: Range<usize>,
    /// Rows of k and v, in the order of their positions.
    pub keys: Range<usize>,
    /// Index of the key at the position of the first query.
    pub offset: usize,
}

/// The inputs of attention.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a, T = f32> {
    /// `[m heads·dk]`.
    pub q: Rows<'a, T>,
    /// `[n kv_heads·dk]`.
    pub k: Rows<'a, T>,
    /// `[n kv_heads·dv]`.
    pub v: Rows<'a, T>,
    /// Which rows belong together; queries outside all stretches are padding.
    pub stretches: &'a [Stretch],
}

/// Gradients of [`forward`](super::forward).
#[derive(Debug)]
pub struct Grads<'a, T = f32> {
    /// As q (=), 0 at padding.
    pub dq: RowsMut<'a, T>,
    /// As k (+=).
    pub dk: RowsMut<'a, T>,
    /// As v (+=).
    pub dv: RowsMut<'a, T>,
}
