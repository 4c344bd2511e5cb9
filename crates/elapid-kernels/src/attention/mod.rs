//! Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), causal: y_t = Σ_s softmax_s(scale q_t k_s) v_s over
//! the keys s that position t sees.
//!
//! A batch is cut into [`Stretch`]es, runs of queries of one document with all keys that the document has up to the last
//! of them, those of earlier calls first. A query's result depends on its keys in the order of their positions and on
//! nothing else, so that any split of a document gives the same bits.

pub mod naive;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::error::{Check, Result};
use crate::{Rows, RowsMut};

/// Sizes and what a position sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` neighbouring heads of queries.
    pub kv_heads: usize,
    /// Factor of the products.
    pub scale: f32,
    /// Keys that a position sees, itself among them; 0 is all before it.
    pub window: usize,
}

/// A run of queries of one document and its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Rows of q and y.
    pub queries: Range<usize>,
    /// Rows of k and v, in the order of their positions.
    pub keys: Range<usize>,
    /// Which of the keys has the position of the first query.
    pub offset: usize,
}

/// What attention reads.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a, T = f32> {
    /// `[m heads·dk]`.
    pub q: Rows<'a, T>,
    /// `[n kv_heads·dk]`.
    pub k: Rows<'a, T>,
    /// `[n kv_heads·dv]`.
    pub v: Rows<'a, T>,
    /// Which rows belong together; queries of no stretch are padding.
    pub stretches: &'a [Stretch],
}

/// y `[m heads·dv]` (=), 0 at padding.
///
/// # Errors
/// If shapes do not fit.
pub fn forward(attention: &Attention, args: &Args<'_>, y: RowsMut<'_>) -> Result<()> {
    let dv = check(attention, args)?;
    Check("attention").shape("y", y.shape(), (args.q.rows(), attention.heads * dv))?;
    naive::forward(attention, args, y);
    Ok(())
}

/// Gradients of [`forward`].
#[derive(Debug)]
pub struct Grads<'a, T = f32> {
    /// As q (=), 0 at padding.
    pub dq: RowsMut<'a, T>,
    /// As k (+=).
    pub dk: RowsMut<'a, T>,
    /// As v (+=).
    pub dv: RowsMut<'a, T>,
}

/// The gradients from dy `[m heads·dv]`.
///
/// # Errors
/// If shapes do not fit.
pub fn backward(attention: &Attention, args: &Args<'_>, dy: Rows<'_>, grads: Grads<'_>) -> Result<()> {
    let dv = check(attention, args)?;
    let check = Check("attention");
    check.shape("dy", dy.shape(), (args.q.rows(), attention.heads * dv))?;
    check.shape("dq", grads.dq.shape(), args.q.shape())?;
    check.shape("dk", grads.dk.shape(), args.k.shape())?;
    check.shape("dv", grads.dv.shape(), args.v.shape())?;
    naive::backward(attention, args, dy, grads);
    Ok(())
}

/// Checks all but the outputs; gives the width of a head of values.
fn check(attention: &Attention, args: &Args<'_>) -> Result<usize> {
    let check = Check("attention");
    let Attention { heads, kv_heads, .. } = *attention;
    let grouped = kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
    check.that(grouped, "kv_heads", || format!("a divisor of {heads} heads"), || kv_heads.to_string())?;
    let (q, k, v) = (args.q, args.k, args.v);
    let whole = |cols: usize, heads: usize| cols.is_multiple_of(heads);
    check.that(whole(q.cols(), heads), "q", || format!("columns for {heads} heads"), || q.cols().to_string())?;
    check.that(whole(v.cols(), kv_heads), "v", || format!("columns for {kv_heads} heads"), || v.cols().to_string())?;
    check.shape("k", k.shape(), (v.rows(), q.cols() / heads * kv_heads))?;
    for stretch in args.stretches {
        let inside = stretch.queries.end <= q.rows()
            && stretch.keys.end <= k.rows()
            && stretch.offset.checked_add(stretch.queries.len()).is_some_and(|end| end <= stretch.keys.len());
        check.that(inside, "stretches", || "rows that are there".into(), || format!("{stretch:?}"))?;
    }
    Ok(v.cols() / kv_heads)
}
