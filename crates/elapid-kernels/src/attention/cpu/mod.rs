//! Attention in tiles of keys, with one pass over them (online softmax: Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! ```text
//! for each stretch, head of keys and group of up to 96 rows (queries times the heads that share the keys), in parallel:
//!   for each tile of 128 positions of the document that a row sees:
//!     for each block of 6 rows:
//!       x = q k in registers, 6 rows by 2 vectors of keys; then the cap, ALiBi, and -inf for what is not seen
//!       m' = max(m, max x); l = l 2^(m - m') + Σ 2^(x - m'); a = a 2^(m - m') + Σ 2^(x - m') v
//!   y = a / l
//! ```
//!
//! Departures from naive, with reasons:
//! - Tiles: only one tile's scores of a block of rows exist at a time, and keys in the cache serve all rows.
//! - Lanes of scores are keys, from keys that are transposed once; lanes of outputs are columns. No product needs a sum over
//!   lanes.
//! - Queries are multiplied by scale log₂ e once, so that a probability is a power of 2.
//!
//! A query's bits depend on its own keys alone: tiles begin at multiples of 128 positions of the document, a score is summed
//! over columns in order, an output over positions in order, and l by lane, which is a position modulo the lanes. A tile or a
//! part of a vector that other rows see and this one does not adds exact zeros and multiplies by 2^0 = 1. So neither the
//! other queries of a call, nor the cut of a document into calls, nor positions that a cache has dropped change a bit. This
//! needs finite values: 0 times infinity is NaN.

mod backward;
mod forward;
mod marks;
mod pack;
mod pieces;
mod product;
mod score;
#[cfg(test)]
mod tests;

pub(super) use backward::backward;
pub(super) use forward::forward;

use std::ops::Range;

use super::{Args, Attention, Stretch};
use crate::{Isa, Rows};

/// Positions per tile; a tile begins at a multiple of it. A multiple of the keys of a block of scores on every instruction
/// set.
const TILE: usize = 128;

/// Rows of a block of scores: with two vectors of keys 12 sums, in 16 registers together with 2 vectors of keys and a query;
/// with four 24 sums in 32 registers.
const BLOCK: usize = 6;

/// Rows that share a pass over the keys.
const ROWS: usize = 96;

/// Arguments on the CPU.
type Host<'a> = Args<Rows<'a>>;

/// Widths of the heads of a call.
#[derive(Debug, Clone, Copy)]
struct Widths {
    /// Query heads per head of keys.
    group: usize,
    /// Columns of a key.
    c: usize,
    /// Columns of a value.
    dv: usize,
}

impl Widths {
    fn of(attention: &Attention, args: &Host<'_>) -> Self {
        let (heads, kv_heads) = (attention.heads, attention.kv_heads);
        Self { group: heads / kv_heads, c: args.q.cols() / heads, dv: args.v.cols() / kv_heads }
    }
}

/// Whether 24 sums of a block fit the registers; scalar code is wide so that the compiler makes vectors of it.
const fn is_wide<S: pulp::Simd>() -> bool {
    S::REGISTER_COUNT >= 32 || S::IS_SCALAR
}

/// Vectors of an instruction set, and how many of them a block is wide.
#[derive(Debug, Clone, Copy)]
struct Vectors {
    lanes: usize,
    wide: usize,
}

impl Vectors {
    fn of(isa: Isa) -> Self {
        struct Registers;
        impl pulp::WithSimd for Registers {
            type Output = Vectors;
            fn with_simd<S: pulp::Simd>(self, _: S) -> Vectors {
                Vectors { lanes: S::F32_LANES, wide: if is_wide::<S>() { 4 } else { 2 } }
            }
        }
        isa.run(Registers)
    }

    /// Keys of a block of scores.
    fn keys(self) -> usize {
        self.lanes * self.wide
    }

    /// Vectors of a row of so many columns.
    fn across(self, columns: usize) -> usize {
        columns.div_ceil(self.lanes)
    }
}

/// The tiles that queries see, in order.
fn tiles(attention: &Attention, stretch: &Stretch, queries: Range<usize>) -> Vec<usize> {
    let n = stretch.end();
    if queries.is_empty() {
        return Vec::new();
    }
    let (first, last) = (stretch.time(queries.start), stretch.time(queries.end - 1));
    let there = |k: &usize| k * TILE < stretch.sinks || (k + 1) * TILE > stretch.sinks + stretch.gap;
    let seen = |k: &usize| !marks::hull(&attention.mask, first..last + 1, n, k * TILE).is_empty();
    (0..n.div_ceil(TILE)).filter(there).filter(seen).collect()
}
