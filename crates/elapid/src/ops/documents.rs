//! Which positions of a chunk are of one document, and what they give.

use std::ops::Range;

use elapid_kernels::attention::Attention;
use elapid_kernels::reuse::List;

use crate::autograd::Var;
use crate::state::Cache;
use crate::{Error, Layout, Result};

/// Positions of a document in a chunk.
pub(super) struct Document {
    pub(super) positions: Range<usize>,
    /// Whether it began in an earlier chunk.
    pub(super) continues: bool,
}

/// The documents of each row of a chunk.
pub(super) fn documents(layout: &Layout, past: &Cache) -> Result<List<List<Document>>> {
    let (b, l, segments) = (layout.b, layout.l, layout.segments());
    if past.rows() != b || layout.resets.is_none() && layout.has_resets() {
        return Err(Error::Argument(format!("a cache of {} rows for a batch of {b}", past.rows())));
    }
    let of_row = |row: usize| {
        let len = layout.len(row);
        let (mut documents, mut from) = (List::new(), 0);
        let borders = (1..len).filter(|&t| segments.reset(row, t, l)).chain([len]);
        for to in borders.filter(|&to| to > 0) {
            documents.push(Document { positions: from..to, continues: from == 0 && !segments.reset(row, 0, l) });
            from = to;
        }
        documents
    };
    Ok((0..b).map(of_row).collect())
}

/// `[b l heads·dv]` of q `[b l heads·dk]` and v `[b l kv_heads·dv]`.
pub(super) fn shape_of_y(q: &Var, v: &Var, sizes: &Attention) -> List<usize> {
    let mut shape: List<usize> = q.shape().iter().copied().collect();
    *shape.last_mut().unwrap_or(&mut 0) = sizes.heads * v.value().cols() / sizes.kv_heads.max(1);
    shape
}
