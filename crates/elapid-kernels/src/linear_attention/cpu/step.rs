//! One position: the state is read and written once, row by row, with the sums of a block of columns in registers.

use pulp::{Simd, WithSimd};

use super::chunk::by_key;
use super::parts::{Chunk, Head, pieces};
use crate::linear_attention::{Args, Decay, Dims};
use crate::reuse::List;
use crate::{Isa, Rows, RowsMut, parallel};

/// Vectors of a block of columns.
const BLOCK: usize = 4;

/// Elements of the state that are worth waking a thread.
const LEAST: usize = 1 << 14;

pub(in crate::linear_attention) fn step(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    state: &mut [f32],
    y: RowsMut<'_>,
) {
    let each = dims.k * dims.columns(args.normaliser.is_some());
    let mut heads: List<_> =
        pieces(y, dims, dims.heads, dims.v).into_iter().zip(state.chunks_exact_mut(each)).collect();
    let run = |i: usize, mut y: RowsMut<'_>, state: &mut [f32]| {
        let head = Head { dims, args: *args, b: i / dims.heads, h: i % dims.heads };
        if args.segments.len(head.b, 1) == 0 {
            return y.fill(0.0);
        }
        if args.segments.reset(head.b, 0, 1) {
            state.fill(0.0);
        }
        isa.run(Step { head, state, y: y.row(0) });
    };
    let grain = parallel::grain(heads.len(), each, LEAST, 1);
    parallel::split(heads.len(), grain, &mut heads[..], &|from, _, heads: &mut [_]| {
        heads.iter_mut().enumerate().for_each(|(i, (y, state))| run(from + i, y.reborrow(), state));
    });
}

struct Step<'a, 'o> {
    head: Head<'a>,
    state: &'o mut [f32],
    y: &'o mut [f32],
}

/// What a row of the state needs.
#[derive(Clone, Copy)]
struct Row {
    decay: f32,
    write: f32,
    q: f32,
    /// Weight of the own write in what is read; the rest is read from the state before it with a bonus, else after it.
    bonus: f32,
}

impl WithSimd for Step<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { head, state, y } = self;
        let Head { dims, args, h, .. } = head;
        let (position, columns) = (Chunk { from: 0, to: 1, fresh: false }, dims.columns(args.normaliser.is_some()));
        let (q, k, w) = (head.q(position).row(0), head.k(position).row(0), head.write(0));
        let log = |i: usize| match args.decay {
            Decay::None => 0.0,
            Decay::Head(x) => x[h],
            Decay::HeadVarying(x) => x.row(head.row(0))[h],
            Decay::Key(x) => x[h * dims.k + i],
            Decay::KeyVarying(x) => x.row(head.row(0))[h * dims.k + i],
        };
        let (one, u) = (log(0).exp(), head.bonus());
        let row = |i: usize| Row {
            decay: if by_key(&args) { log(i).exp() } else { one },
            write: w * k[i],
            q: args.scale * q[i],
            bonus: u.map_or(0.0, |u| u[i]),
        };
        let rows: List<Row> = (0..dims.k).map(row).collect();
        let (mut v, mut read) = (List::of(0.0, columns), List::of(0.0, columns));
        head.values_to(position, columns, &mut v);
        let mut at = 0;
        while at < columns {
            let (state, v, read) = (&mut state[at..], &v[at..], &mut read[at..]);
            if columns - at >= BLOCK * S::F32_LANES {
                block::<S, BLOCK>(simd, &rows, u.is_some(), columns, state, v, read);
                at += BLOCK * S::F32_LANES;
            } else {
                block::<S, 1>(simd, &rows, u.is_some(), columns, state, v, read);
                at += S::F32_LANES;
            }
        }
        let divisor = args.normaliser.map_or(1.0, |eps| read[dims.v] + eps);
        for (j, y) in y.iter_mut().enumerate() {
            *y = read[j] / divisor + head.skip(j) * v[j];
        }
    }
}

/// N vectors of columns, of which the last may not be whole.
#[inline(always)]
fn block<S: Simd, const N: usize>(
    simd: S,
    rows: &[Row],
    before: bool,
    columns: usize,
    state: &mut [f32],
    v: &[f32],
    read: &mut [f32],
) {
    let size = (N * S::F32_LANES).min(v.len());
    let load = |x: &[f32]| -> [S::f32s; N] {
        std::array::from_fn(|n| {
            simd.partial_load_f32s(&x[(n * S::F32_LANES).min(size)..size.min((n + 1) * S::F32_LANES)])
        })
    };
    let store = |x: &mut [f32], y: [S::f32s; N]| {
        x[..size].chunks_mut(S::F32_LANES).zip(y).for_each(|(x, y)| simd.partial_store_f32s(x, y));
    };
    let (v, mut sum) = (load(v), [simd.splat_f32s(0.0); N]);
    for (row, state) in rows.iter().zip(state.chunks_mut(columns)) {
        let each = |x: f32| simd.splat_f32s(x);
        let (old, mut new) = (load(state), [each(0.0); N]);
        for n in 0..N {
            let written = simd.mul_f32s(each(row.write), v[n]);
            new[n] = simd.mul_add_e_f32s(each(row.decay), old[n], written);
            let seen = if before { simd.mul_add_e_f32s(each(row.bonus), written, old[n]) } else { new[n] };
            sum[n] = simd.mul_add_e_f32s(each(row.q), seen, sum[n]);
        }
        store(state, new);
    }
    store(read, sum);
}
