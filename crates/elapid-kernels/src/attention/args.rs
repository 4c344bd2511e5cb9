//! Arguments of attention.

use std::ops::Range;
use std::sync::Arc;

use crate::{Rows, RowsMut};

/// Sizes, scores, and what a position sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Factor of the products.
    pub scale: f32,
    /// Which positions each sees.
    pub mask: Mask,
    /// Scores x become c tanh(x / c); 0 leaves them alone.
    pub softcap: f32,
    /// Whether distance lowers the scores (ALiBi, Press et al. 2022): score - slope (t - s), with slope 2^(-8 (h + 1) / heads) in
    /// head h.
    pub alibi: bool,
}

/// Which positions s of a document position t sees, all of them at or before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// The last so many positions, t among them; 0 is all.
    pub window: usize,
    /// Of the window, every so many: t - s is 0, r, ..., (window - 1) r.
    pub dilation: usize,
    /// Beside the window, all whose distance is divisible by it (Child et al. 2019).
    pub strided: bool,
    /// Beside it, the first so many positions.
    pub sinks: usize,
    /// Beside it, these positions; and they see all.
    pub globals: Arc<[usize]>,
}

impl Default for Mask {
    /// Everything before.
    fn default() -> Self {
        Self { window: 0, dilation: 1, strided: false, sinks: 0, globals: Arc::new([]) }
    }
}

impl Mask {
    /// Whether t sees s.
    pub fn visible(&self, t: usize, s: usize) -> bool {
        let Some(distance) = t.checked_sub(s) else { return false };
        if self.window == 0 || s < self.sinks || self.globals.contains(&t) || self.globals.contains(&s) {
            return true;
        }
        let near = distance / self.dilation < self.window && distance.is_multiple_of(self.dilation);
        near || (self.strided && distance.is_multiple_of(self.window))
    }

    /// How many positions, counted back from each, it may have to see beside the first ones; none if any.
    pub fn reach(&self) -> Option<usize> {
        let bounded = self.window > 0 && !self.strided && self.globals.is_empty();
        bounded.then(|| (self.window - 1) * self.dilation + 1)
    }
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
    /// Keys that are the document's first positions, before positions that are not there.
    pub sinks: usize,
    /// How many are not there.
    pub gap: usize,
}

impl Stretch {
    /// Keys that begin with their document's first position and lack none.
    pub fn whole(queries: Range<usize>, keys: Range<usize>, offset: usize) -> Self {
        Self { queries, keys, offset, sinks: 0, gap: 0 }
    }

    /// The position in the document of a key.
    fn position(&self, key: usize) -> usize {
        if key < self.sinks { key } else { key + self.gap }
    }

    /// The keys that query `i` sees, in the order of their positions, each with its distance.
    pub(super) fn seen(&self, mask: &Mask, i: usize) -> Vec<(usize, usize)> {
        let last = self.offset + i;
        let t = self.position(last);
        // Keys before the first that is near: those of sinks.
        let near = mask.reach().map_or(0, |reach| (last + 1).saturating_sub(reach));
        let keys = (0..self.sinks.max(mask.sinks).min(near)).chain(near..last + 1).map(|key| (key, self.position(key)));
        keys.filter(|&(_, s)| mask.visible(t, s)).map(|(key, s)| (self.keys.start + key, t - s)).collect()
    }
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
