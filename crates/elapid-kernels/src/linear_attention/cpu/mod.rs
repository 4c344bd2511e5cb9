//! Linear attention in chunks of at most 24 positions.
//!
//! ```text
//! for each row of the batch and block of up to 4 heads that share q and k, in parallel; for each chunk; for each head:
//!   q' = scale q exp(p), k' = w k exp(c_end - c): decays from the chunk's begin and to its end
//!   a = scale q k w exp(p_t - c_s), lower triangle                 (chunk.rs)
//!   y = q' S + a v                                                 (product.rs, read)
//!   S = exp(c_end) S + k'ᵀ v                                       (product.rs, write)
//! ```
//!
//! Departures from naive, with reasons:
//! - Chunks: S is read from and written to the cache once for 24 positions, and both products have 6 rows of sums in registers. Longer
//!   chunks have more products between positions. A chunk begins with its document, so that a document's bits are its own.
//! - Products of g instead of exponentials of differences: a decay of each key takes one exponential for each position, not one for
//!   each pair. A product of factors at most 1 that underflows is one that is 0 in effect.
//! - A value has the normaliser's 1 behind it, and columns up to a whole vector.
//! - One position reads and writes the state in place (`step.rs`).
//!
//! The backward walks chunks from the last. Their first states are made again from every fourth, which the forward saved. Its
//! products are those of the `gemm` crate, on one thread each.

mod backward;
mod chunk;
mod forward;
mod parts;
mod product;
mod step;

pub(super) use backward::backward;
pub(super) use forward::forward;
pub(super) use parts::Saved;
pub(super) use step::step;
