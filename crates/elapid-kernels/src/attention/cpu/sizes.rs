//! Sizes of tiles and blocks, and what a call has of them.

use crate::attention::{Args, Attention};
use crate::{Isa, Rows};

/// Positions per tile; a tile begins at a multiple of it. A multiple of the keys of a block of scores on every instruction
/// set.
pub(super) const TILE: usize = 64;

/// Rows of a block of scores: with two vectors of keys 12 sums, in 16 registers together with 2 vectors of keys and a query;
/// with four 24 sums in 32 registers.
pub(super) const BLOCK: usize = 6;

/// Rows that share a pass over the keys.
pub(super) const ROWS: usize = 96;

/// Arguments on the CPU.
pub(super) type Host<'a> = Args<Rows<'a>>;

/// Widths of the heads of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    /// Query heads per head of keys.
    pub(super) group: usize,
    /// Columns of a key.
    pub(super) c: usize,
    /// Columns of a value.
    pub(super) dv: usize,
}

impl Widths {
    pub(super) fn of(attention: &Attention, args: &Host<'_>) -> Self {
        let (heads, kv_heads) = (attention.heads, attention.kv_heads);
        Self { group: heads / kv_heads, c: args.q.cols() / heads, dv: args.v.cols() / kv_heads }
    }
}

/// Whether 24 sums of a block fit the registers; scalar code is wide so that the compiler makes vectors of it.
pub(super) const fn is_wide<S: pulp::Simd>() -> bool {
    S::REGISTER_COUNT >= 32 || S::IS_SCALAR
}

/// Vectors of an instruction set, and how many of them a block is wide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vectors {
    pub(super) lanes: usize,
    pub(super) wide: usize,
}

impl Vectors {
    pub(super) fn of(isa: Isa) -> Self {
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
    pub(super) fn keys(self) -> usize {
        self.lanes * self.wide
    }

    /// Vectors of a row of so many columns.
    pub(super) fn across(self, columns: usize) -> usize {
        columns.div_ceil(self.lanes)
    }
}
