//! The equations as loops.

use super::{Args, Dims, Grads};
use crate::{Float, Rows, RowsMut};

/// The location of a tap's input.
enum Source {
    /// Position of the row.
    Input(usize),
    /// Entry of `initial`, which may be absent.
    Initial(usize),
    /// Before the document.
    Zero,
}

/// What entry `i` of the `k - 1` inputs before position `t` of row `row` is.
fn source<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, row: usize, t: usize, i: usize) -> Source {
    let Dims { l, k, .. } = dims;
    // Input i of the window before t is input t + i of the row with `initial` put in front of it.
    let at = t + i;
    let from = (at + 1).saturating_sub(k);
    // A reset between the input and t cuts it off; `reset` is about position t itself.
    let cut =
        |upto: usize| (if at + 1 < k { 0 } else { from + 1 }..=upto).any(|s| s < l && args.segments.reset(row, s, l));
    if t > 0 && cut(t - 1) {
        Source::Zero
    } else if at + 1 >= k {
        Source::Input(from)
    } else {
        Source::Initial(at)
    }
}

/// The input of tap `j` at position `t`.
fn tap<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, row: usize, t: usize, j: usize) -> Source {
    let reset = args.segments.reset(row, t, dims.l);
    if j + 1 == dims.k {
        Source::Input(t)
    } else if reset {
        Source::Zero
    } else {
        source(dims, args, row, t, j)
    }
}

fn value<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, row: usize, from: &Source, c: usize) -> T {
    match *from {
        Source::Input(s) => args.x.row(row * dims.l + s)[c],
        Source::Initial(i) => args.initial.map_or(T::zero(), |x| x[(row * (dims.k - 1) + i) * dims.d + c]),
        Source::Zero => T::zero(),
    }
}

/// The convolution before the SiLU.
fn before<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, row: usize, t: usize, c: usize) -> T {
    let mut sum = args.bias.map_or(T::zero(), |bias| bias[c]);
    for j in 0..dims.k {
        sum += args.weight[c * dims.k + j] * value(dims, args, row, &tap(dims, args, row, t, j), c);
    }
    sum
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, mut y: RowsMut<'_, T>, last: &mut [T]) {
    let Dims { b, l, d, k } = dims;
    for row in 0..b {
        let len = args.segments.len(row, l);
        for t in 0..l {
            for c in 0..d {
                let sum = if t < len { before(dims, args, row, t, c) } else { T::zero() };
                y.row(row * l + t)[c] = if args.silu { sum.silu() } else { sum };
            }
        }
        for i in 0..k - 1 {
            for c in 0..d {
                last[(row * (k - 1) + i) * d + c] = value(dims, args, row, &source(dims, args, row, len, i), c);
            }
        }
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(
    dims: Dims,
    args: &Args<Rows<'_, T>>,
    dy: Rows<'_, T>,
    dlast: Option<&[T]>,
    grads: Grads<RowsMut<'_, T>>,
) {
    let Dims { b, l, d, k } = dims;
    let Grads { mut dx, dweight, mut dbias, mut dinitial } = grads;
    dx.fill(T::zero());
    if let Some(dinitial) = dinitial.as_deref_mut() {
        dinitial.fill(T::zero());
    }
    let mut send = |row: usize, from: &Source, c: usize, g: T| match *from {
        Source::Input(s) => dx.row(row * l + s)[c] += g,
        Source::Initial(i) => {
            if let Some(dinitial) = dinitial.as_deref_mut() {
                dinitial[(row * (k - 1) + i) * d + c] += g;
            }
        }
        Source::Zero => {}
    };
    for row in 0..b {
        let len = args.segments.len(row, l);
        for c in 0..d {
            for t in 0..len {
                let mut g = dy.row(row * l + t)[c];
                if args.silu {
                    g *= before(dims, args, row, t, c).dsilu();
                }
                if let Some(dbias) = dbias.as_deref_mut() {
                    dbias[c] += g;
                }
                for j in 0..k {
                    let from = tap(dims, args, row, t, j);
                    dweight[c * k + j] += g * value(dims, args, row, &from, c);
                    send(row, &from, c, g * args.weight[c * k + j]);
                }
            }
            for i in 0..k - 1 {
                if let Some(dlast) = dlast {
                    send(row, &source(dims, args, row, len, i), c, dlast[(row * (k - 1) + i) * d + c]);
                }
            }
        }
    }
}

/// Shapes as in [`super::step`].
pub fn step<T: Float>(
    dims: Dims,
    x: Rows<'_, T>,
    weight: &[T],
    bias: Option<&[T]>,
    silu: bool,
    state: &mut [T],
    mut y: RowsMut<'_, T>,
) {
    let Dims { b, d, k, .. } = dims;
    for row in 0..b {
        let state = &mut state[row * (k - 1) * d..][..(k - 1) * d];
        for c in 0..d {
            let mut sum = bias.map_or(T::zero(), |bias| bias[c]);
            for j in 0..k {
                sum += weight[c * k + j] * if j + 1 < k { state[j * d + c] } else { x.row(row)[c] };
            }
            y.row(row)[c] = if silu { sum.silu() } else { sum };
        }
        if k > 1 {
            state.copy_within(d.., 0);
            state[(k - 2) * d..].copy_from_slice(x.row(row));
        }
    }
}
