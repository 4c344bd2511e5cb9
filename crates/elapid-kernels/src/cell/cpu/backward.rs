//! Backward.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::gates::Gates;
use super::parts::{Heads, Saved, by_kind, group, load, product, store};
use crate::cell::{Args, Dims, Grads, Kind, Outputs};
use crate::linear::cpu as linear;
use crate::parallel::{Blocks, Each, split};
use crate::{Isa, Rows, RowsMut, Segments};

pub(in super::super) fn backward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    saved: &Saved,
    outputs: &Outputs<Rows<'_>>,
    grads: Grads<RowsMut<'_>>,
) {
    by_kind!(args.kind, backward_by(isa, dims, args, saved, outputs, grads));
}

fn backward_by<G: Gates>(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    saved: &Saved,
    outputs: &Outputs<Rows<'_>>,
    grads: Grads<RowsMut<'_>>,
) {
    let Dims { b, l, d, .. } = dims;
    let (columns, s) = (G::KIND.gates() * d, G::KIND.states());
    let Grads { dx, drecurrent, dbias, dinitial } = grads;
    let heads = Heads::of(dims, G::KIND);
    let transposed = transposed(heads, args.recurrent);
    let whole = Whole {
        dims,
        kind: G::KIND,
        initial: args.initial,
        segments: args.segments,
        saved: &saved.values,
        y: outputs.y,
        dy: outputs.dy,
        transposed: Rows::new(&transposed, heads.columns()),
        all: dinitial.is_some(),
    };
    let mut own = Vec::new();
    let dstate = dinitial.unwrap_or_else(|| {
        own.resize(dims.states(G::KIND), 0.0);
        &mut own
    });
    match outputs.dlast {
        Some(dlast) => dstate.copy_from_slice(dlast),
        None => dstate.fill(0.0),
    }
    let mut dq = vec![0.0; b * l * columns];
    let parts = (Blocks(dx, l), Each(&mut dq, l * columns), Each(dstate, s * d));
    split(b, group(b), parts, &|first, rows, (Blocks(dx, _), Each(dq, _), Each(dstate, _))| {
        of_group::<G>(isa, &whole, first..first + rows, dx, dq, dstate);
    });
    sums(isa, &whole, heads, Rows::new(&dq, columns), drecurrent, dbias);
}

/// What all groups read.
struct Whole<'a> {
    dims: Dims,
    kind: Kind,
    initial: Option<&'a [f32]>,
    segments: Segments<'a>,
    /// `[b l (read c n m) d]`
    saved: &'a [f32],
    y: Rows<'a>,
    dy: Rows<'a>,
    /// `[(head d/heads) (gate d/heads)]`
    transposed: Rows<'a>,
    /// Whether the gradient of the initial state is wanted.
    all: bool,
}

impl Whole<'_> {
    /// h before position t of a row; none if it is 0.
    fn h_before(&self, row: usize, t: usize) -> Option<&[f32]> {
        let Dims { l, d, .. } = self.dims;
        match t {
            _ if self.segments.reset(row, t, l) => None,
            0 => self.initial.map(|initial| &initial[row * self.kind.states() * d..][..d]),
            _ => Some(self.y.row(row * l + t - 1)),
        }
    }

    /// c, n, m before position t of a row; none if they are 0.
    fn others_before(&self, row: usize, t: usize) -> Option<&[f32]> {
        let (Dims { l, d, .. }, s) = (self.dims, self.kind.states());
        match t {
            _ if self.segments.reset(row, t, l) => None,
            0 => self.initial.map(|initial| &initial[row * s * d..][d..s * d]),
            _ => Some(&self.saved_at(row, t - 1)[self.kind.reads() * d..]),
        }
    }

    fn saved_at(&self, row: usize, t: usize) -> &[f32] {
        let saved = self.kind.saved() * self.dims.d;
        &self.saved[(row * self.dims.l + t) * saved..][..saved]
    }
}

/// U of every head transposed: row `(head, channel of h)` has what it adds to the gates of its head.
fn transposed(heads: Heads, u: Rows<'_>) -> Vec<f32> {
    let (width, columns) = (heads.width, heads.columns());
    let mut out = vec![0.0; heads.count * width * columns];
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        let (head, j) = (row / width, row % width);
        out.iter_mut().enumerate().for_each(|(i, out)| *out = u.row(head * columns + i)[j]);
    }
    out
}

/// Rows of the batch, all their positions; `dx`, `dq` and `dstate` are theirs.
fn of_group<G: Gates>(
    isa: Isa,
    whole: &Whole<'_>,
    rows: Range<usize>,
    mut dx: RowsMut<'_>,
    dq: &mut [f32],
    dstate: &mut [f32],
) {
    let (l, d, segments) = (whole.dims.l, whole.dims.d, &whole.segments);
    let (columns, s) = (G::KIND.gates() * d, G::KIND.states());
    let len = |row| segments.len(row, l);
    for (i, row) in rows.clone().enumerate() {
        (len(row)..l).for_each(|t| dx.row(i * l + t).fill(0.0));
    }
    let mut dh = vec![0.0; rows.len() * d];
    for t in (0..rows.clone().map(len).max().unwrap_or(0)).rev() {
        let dx = dx.reborrow();
        isa.run(Position::<G> { whole, rows: rows.clone(), t, dx, dq, dstate, kind: PhantomData });
        if t == 0 && !whole.all {
            break;
        }
        let dq = Rows::new(dq, l * columns).columns(t * columns, columns);
        product(isa, whole.dims.heads, dq, whole.transposed, RowsMut::new(&mut dh, d));
        for ((row, dh), dstate) in rows.clone().zip(dh.chunks_exact(d)).zip(dstate.chunks_exact_mut(s * d)) {
            if t < len(row) && !segments.reset(row, t, l) {
                dstate.iter_mut().zip(dh).for_each(|(sum, dh)| *sum += dh);
            }
        }
    }
}

/// The nonlinearities of one position of every row of a group.
struct Position<'a, G> {
    whole: &'a Whole<'a>,
    rows: Range<usize>,
    t: usize,
    /// `[row l (gate d)]`
    dx: RowsMut<'a>,
    /// `[row l (head gate d/heads)]`
    dq: &'a mut [f32],
    /// `[row s d]`: of the state after t, then of the state before it without the part through q.
    dstate: &'a mut [f32],
    kind: PhantomData<G>,
}

impl<G: Gates> WithSimd for Position<'_, G> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (whole, t) = (self.whole, self.t);
        let (Dims { l, d, .. }, kind) = (whole.dims, G::KIND);
        let (columns, s, reads) = (kind.gates() * d, kind.states(), kind.reads());
        for (i, row) in self.rows.clone().enumerate().filter(|(_, row)| t < whole.segments.len(*row, l)) {
            let saved = whole.saved_at(row, t);
            let given = Given {
                read: &saved[..reads * d],
                before: (whole.h_before(row, t), whole.others_before(row, t)),
                after: (whole.y.row(row * l + t), &saved[reads * d..]),
                dy: whole.dy.row(row * l + t),
            };
            let dq = &mut self.dq[(i * l + t) * columns..][..columns];
            let (dx, dstate) = (self.dx.row(i * l + t), &mut self.dstate[i * s * d..][..s * d]);
            of_row::<S, G>(simd, Heads::of(whole.dims, kind), &given, dx, dq, dstate);
            if whole.segments.reset(row, t, l) {
                dstate.fill(0.0);
            }
        }
    }
}

/// What a row reads at one position: vectors `[d]`, states split into h and the others.
struct Given<'a> {
    read: &'a [f32],
    before: (Option<&'a [f32]>, Option<&'a [f32]>),
    after: (&'a [f32], &'a [f32]),
    dy: &'a [f32],
}

#[inline(always)]
fn of_row<S: Simd, G: Gates>(
    simd: S,
    heads: Heads,
    given: &Given<'_>,
    dx: &mut [f32],
    dq: &mut [f32],
    dstate: &mut [f32],
) {
    let (gates, states) = (G::KIND.gates(), G::KIND.states());
    let (width, d) = (heads.width, heads.count * heads.width);
    let zero = simd.splat_f32s(0.0);
    for head in 0..heads.count {
        let one = head * width..(head + 1) * width;
        let at = |i: usize| i * d + one.start..i * d + one.end;
        let read = heads.of_vectors(given.read, G::KIND.reads(), head);
        for from in (0..width).step_by(S::F32_LANES) {
            let read = std::array::from_fn(|i| if i < G::KIND.reads() { load(simd, read[i], from) } else { zero });
            let (mut before, mut after, mut d_after) = ([zero; 4], [zero; 4], [zero; 4]);
            after[0] = load(simd, &given.after.0[one.clone()], from);
            if let Some(h) = given.before.0 {
                before[0] = load(simd, &h[one.clone()], from);
            }
            for i in 1..states {
                after[i] = load(simd, &given.after.1[at(i - 1)], from);
                if let Some(others) = given.before.1 {
                    before[i] = load(simd, &others[at(i - 1)], from);
                }
            }
            for i in 0..states {
                d_after[i] = load(simd, &dstate[at(i)], from);
            }
            d_after[0] = simd.add_f32s(d_after[0], load(simd, &given.dy[one.clone()], from));
            let (dread, d_before) = G::retreat(simd, read, before, after, d_after);
            for i in 0..states {
                store(simd, &mut dstate[at(i)], from, d_before[i]);
            }
            for gate in 0..gates {
                let q = if matches!(G::KIND, Kind::Gru) && gate == 2 { 3 } else { gate };
                let column = (head * gates + gate) * width;
                store(simd, &mut dx[at(gate)], from, dread[gate]);
                store(simd, &mut dq[column..][..width], from, dread[q]);
            }
        }
    }
}

/// dU += Σ dq h of the position before, dbias += Σ dq.
fn sums(isa: Isa, whole: &Whole<'_>, heads: Heads, dq: Rows<'_>, drecurrent: &mut [f32], dbias: Option<&mut [f32]>) {
    let (Dims { b, l, d, .. }, width) = (whole.dims, heads.width);
    let mut h = vec![0.0; b * l * d];
    for (i, h) in h.chunks_exact_mut(d).enumerate() {
        if let Some(before) = whole.h_before(i / l, i % l) {
            h.copy_from_slice(before);
        }
    }
    let h = Rows::new(&h, d);
    for (head, du) in drecurrent.chunks_exact_mut(heads.columns() * width).enumerate() {
        let (dq, h) = (dq.columns(head * heads.columns(), heads.columns()), h.columns(head * width, width));
        linear::backward_weight(dq, h, RowsMut::new(du, width));
    }
    let Some(dbias) = dbias else { return };
    for (i, dbias) in dbias.chunks_exact_mut(width).enumerate() {
        let (gate, head) = (i / heads.count, i % heads.count);
        linear::backward_bias(isa, dq.columns((head * heads.gates + gate) * width, width), dbias);
    }
}
