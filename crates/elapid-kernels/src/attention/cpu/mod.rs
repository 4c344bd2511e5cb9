//! Attention in tiles of keys, with one pass over them (online softmax: Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! ```text
//! for each stretch, head of keys and group of up to 96 rows (queries times the heads that share the keys), in parallel:
//!   for each tile of 64 positions of the document that a row sees:
//!     for each block of 6 rows, 4 blocks at a time:
//!       x = q k in registers, 6 rows by 2 vectors of keys; then the cap, ALiBi, and -inf for what is not seen
//!       m' = max(m, max x); l = l 2^(m - m') + Σ 2^(x - m'); a = a 2^(m - m') + Σ 2^(x - m') v
//!   y = a / l, with 2^(sink - m) added to l where there are learned sinks
//! ```
//!
//! Departures from naive, with reasons:
//! - Tiles: only one tile's scores of a block of rows exist at a time, and keys in the cache serve all rows.
//! - Lanes of scores are keys, from keys that are transposed once; lanes of outputs are columns. No product needs a sum over
//!   lanes.
//! - Four blocks share a tile's keys, then its values, while these are in the L1 cache.
//! - Few rows of queries, as in decoding, read keys and values in place (`few.rs`).
//! - Queries are multiplied by scale log₂ e once, so that a probability is a power of 2.
//!
//! A query's bits depend on its own keys alone: tiles begin at multiples of 64 positions of the document, a score is summed
//! over columns in order, an output over positions in order, and l by lane, which is a position modulo the lanes. A tile or a
//! part of a vector that other rows see and this one does not adds exact zeros and multiplies by 2^0 = 1. So neither the
//! other queries of a call, nor the cut of a document into calls, nor positions that a cache has dropped change a bit. This
//! needs finite values: 0 times infinity is NaN.

mod backward;
mod few;
mod forward;
mod marks;
mod online;
mod pack;
mod pieces;
mod product;
mod score;
mod sinks;
mod sizes;
#[cfg(test)]
mod tests;

pub(super) use backward::backward;
pub(super) use forward::forward;
