//! Forward.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::gates::Gates;
use super::parts::{Heads, Saved, by_kind, group, load, product, start, store};
use crate::cell::{Args, Dims, Kind};
use crate::parallel::{Blocks, Each, split};
use crate::{Isa, Rows, RowsMut, Segments};

pub(in super::super) fn forward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    y: RowsMut<'_>,
    last: &mut [f32],
    saved: Option<&mut Saved>,
) {
    by_kind!(args.kind, forward_by(isa, dims, args, y, last, saved));
}

fn forward_by<G: Gates>(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    y: RowsMut<'_>,
    last: &mut [f32],
    saved: Option<&mut Saved>,
) {
    let Dims { b, l, d, .. } = dims;
    start(dims, args, last);
    let saved = saved.map(|saved| Each(saved.resize(dims, G::KIND), l * G::KIND.saved() * d));
    let parts = (Blocks(y, l), Each(last, G::KIND.states() * d), saved);
    split(b, group(b), parts, &|first, rows, (Blocks(y, _), Each(state, _), saved)| {
        of_group::<G>(isa, dims, args, first..first + rows, y, state, saved.map(|saved| saved.0));
    });
}

/// Rows of the batch, all their positions; `y`, `state` and `saved` are theirs.
fn of_group<G: Gates>(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    rows: std::ops::Range<usize>,
    mut y: RowsMut<'_>,
    state: &mut [f32],
    mut saved: Option<&mut [f32]>,
) {
    let (l, d, s) = (dims.l, dims.d, G::KIND.states());
    let columns = G::KIND.gates() * d;
    let mut q = vec![0.0; rows.len() * columns];
    let len = |row| args.segments.len(row, l);
    for t in 0..rows.clone().map(len).max().unwrap_or(0) {
        for (row, state) in rows.clone().zip(state.chunks_exact_mut(s * d)) {
            if t < len(row) && args.segments.reset(row, t, l) {
                state.fill(0.0);
            }
        }
        let h = Rows::new(state, s * d).columns(0, d);
        product(isa, dims.heads, h, args.recurrent, RowsMut::new(&mut q, columns));
        isa.run(Position::<G> {
            dims,
            x: args.x,
            bias: args.bias,
            segments: args.segments,
            rows: rows.clone(),
            t,
            q: &q,
            state,
            y: y.reborrow(),
            saved: saved.as_deref_mut(),
            kind: PhantomData,
        });
    }
    for (i, row) in rows.enumerate() {
        (len(row)..l).for_each(|t| y.row(i * l + t).fill(0.0));
    }
}

/// The nonlinearities of one position of every row of a group.
struct Position<'a, G> {
    dims: Dims,
    x: Rows<'a>,
    bias: Option<&'a [f32]>,
    segments: Segments<'a>,
    rows: std::ops::Range<usize>,
    t: usize,
    /// `[row (head gate d/heads)]`
    q: &'a [f32],
    /// `[row s d]`
    state: &'a mut [f32],
    /// `[row l d]`
    y: RowsMut<'a>,
    /// `[row l (read c n m) d]`
    saved: Option<&'a mut [f32]>,
    kind: PhantomData<G>,
}

impl<G: Gates> WithSimd for Position<'_, G> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Dims { l, d, .. } = self.dims;
        let (columns, s, saved) = (G::KIND.gates() * d, G::KIND.states(), G::KIND.saved() * d);
        for (i, row) in self.rows.clone().enumerate().filter(|(_, row)| self.t < self.segments.len(*row, l)) {
            let x = self.x.row(row * l + self.t);
            let state = &mut self.state[i * s * d..][..s * d];
            let kept = self.saved.as_deref_mut().map(|all| &mut all[(i * l + self.t) * saved..][..saved]);
            let q = &self.q[i * columns..][..columns];
            of_row::<S, G>(simd, Heads::of(self.dims, G::KIND), x, q, self.bias, state, kept);
            self.y.row(i * l + self.t).copy_from_slice(&state[..d]);
        }
    }
}

#[inline(always)]
fn of_row<S: Simd, G: Gates>(
    simd: S,
    heads: Heads,
    x: &[f32],
    q: &[f32],
    bias: Option<&[f32]>,
    state: &mut [f32],
    mut saved: Option<&mut [f32]>,
) {
    let (gates, states, reads) = (G::KIND.gates(), G::KIND.states(), G::KIND.reads());
    let (width, d) = (heads.width, heads.count * heads.width);
    let zero = simd.splat_f32s(0.0);
    for head in 0..heads.count {
        let (x, q) = (heads.of_vectors(x, gates, head), heads.of_gates(q, head));
        let bias = bias.map(|bias| heads.of_vectors(bias, gates, head));
        // Vector i of those that have the heads of a vector together.
        let at = |i: usize| i * d + head * width..i * d + (head + 1) * width;
        for from in (0..width).step_by(S::F32_LANES) {
            let (mut read, mut before) = ([zero; 4], [zero; 4]);
            for gate in 0..gates {
                let mut q = load(simd, q[gate], from);
                if let Some(bias) = bias {
                    q = simd.add_f32s(q, load(simd, bias[gate], from));
                }
                let x = load(simd, x[gate], from);
                if matches!(G::KIND, Kind::Gru) && gate == 2 {
                    (read[2], read[3]) = (x, q);
                } else {
                    read[gate] = simd.add_f32s(x, q);
                }
            }
            for i in 0..states {
                before[i] = load(simd, &state[at(i)], from);
            }
            let after = G::advance(simd, read, before);
            for i in 0..states {
                store(simd, &mut state[at(i)], from, after[i]);
            }
            let Some(saved) = saved.as_deref_mut() else { continue };
            for i in 0..reads {
                store(simd, &mut saved[at(i)], from, read[i]);
            }
            for i in 1..states {
                store(simd, &mut saved[at(reads + i - 1)], from, after[i]);
            }
        }
    }
}
