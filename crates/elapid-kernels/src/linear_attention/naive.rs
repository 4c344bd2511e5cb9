//! Linear attention as its equations, one position after another; as one matrix product with a mask; and in chunks.

use super::{Args, Decay, Dims, Grads, Outputs};
use crate::{Float, Rows, RowsMut};

/// One head of one row of the batch.
struct Head<'a, T: Float> {
    dims: Dims,
    args: Args<Rows<'a, T>>,
    b: usize,
    h: usize,
}

impl<'a, T: Float> Head<'a, T> {
    /// Every head of every row, in the order of states.
    fn all(dims: Dims, &args: &Args<Rows<'a, T>>) -> impl Iterator<Item = Self> {
        (0..dims.b * dims.heads).map(move |i| Self { dims, args, b: i / dims.heads, h: i % dims.heads })
    }

    fn columns(&self) -> usize {
        self.dims.columns(self.args.normaliser.is_some())
    }

    /// The head's part of a state, of its gradient, ...
    fn of_states(&self) -> std::ops::Range<usize> {
        let (len, i) = (self.dims.k * self.columns(), self.b * self.dims.heads + self.h);
        i * len..(i + 1) * len
    }

    fn initial(&self) -> Vec<T> {
        let range = self.of_states();
        self.args.initial.map_or(vec![T::zero(); range.len()], |initial| initial[range].to_vec())
    }

    fn len(&self) -> usize {
        self.args.segments.len(self.b, self.dims.l)
    }

    fn reset(&self, t: usize) -> bool {
        self.args.segments.reset(self.b, t, self.dims.l)
    }

    fn row(&self, t: usize) -> usize {
        self.b * self.dims.l + t
    }

    /// Where the head's query and key are.
    fn keys(&self) -> std::ops::Range<usize> {
        let g = self.h / (self.dims.heads / self.dims.groups);
        g * self.dims.k..(g + 1) * self.dims.k
    }

    fn values(&self) -> std::ops::Range<usize> {
        self.h * self.dims.v..(self.h + 1) * self.dims.v
    }

    fn q(&self, t: usize) -> &'a [T] {
        &self.args.q.row(self.row(t))[self.keys()]
    }

    fn k(&self, t: usize) -> &'a [T] {
        &self.args.k.row(self.row(t))[self.keys()]
    }

    /// With 1 for the normaliser.
    fn v(&self, t: usize) -> Vec<T> {
        let one = self.args.normaliser.map(|_| T::one());
        self.args.v.row(self.row(t))[self.values()].iter().copied().chain(one).collect()
    }

    fn write(&self, t: usize) -> T {
        self.args.write.map_or(T::one(), |write| write.row(self.row(t))[self.h])
    }

    fn log_decay(&self, t: usize, i: usize) -> T {
        let key = self.h * self.dims.k + i;
        match self.args.decay {
            Decay::None => T::zero(),
            Decay::Head(x) => x[self.h],
            Decay::HeadVarying(x) => x.row(self.row(t))[self.h],
            Decay::Key(x) => x[key],
            Decay::KeyVarying(x) => x.row(self.row(t))[key],
        }
    }

    fn bonus(&self, i: usize) -> Option<T> {
        self.args.bonus.map(|u| u[self.h * self.dims.k + i])
    }

    fn skip(&self, j: usize) -> Option<usize> {
        let skip = self.args.skip?;
        Some(if skip.len() == self.dims.heads { self.h } else { self.h * self.dims.v + j })
    }

    /// What the products are divided by.
    fn divisor(&self, read: &[T]) -> T {
        self.args
            .normaliser
            .map_or(T::one(), |eps| T::of(self.args.scale.into()) * read[self.dims.v] + T::of(eps.into()))
    }

    /// y of position t from Sᵀ q.
    fn finish(&self, t: usize, read: &[T], y: &mut RowsMut<'_, T>) {
        let (v, scale, divisor) = (self.v(t), T::of(self.args.scale.into()), self.divisor(read));
        for (j, y) in y.row(self.row(t))[self.values()].iter_mut().enumerate() {
            let skip = self.skip(j).zip(self.args.skip).map_or(T::zero(), |(i, skip)| skip[i]);
            *y = scale * read[j] / divisor + skip * v[j];
        }
    }

    /// Advances the state to position t; returns Sᵀ q.
    fn advance(&self, t: usize, s: &mut [T]) -> Vec<T> {
        let (q, k, v, w, columns) = (self.q(t), self.k(t), self.v(t), self.write(t), self.columns());
        let mut read = vec![T::zero(); columns];
        if self.reset(t) {
            s.fill(T::zero());
        }
        for (i, s) in s.chunks_exact_mut(columns).enumerate() {
            let decay = self.log_decay(t, i).exp();
            for j in 0..columns {
                let (before, write) = (s[j], w * k[i] * v[j]);
                s[j] = decay * before + write;
                read[j] += q[i] * self.bonus(i).map_or(s[j], |u| before + u * write);
            }
        }
        read
    }
}

/// Attends: see [`super::forward`].
///
/// # Panics
/// If shapes differ.
pub fn forward<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, mut y: RowsMut<'_, T>, last: &mut [T]) {
    y.fill(T::zero());
    for head in Head::all(dims, args) {
        let mut s = head.initial();
        for t in 0..head.len() {
            let read = head.advance(t, &mut s);
            head.finish(t, &read, &mut y);
        }
        last[head.of_states()].copy_from_slice(&s);
    }
}

/// [`forward`] in chunks of at most `chunk` positions; one chunk of all positions is the form with a mask `[l l]`.
///
/// With c_t the sum of log g over the chunk up to t (before t where there is a bonus: p_t), the weight of v_s in y_t is
/// Σ_i q_ti w_s k_si exp(p_ti - c_si), that of the state before the chunk q_ti exp(p_ti), and the next state is
/// exp(c) S + Σ_s w_s k_s exp(c - c_s) v_sᵀ. All exponents are at most 0.
///
/// # Panics
/// If shapes differ or `chunk` is 0.
// Long: the three sums of a chunk, one after another.
pub fn chunked<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, chunk: usize, mut y: RowsMut<'_, T>, last: &mut [T]) {
    y.fill(T::zero());
    for head in Head::all(dims, args) {
        let (mut s, columns, len) = (head.initial(), head.columns(), head.len());
        let mut from = 0;
        while from < len {
            if head.reset(from) {
                s.fill(T::zero());
            }
            // A chunk ends where a document does.
            let to = (from + 1..len.min(from + chunk)).find(|&t| head.reset(t)).unwrap_or(len.min(from + chunk));
            let keys = |f: &dyn Fn(usize) -> T| (0..dims.k).map(f).collect::<Vec<T>>();
            let mut sum = vec![vec![T::zero(); dims.k]];
            for t in from..to {
                sum.push(keys(&|i| sum[t - from][i] + head.log_decay(t, i)));
            }
            let after = |t: usize| &sum[t - from + 1];
            let read_at = |t: usize| if args.bonus.is_some() { &sum[t - from] } else { after(t) };
            for t in from..to {
                let (q, mut read) = (head.q(t), vec![T::zero(); columns]);
                for i in 0..dims.k {
                    for j in 0..columns {
                        read[j] += q[i] * read_at(t)[i].exp() * s[i * columns + j];
                    }
                }
                for at in from..=t {
                    let (k, v, w) = (head.k(at), head.v(at), head.write(at));
                    let weight = |i: usize| match head.bonus(i) {
                        Some(u) if at == t => u,
                        _ => (read_at(t)[i] - after(at)[i]).exp(),
                    };
                    let score = (0..dims.k).map(|i| q[i] * w * k[i] * weight(i)).sum::<T>();
                    read.iter_mut().zip(&v).for_each(|(read, &v)| *read += score * v);
                }
                head.finish(t, &read, &mut y);
            }
            let end = after(to - 1);
            for (i, s) in s.chunks_exact_mut(columns).enumerate() {
                s.iter_mut().for_each(|s| *s *= end[i].exp());
                for at in from..to {
                    let write = head.write(at) * head.k(at)[i] * (end[i] - after(at)[i]).exp();
                    s.iter_mut().zip(head.v(at)).for_each(|(s, v)| *s += write * v);
                }
            }
            from = to;
        }
        last[head.of_states()].copy_from_slice(&s);
    }
}

/// [`forward`] as a product with a mask `[l l]`.
///
/// # Panics
/// If shapes differ.
pub fn parallel<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, y: RowsMut<'_, T>, last: &mut [T]) {
    chunked(dims, args, dims.l.max(1), y, last);
}

/// The gradient of [`forward`]: see [`super::backward`]. Keeps all states of a head.
///
/// # Panics
/// If shapes differ.
// Long: the derivation of `docs/math/linear_attention.md` in its order.
pub fn backward<T: Float>(
    dims: Dims,
    args: &Args<Rows<'_, T>>,
    outputs: &Outputs<Rows<'_, T>>,
    mut grads: Grads<RowsMut<'_, T>>,
) {
    let (zero, scale) = (T::zero(), T::of(args.scale.into()));
    let Grads { dq, dk, dv, ddecay, dwrite, .. } = &mut grads;
    for out in [dq, dk, dv].into_iter().chain(ddecay).chain(dwrite) {
        out.fill(zero);
    }
    for head in Head::all(dims, args) {
        let (columns, len, keys) = (head.columns(), head.len(), head.keys());
        // Every state, the one before each (0 after a reset), and what was read.
        let (mut s, mut before, mut after, mut reads) = (head.initial(), Vec::new(), Vec::new(), Vec::new());
        for t in 0..len {
            before.push(if head.reset(t) { vec![zero; s.len()] } else { s.clone() });
            reads.push(head.advance(t, &mut s));
            after.push(s.clone());
        }
        // The gradient of the state after t.
        let mut ds = outputs.dlast.map_or(vec![zero; s.len()], |dlast| dlast[head.of_states()].to_vec());
        for t in (0..len).rev() {
            let (row, q, k, v, w) = (head.row(t), head.q(t), head.k(t), head.v(t), head.write(t));
            let dy = &outputs.dy.row(row)[head.values()];
            // dr, the gradient of Sᵀ q.
            let divisor = head.divisor(&reads[t]);
            let mut dr: Vec<T> = dy.iter().map(|&dy| scale * dy / divisor).collect();
            if args.normaliser.is_some() {
                let dot = (0..dims.v).map(|j| dr[j] * reads[t][j]).sum::<T>();
                dr.push(-scale * dot / divisor);
            }
            for (j, &dy) in dy.iter().enumerate() {
                if let (Some(at), Some(skip)) = (head.skip(j), args.skip) {
                    grads.dv.row(row)[head.h * dims.v + j] += skip[at] * dy;
                    grads.dskip.iter_mut().for_each(|dskip| dskip[at] += dy * v[j]);
                }
            }
            let mut dwrite = zero;
            for i in 0..dims.k {
                let (decay, u) = (head.log_decay(t, i).exp(), head.bonus(i));
                let (mut ddecay, key) = (zero, head.h * dims.k + i);
                for j in 0..columns {
                    let at = i * columns + j;
                    // What position t reads: the state after it, or the one before it and its own write times u.
                    let mut through_write = zero;
                    match u {
                        None => {
                            grads.dq.row(row)[keys.start + i] += after[t][at] * dr[j];
                            ds[at] += q[i] * dr[j];
                        }
                        Some(u) => {
                            let write = w * k[i] * v[j];
                            grads.dq.row(row)[keys.start + i] += (before[t][at] + u * write) * dr[j];
                            grads.dbonus.iter_mut().for_each(|dbonus| dbonus[key] += q[i] * write * dr[j]);
                            through_write = u * q[i] * dr[j];
                        }
                    }
                    let dwritten = ds[at] + through_write;
                    grads.dk.row(row)[keys.start + i] += dwritten * w * v[j];
                    dwrite += dwritten * k[i] * v[j];
                    if j < dims.v {
                        grads.dv.row(row)[head.h * dims.v + j] += dwritten * w * k[i];
                    }
                    ddecay += ds[at] * decay * before[t][at];
                    ds[at] *= decay;
                    if u.is_some() {
                        ds[at] += q[i] * dr[j];
                    }
                    if head.reset(t) {
                        ds[at] = zero;
                    }
                }
                match args.decay {
                    Decay::None => {}
                    Decay::Head(_) => grads.ddecay_constant.iter_mut().for_each(|x| x[head.h] += ddecay),
                    Decay::Key(_) => grads.ddecay_constant.iter_mut().for_each(|x| x[key] += ddecay),
                    Decay::HeadVarying(_) => grads.ddecay.iter_mut().for_each(|x| x.row(row)[head.h] += ddecay),
                    Decay::KeyVarying(_) => grads.ddecay.iter_mut().for_each(|x| x.row(row)[key] += ddecay),
                }
            }
            grads.dwrite.iter_mut().for_each(|x| x.row(row)[head.h] = dwrite);
        }
        if let Some(dinitial) = &mut grads.dinitial {
            dinitial[head.of_states()].copy_from_slice(&ds);
        }
    }
}
