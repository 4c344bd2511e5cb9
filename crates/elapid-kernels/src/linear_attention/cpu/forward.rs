//! The forward pass.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::chunk::{Decayed, by_key, products};
use super::parts::{CHUNK, Chunk, Head, Saved, TOGETHER, chunks, pieces};
use super::product;
use crate::linear_attention::{Args, Dims};
use crate::parallel;
use crate::{Isa, Rows, RowsMut};

/// Heads that share the products of queries and keys, at most.
const BLOCK: usize = 4;

pub(in crate::linear_attention) fn forward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    y: RowsMut<'_>,
    last: &mut [f32],
    saved: Option<&mut Saved>,
) {
    let state = dims.k * dims.columns(args.normaliser.is_some());
    let ys = pieces(y, dims, dims.heads, dims.v);
    let lasts = last.chunks_exact_mut(state);
    let mut kept: Vec<Option<Kept<'_>>> = Vec::new();
    if let Some(saved) = saved {
        let counts = saved.resize(dims, args);
        let (mut states, mut divisors) = (&mut saved.states[..], &mut saved.divisors[..]);
        for i in 0..dims.b * dims.heads {
            let (of_head, rest) = states.split_at_mut(counts[i / dims.heads] * state);
            let (of_row, others) = divisors.split_at_mut(if args.normaliser.is_some() { dims.l } else { 0 });
            (states, divisors) = (rest, others);
            kept.push(Some(Kept { states: of_head, divisors: of_row }));
        }
    }
    kept.resize_with(dims.b * dims.heads, || None);
    let mut heads: Vec<Outputs<'_>> =
        ys.into_iter().zip(lasts).zip(kept).map(|((y, last), kept)| Outputs { y, last, kept }).collect();
    // Blocks of heads of one group; the same whatever the batch, so that results do not depend on it.
    let mut tasks: Vec<(usize, &mut [Outputs<'_>])> = Vec::new();
    for (i, group) in heads.chunks_mut(dims.heads / dims.groups).enumerate() {
        let first = i * (dims.heads / dims.groups);
        tasks.extend(group.chunks_mut(BLOCK).enumerate().map(|(j, block)| (first + j * BLOCK, block)));
    }
    let run = |(first, outputs): (usize, &mut [Outputs<'_>])| {
        let b = first / dims.heads;
        let of_block = first % dims.heads..first % dims.heads + outputs.len();
        isa.run(Forward { dims, args: *args, b, heads: of_block, outputs });
    };
    parallel::each(tasks, &run);
}

/// What is written for one head of one row.
struct Outputs<'a> {
    y: RowsMut<'a>,
    last: &'a mut [f32],
    kept: Option<Kept<'a>>,
}

/// What is saved of one head of one row.
struct Kept<'a> {
    states: &'a mut [f32],
    divisors: &'a mut [f32],
}

/// Some heads of one group of one row.
struct Forward<'a, 's, 'o> {
    dims: Dims,
    args: Args<Rows<'a>>,
    b: usize,
    heads: Range<usize>,
    outputs: &'s mut [Outputs<'o>],
}

impl WithSimd for Forward<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dims, args, b, heads, outputs } = self;
        let (k, columns) = (dims.k, dims.columns(args.normaliser.is_some()));
        let width = product::stride::<S>(columns);
        let mut states = vec![0.0; outputs.len() * k * width];
        for (h, state) in heads.clone().zip(states.chunks_exact_mut(k * width)) {
            if let Some(initial) = args.initial {
                pad(&initial[(b * dims.heads + h) * k * columns..][..k * columns], columns, width, state);
            }
        }
        let (mut decayed, mut pairs) = (Decayed::new(k), vec![0.0; CHUNK * CHUNK]);
        let (mut v, mut read) = (vec![0.0; CHUNK * width], vec![0.0; CHUNK * width]);
        let head_of = |h| Head { dims, args, b, h };
        for (i, chunk) in chunks(args.segments, b, dims.l).into_iter().enumerate() {
            if chunk.fresh {
                states.fill(0.0);
            }
            if !by_key(&args) {
                products(simd, &head_of(heads.start), chunk, &mut pairs);
            }
            for (h, (state, out)) in heads.clone().zip(states.chunks_exact_mut(k * width).zip(&mut *outputs)) {
                if let Some(kept) = out.kept.as_mut().filter(|_| i % TOGETHER == 0) {
                    strip(state, width, columns, &mut kept.states[i / TOGETHER * k * columns..][..k * columns]);
                }
                let (head, n) = (head_of(h), chunk.len());
                decayed.fill(simd, &head, chunk, &pairs, None);
                head.values_to(chunk, width, &mut v);
                product::read(simd, (decayed.q(n), state), (decayed.scores(n), &v), columns, &mut read);
                product::write(simd, &decayed.total, decayed.k(n), &v, columns, state);
                finish(&head, chunk, width, &read, out);
            }
        }
        let end = args.segments.len(b, dims.l);
        for (state, out) in states.chunks_exact(k * width).zip(outputs) {
            strip(state, width, columns, out.last);
            (end..dims.l).for_each(|t| out.y.row(t).fill(0.0));
            out.kept.iter_mut().for_each(|kept| kept.divisors.iter_mut().skip(end).for_each(|x| *x = 1.0));
        }
    }
}

/// y from what was read, with the factor of products in it.
#[inline(always)]
fn finish(head: &Head<'_>, chunk: Chunk, width: usize, read: &[f32], out: &mut Outputs<'_>) {
    let v = head.dims.v;
    for (t, read) in (chunk.from..chunk.to).zip(read.chunks_exact(width)) {
        let y = out.y.row(t);
        match head.args.normaliser {
            None => y.copy_from_slice(&read[..v]),
            Some(eps) => {
                let divisor = read[v] + eps;
                y.iter_mut().zip(read).for_each(|(y, read)| *y = read / divisor);
                out.kept.iter_mut().for_each(|kept| kept.divisors[t] = divisor);
            }
        }
        if head.args.skip.is_some() {
            let values = &head.args.v.row(head.row(t))[head.values()];
            y.iter_mut().zip(values).enumerate().for_each(|(j, (y, v))| *y += head.skip(j) * v);
        }
    }
}

/// Rows of `columns` to rows of `width`.
pub(super) fn pad(from: &[f32], columns: usize, width: usize, to: &mut [f32]) {
    for (from, to) in from.chunks_exact(columns).zip(to.chunks_exact_mut(width)) {
        to[..columns].copy_from_slice(from);
    }
}

/// [`pad`] back.
pub(super) fn strip(from: &[f32], width: usize, columns: usize, to: &mut [f32]) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(columns)) {
        to.copy_from_slice(&from[..columns]);
    }
}
