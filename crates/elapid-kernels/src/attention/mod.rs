//! Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), causal: y_t = Σ_s softmax_s(scale q_t k_s) v_s over
//! the keys s that position t sees ([`Mask`]).
//!
//! A batch is divided into [`Stretch`]es: runs of queries of one document with all keys of the document up to the last
//! query, those of earlier calls first. A query's result depends only on its keys in the order of their positions, so any
//! split of a document gives the same bits.

mod args;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::{Rows, RowsMut};

pub use args::{Args, Attention, Grads, Mask, Stretch};

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

/// Checks everything except the outputs; returns the width of a value head.
fn check(attention: &Attention, args: &Args<'_>) -> Result<usize> {
    let check = Check("attention");
    let &Attention { heads, kv_heads, ref mask, .. } = attention;
    let dilated = mask.dilation > 0 && (mask.dilation == 1 || mask.window > 0);
    check.that(dilated, "dilation", || "1, or more with a window".into(), || mask.dilation.to_string())?;
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
