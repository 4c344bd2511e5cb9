//! What forward and backward share: sizes, the product, rows as vectors.

use pulp::Simd;

use crate::cell::{Args, Dims, Kind};
use crate::linear::invariant;
use crate::{Isa, Rows, RowsMut};

/// Rows of x in a tile of the product.
const TILE: usize = 6;

/// Of every position what its nonlinearities read, and the states after it but h: `[b l (read c n m) d]`.
#[derive(Debug, Default)]
pub(in crate::cell) struct Saved {
    pub(super) values: Vec<f32>,
    pub(super) made_for: Option<(Dims, Kind)>,
}

impl Saved {
    pub(in crate::cell) fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<f32>()
    }

    pub(in crate::cell) fn made_for(&self) -> Option<(Dims, Kind)> {
        self.made_for
    }

    /// Whether a forward of these sizes left it.
    pub(in crate::cell) fn is_for(&self, dims: Dims, kind: Kind) -> bool {
        self.made_for == Some((dims, kind))
    }

    pub(super) fn resize(&mut self, dims: Dims, kind: Kind) -> &mut [f32] {
        self.made_for = Some((dims, kind));
        self.values.resize(dims.b * dims.l * kind.saved() * dims.d, 0.0);
        &mut self.values
    }
}

/// Rows of the batch in one group.
pub(super) fn group(b: usize) -> usize {
    let threads = rayon::current_num_threads();
    if b < 2 * TILE { b } else { b.div_ceil(threads).next_multiple_of(TILE) }.max(1)
}

/// Sizes of a head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    /// Channels.
    pub(super) width: usize,
    pub(super) gates: usize,
}

impl Heads {
    pub(super) fn of(dims: Dims, kind: Kind) -> Self {
        Self { count: dims.heads, width: dims.d / dims.heads, gates: kind.gates() }
    }

    /// Columns of q.
    pub(super) fn columns(self) -> usize {
        self.gates * self.width
    }

    /// One part per vector of a row that has the heads of a vector together: channels of head `head`.
    #[inline(always)]
    pub(super) fn of_vectors(self, row: &[f32], vectors: usize, head: usize) -> [&[f32]; 4] {
        let d = self.count * self.width;
        std::array::from_fn(|i| if i < vectors { &row[i * d + head * self.width..][..self.width] } else { &[] })
    }

    /// One part per gate of a row of q, which has the gates of a head together.
    #[inline(always)]
    pub(super) fn of_gates(self, row: &[f32], head: usize) -> [&[f32]; 4] {
        let at = |gate| (head * self.gates + gate) * self.width;
        std::array::from_fn(|gate| if gate < self.gates { &row[at(gate)..][..self.width] } else { &[] })
    }
}

/// y = x Wᵀ head by head: head i of x has `k` columns from i k on, that of y `n` columns from i n on, and its matrix is rows
/// i n to (i + 1) n of w.
pub(super) fn product(isa: Isa, heads: usize, x: Rows<'_>, w: Rows<'_>, mut y: RowsMut<'_>) {
    let (k, n) = (x.cols() / heads, y.cols() / heads);
    for head in 0..heads {
        let y = y.reborrow().split_columns(head * n).1.split_columns(n).0;
        invariant::forward(isa, x.columns(head * k, k), w.slice(head * n, n), None, y);
    }
}

/// A vector of a row from element `from` on; the lanes after its end are 0.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, row: &[f32], from: usize) -> S::f32s {
    let rest = &row[from..];
    match S::as_simd_f32s(rest).0.first() {
        Some(&whole) => whole,
        None => simd.partial_load_f32s(rest),
    }
}

/// The inverse of [`load`].
#[inline(always)]
pub(super) fn store<S: Simd>(simd: S, row: &mut [f32], from: usize, x: S::f32s) {
    let rest = &mut row[from..];
    match S::as_mut_simd_f32s(rest).0.first_mut() {
        Some(whole) => *whole = x,
        None => simd.partial_store_f32s(rest, x),
    }
}

/// The state before position 0, `[b s d]`.
pub(super) fn start(dims: Dims, args: &Args<Rows<'_>>, state: &mut [f32]) {
    debug_assert_eq!(state.len(), dims.states(args.kind));
    match args.initial {
        Some(initial) => state.copy_from_slice(initial),
        None => state.fill(0.0),
    }
}

/// Calls a generic function with the type of a kind.
macro_rules! by_kind {
    ($kind:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $kind {
            $crate::cell::Kind::Tanh => $function::<$crate::cell::cpu::gates::Tanh>($($argument),*),
            $crate::cell::Kind::Relu => $function::<$crate::cell::cpu::gates::Relu>($($argument),*),
            $crate::cell::Kind::Lstm => $function::<$crate::cell::cpu::gates::Lstm>($($argument),*),
            $crate::cell::Kind::Gru => $function::<$crate::cell::cpu::gates::Gru>($($argument),*),
            $crate::cell::Kind::Slstm => $function::<$crate::cell::cpu::gates::Slstm>($($argument),*),
        }
    };
}
pub(super) use by_kind;
