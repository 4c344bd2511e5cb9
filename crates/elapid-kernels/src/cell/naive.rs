//! The cells as their equations, one channel after another.

use super::{Args, Dims, Grads, Kind, Outputs};
use crate::{Float, Rows, RowsMut};

/// log σ(x).
fn log_sigmoid<T: Float>(x: T) -> T {
    x.min(T::zero()) - (-x.abs()).exp().ln_1p()
}

/// The state after a position, from what its nonlinearities read and the state before. Unused entries are 0.
fn advance<T: Float>(kind: Kind, read: [T; 4], before: [T; 4]) -> [T; 4] {
    let (zero, one) = (T::zero(), T::one());
    let [h, c, n, m] = before;
    match (kind, read) {
        (Kind::Tanh, [a, ..]) => [a.tanh(), zero, zero, zero],
        (Kind::Relu, [a, ..]) => [a.max(zero), zero, zero, zero],
        (Kind::Lstm, [i, f, g, o]) => {
            let c = f.sigmoid() * c + i.sigmoid() * g.tanh();
            [o.sigmoid() * c.tanh(), c, zero, zero]
        }
        (Kind::Gru, [r, z, x, q]) => {
            let (z, n) = (z.sigmoid(), (x + r.sigmoid() * q).tanh());
            [(one - z) * n + z * h, zero, zero, zero]
        }
        (Kind::Slstm, [i, f, z, o]) => {
            let decayed = log_sigmoid(f) + m;
            let m = if n == zero { i } else { i.max(decayed) };
            let (i, f) = ((i - m).exp(), (decayed - m).min(zero).exp());
            let (c, n) = (f * c + i * z.tanh(), f * n + i);
            [o.sigmoid() * c / n, c, n, m]
        }
    }
}

/// The gradients of what [`advance`] read and of the state before, from that of the state after.
fn retreat<T: Float>(kind: Kind, read: [T; 4], before: [T; 4], d: [T; 4]) -> ([T; 4], [T; 4]) {
    let (zero, one) = (T::zero(), T::one());
    let dsigmoid = |x: T| x.sigmoid() * (-x).sigmoid();
    let dtanh = |x: T| one - x.tanh() * x.tanh();
    let ([h, c, n, m], [dh, dc, dn, dm]) = (before, d);
    let [_, c_new, n_new, m_new] = advance(kind, read, before);
    match (kind, read) {
        (Kind::Tanh, [a, ..]) => ([dh * dtanh(a), zero, zero, zero], [zero; 4]),
        (Kind::Relu, [a, ..]) => ([if a > zero { dh } else { zero }, zero, zero, zero], [zero; 4]),
        (Kind::Lstm, [i, f, g, o]) => {
            let dc = dc + dh * o.sigmoid() * dtanh(c_new);
            let dread = [
                dc * g.tanh() * dsigmoid(i),
                dc * c * dsigmoid(f),
                dc * i.sigmoid() * dtanh(g),
                dh * c_new.tanh() * dsigmoid(o),
            ];
            (dread, [zero, dc * f.sigmoid(), zero, zero])
        }
        (Kind::Gru, [r, z, x, q]) => {
            let inner = x + r.sigmoid() * q;
            let dinner = dh * (one - z.sigmoid()) * dtanh(inner);
            let dz = dh * (h - inner.tanh()) * dsigmoid(z);
            let dread = [dinner * q * dsigmoid(r), dz, dinner, dinner * r.sigmoid()];
            (dread, [dh * z.sigmoid(), zero, zero, zero])
        }
        (Kind::Slstm, [i, f, z, o]) => {
            let decayed = log_sigmoid(f) + m;
            let (gate_i, gate_f) = ((i - m_new).exp(), (decayed - m_new).min(zero).exp());
            let do_ = dh * c_new / n_new * dsigmoid(o);
            let dc = dc + dh * o.sigmoid() / n_new;
            let dn = dn - dh * o.sigmoid() * c_new / (n_new * n_new);
            // Of i - m' and log σ(f) + m - m', and m', which is one of the two.
            let di = (dc * z.tanh() + dn) * gate_i;
            let df = if decayed > m_new { zero } else { (dc * c + dn * n) * gate_f };
            let dm = dm - di - df;
            let (di, df) = if n == zero || i >= decayed { (di + dm, df) } else { (di, df + dm) };
            let dread = [di, df * (-f).sigmoid(), dc * gate_i * dtanh(z), do_];
            (dread, [zero, dc * gate_f, dn * gate_f, df])
        }
    }
}

/// Channel `j` of each of `n` vectors `[d]`.
fn gather<T: Float>(vectors: &[T], d: usize, n: usize, j: usize) -> [T; 4] {
    std::array::from_fn(|i| if i < n { vectors[i * d + j] } else { T::zero() })
}

fn scatter<T: Float>(vectors: &mut [T], d: usize, n: usize, j: usize, values: [T; 4]) {
    (0..n).for_each(|i| vectors[i * d + j] = values[i]);
}

/// Index in U of a channel's row for a gate.
fn row_of(dims: Dims, kind: Kind, gate: usize, j: usize) -> usize {
    let width = dims.d / dims.heads;
    (j / width * kind.gates() + gate) * width + j % width
}

/// What the nonlinearities of a position read, `[read d]`, from h before it.
fn read<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, row: usize, h: &[T]) -> Vec<T> {
    let (d, width, gates) = (dims.d, dims.d / dims.heads, args.kind.gates());
    let mut read = vec![T::zero(); args.kind.reads() * d];
    for (gate, j) in (0..gates).flat_map(|gate| (0..d).map(move |j| (gate, j))) {
        let u = args.recurrent.row(row_of(dims, args.kind, gate, j));
        let h = &h[j / width * width..][..width];
        let q =
            u.iter().zip(h).map(|(&u, &h)| u * h).sum::<T>() + args.bias.map_or(T::zero(), |bias| bias[gate * d + j]);
        let x = args.x.row(row)[gate * d + j];
        if args.kind == Kind::Gru && gate == 2 {
            (read[2 * d + j], read[3 * d + j]) = (x, q);
        } else {
            read[gate * d + j] = x + q;
        }
    }
    read
}

/// Runs the cells: see [`super::forward`].
///
/// # Panics
/// If shapes differ.
pub fn forward<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, mut y: RowsMut<'_, T>, last: &mut [T]) {
    let (d, s) = (dims.d, args.kind.states());
    y.fill(T::zero());
    for (b, state) in last.chunks_exact_mut(s * d).enumerate() {
        state.fill(T::zero());
        if let Some(initial) = args.initial {
            state.copy_from_slice(&initial[b * s * d..][..s * d]);
        }
        for t in 0..args.segments.len(b, dims.l) {
            if args.segments.reset(b, t, dims.l) {
                state.fill(T::zero());
            }
            let row = b * dims.l + t;
            let read = read(dims, args, row, &state[..d]);
            for j in 0..d {
                let before = gather(state, d, s, j);
                scatter(state, d, s, j, advance(args.kind, gather(&read, d, args.kind.reads(), j), before));
            }
            y.row(row).copy_from_slice(&state[..d]);
        }
    }
}

/// The gradient of [`forward`]: see [`super::backward`]. Keeps all states of a row.
///
/// # Panics
/// If shapes differ.
// Long: the derivation of `docs/math/cell.md` in its order.
pub fn backward<T: Float>(
    dims: Dims,
    args: &Args<Rows<'_, T>>,
    outputs: &Outputs<Rows<'_, T>>,
    grads: Grads<RowsMut<'_, T>>,
) {
    let Grads { mut dx, drecurrent, mut dbias, mut dinitial } = grads;
    let (d, s, kind, width) = (dims.d, args.kind.states(), args.kind, dims.d / dims.heads);
    dx.fill(T::zero());
    for b in 0..dims.b {
        let len = args.segments.len(b, dims.l);
        let mut state = args.initial.map_or(vec![T::zero(); s * d], |initial| initial[b * s * d..][..s * d].to_vec());
        let (mut reads, mut before) = (Vec::new(), Vec::new());
        for t in 0..len {
            if args.segments.reset(b, t, dims.l) {
                state.fill(T::zero());
            }
            let read = read(dims, args, b * dims.l + t, &state[..d]);
            before.push(state.clone());
            for j in 0..d {
                let after = advance(kind, gather(&read, d, kind.reads(), j), gather(&state, d, s, j));
                scatter(&mut state, d, s, j, after);
            }
            reads.push(read);
        }
        let mut dstate = outputs.dlast.map_or(vec![T::zero(); s * d], |dlast| dlast[b * s * d..][..s * d].to_vec());
        for t in (0..len).rev() {
            let row = b * dims.l + t;
            let mut dbefore = vec![T::zero(); s * d];
            for j in 0..d {
                let mut dafter = gather(&dstate, d, s, j);
                dafter[0] += outputs.dy.row(row)[j];
                let reads = gather(&reads[t], d, kind.reads(), j);
                let (dread, dstate) = retreat(kind, reads, gather(&before[t], d, s, j), dafter);
                for i in 0..s {
                    dbefore[i * d + j] += dstate[i];
                }
                for gate in 0..kind.gates() {
                    dx.row(row)[gate * d + j] = dread[gate];
                    let dq = if kind == Kind::Gru && gate == 2 { dread[3] } else { dread[gate] };
                    if let Some(dbias) = dbias.as_deref_mut() {
                        dbias[gate * d + j] += dq;
                    }
                    let (at, first) = (row_of(dims, kind, gate, j), j / width * width);
                    for (k, &u) in args.recurrent.row(at).iter().enumerate() {
                        drecurrent[at * width + k] += dq * before[t][first + k];
                        dbefore[first + k] += dq * u;
                    }
                }
            }
            if args.segments.reset(b, t, dims.l) {
                dbefore.fill(T::zero());
            }
            dstate = dbefore;
        }
        if let Some(dinitial) = dinitial.as_deref_mut() {
            dinitial[b * s * d..][..s * d].copy_from_slice(&dstate);
        }
    }
}
