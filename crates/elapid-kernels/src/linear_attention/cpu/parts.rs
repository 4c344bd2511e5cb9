//! Chunks, the parts of outputs that threads write, and what the forward saves.

use std::ops::Range;

use crate::linear_attention::{Args, Dims};
use crate::reuse::List;
use crate::{Rows, RowsMut, Segments};

/// Positions of a chunk, at most: four times the rows of sums in registers.
pub(super) const CHUNK: usize = 24;

/// Chunks for each state that is saved.
pub(super) const TOGETHER: usize = 4;

/// Neighbouring positions of a document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) from: usize,
    pub(super) to: usize,
    /// Whether the state is reset before it.
    pub(super) fresh: bool,
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.to - self.from
    }
}

/// The chunks of row `b`.
pub(super) fn chunks(segments: Segments<'_>, b: usize, l: usize) -> Vec<Chunk> {
    let (mut from, len) = (0, segments.len(b, l));
    let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK));
    while from < len {
        let end = len.min(from + CHUNK);
        let to = (from + 1..end).find(|&t| segments.reset(b, t, l)).unwrap_or(end);
        chunks.push(Chunk { from, to, fresh: segments.reset(b, from, l) });
        from = to;
    }
    chunks
}

/// One head of one row: where its inputs are.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) dims: Dims,
    pub(super) args: Args<Rows<'a>>,
    pub(super) b: usize,
    pub(super) h: usize,
}

impl<'a> Head<'a> {
    pub(super) fn row(&self, t: usize) -> usize {
        self.b * self.dims.l + t
    }

    /// `[chunk k]`.
    pub(super) fn q(&self, chunk: Chunk) -> Rows<'a> {
        self.of_group(self.args.q, chunk)
    }

    /// `[chunk k]`.
    pub(super) fn k(&self, chunk: Chunk) -> Rows<'a> {
        self.of_group(self.args.k, chunk)
    }

    fn of_group(&self, x: Rows<'a>, chunk: Chunk) -> Rows<'a> {
        let g = self.h / (self.dims.heads / self.dims.groups);
        x.slice(self.row(chunk.from), chunk.len()).columns(g * self.dims.k, self.dims.k)
    }

    pub(super) fn values(&self) -> Range<usize> {
        self.h * self.dims.v..(self.h + 1) * self.dims.v
    }

    pub(super) fn keys(&self) -> Range<usize> {
        self.h * self.dims.k..(self.h + 1) * self.dims.k
    }

    pub(super) fn write(&self, t: usize) -> f32 {
        self.args.write.map_or(1.0, |write| write.row(self.row(t))[self.h])
    }

    pub(super) fn bonus(&self) -> Option<&'a [f32]> {
        self.args.bonus.map(|u| &u[self.keys()])
    }

    /// The weight of the skip of a channel.
    pub(super) fn skip(&self, j: usize) -> f32 {
        self.args
            .skip
            .map_or(0.0, |skip| skip[if skip.len() == self.dims.heads { self.h } else { self.values().start + j }])
    }

    /// Writes values to rows `width` wide, 1 behind each with a normaliser, then zeros.
    pub(super) fn values_to(&self, chunk: Chunk, width: usize, out: &mut [f32]) {
        let v = self.dims.v;
        for (t, out) in (chunk.from..chunk.to).zip(out.chunks_exact_mut(width)) {
            out[..v].copy_from_slice(&self.args.v.row(self.row(t))[self.values()]);
            out[v..].fill(0.0);
            if self.args.normaliser.is_some() {
                out[v] = 1.0;
            }
        }
    }
}

/// A matrix `[b l (head width)]` cut to rows of the batch and heads, in that order.
pub(super) fn pieces<'a>(all: RowsMut<'a>, dims: Dims, heads: usize, width: usize) -> List<RowsMut<'a>> {
    let (mut rest, mut found) = (all, List::with_room(dims.b * heads));
    for _ in 0..dims.b {
        let (mut row, below) = rest.split_rows(dims.l);
        for _ in 0..heads {
            let (head, others) = row.split_columns(width);
            found.push(head);
            row = others;
        }
        rest = below;
    }
    found
}

/// What the forward leaves for the backward.
#[derive(Debug, Default)]
pub(in crate::linear_attention) struct Saved {
    /// Of every row and head, the states before every [`TOGETHER`]th chunk, `[k columns]`.
    pub(super) states: Vec<f32>,
    /// `[b h l]`: what the normaliser divides by.
    pub(super) divisors: Vec<f32>,
    made_for: Option<(Dims, bool)>,
}

impl Saved {
    pub(in crate::linear_attention) fn bytes(&self) -> usize {
        4 * (self.states.len() + self.divisors.len())
    }

    pub(in crate::linear_attention) fn made_for(&self) -> Option<Dims> {
        self.made_for.map(|(dims, _)| dims)
    }

    /// Whether a forward of these sizes left it.
    pub(in crate::linear_attention) fn is_for(&self, dims: Dims, normalised: bool) -> bool {
        self.made_for == Some((dims, normalised))
    }

    /// Makes room for a call; returns how many states each row has of a head.
    pub(super) fn resize(&mut self, dims: Dims, args: &Args<Rows<'_>>) -> Vec<usize> {
        let (counts, normalised) = (states(dims, args), args.normaliser.is_some());
        let each = dims.heads * dims.k * dims.columns(normalised);
        self.states.resize(counts.iter().sum::<usize>() * each, 0.0);
        self.divisors.resize(if normalised { dims.b * dims.heads * dims.l } else { 0 }, 0.0);
        self.made_for = Some((dims, normalised));
        counts
    }
}

/// How many states of a head each row saves.
pub(super) fn states(dims: Dims, args: &Args<Rows<'_>>) -> Vec<usize> {
    (0..dims.b).map(|b| chunks(args.segments, b, dims.l).len().div_ceil(TOGETHER)).collect()
}
