//! What the decays make of the queries and keys of a chunk.

use pulp::Simd;

use super::parts::{CHUNK, Chunk, Head};
use super::product::{add, dot, dots, multiply, scale};
use crate::linear_attention::{Args, Decay};
use crate::{Rows, math};

/// Whether each row of the state has its own decay.
pub(super) fn by_key(args: &Args<Rows<'_>>) -> bool {
    matches!(args.decay, Decay::Key(_) | Decay::KeyVarying(_))
}

/// scale q k of all pairs of a chunk, for the heads that share them.
#[inline(always)]
pub(super) fn products<S: Simd>(simd: S, head: &Head<'_>, chunk: Chunk, out: &mut [f32]) {
    let (q, k, n) = (head.q(chunk), head.k(chunk), chunk.len());
    for t in (0..n).step_by(2) {
        for s in (0..n.min(t + 2)).step_by(4) {
            let at = |s: usize| k.row(s.min(n - 1));
            let sums = dots(simd, [q.row(t), q.row((t + 1).min(n - 1))], [at(s), at(s + 1), at(s + 2), at(s + 3)]);
            for r in 0..2.min(n - t) {
                for c in 0..4.min(t + r + 1 - s.min(t + r + 1)) {
                    out[(t + r) * CHUNK + s + c] = head.args.scale * sums[r][c];
                }
            }
        }
    }
}

/// One head of a chunk.
pub(super) struct Decayed {
    k_size: usize,
    /// `[chunk k]`: scale q exp(p).
    q: Vec<f32>,
    /// `[chunk k]`: w k exp(c_end - c).
    k: Vec<f32>,
    /// `[k]`: exp(c_end).
    pub(super) total: Vec<f32>,
    /// `[CHUNK CHUNK]`: the weight of v_s in y_t, zeros above the diagonal.
    pub(super) scores: Vec<f32>,
    /// `[CHUNK CHUNK]`, with a decay of the head: exp(p_t - c_s) up to the diagonal.
    pub(super) mask: Vec<f32>,
    /// `[chunk k]`: g, one for each key.
    gates: Vec<f32>,
    /// w.
    pub(super) write: [f32; CHUNK],
}

impl Decayed {
    pub(super) fn new(k: usize) -> Self {
        let rows = || vec![0.0; CHUNK * k];
        let square = || vec![0.0; CHUNK * CHUNK];
        Self {
            k_size: k,
            q: rows(),
            k: rows(),
            total: vec![0.0; k],
            scores: square(),
            mask: square(),
            gates: rows(),
            write: [0.0; CHUNK],
        }
    }

    pub(super) fn q(&self, n: usize) -> Rows<'_> {
        Rows::new(&self.q, self.k_size).slice(0, n)
    }

    pub(super) fn k(&self, n: usize) -> Rows<'_> {
        Rows::new(&self.k, self.k_size).slice(0, n)
    }

    /// `[chunk chunk]`.
    pub(super) fn scores(&self, n: usize) -> Rows<'_> {
        Rows::new(&self.scores, CHUNK).slice(0, n).columns(0, n)
    }

    /// g of a position; with a decay of the head, only after [`spread`](Self::spread).
    pub(super) fn gate(&self, t: usize) -> &[f32] {
        &self.gates[t * self.k_size..][..self.k_size]
    }

    /// Fills all but `gates` for a head. `products` are those of its group, with a decay of the head. With a decay by key, `dq` gets what
    /// the scores' gradient passes on to queries, as the keys are decayed for each of them.
    #[inline(always)]
    pub(super) fn fill<S: Simd>(
        &mut self,
        simd: S,
        head: &Head<'_>,
        chunk: Chunk,
        products: &[f32],
        dq: Option<(&[f32], &mut [f32])>,
    ) {
        for (write, t) in self.write.iter_mut().zip(chunk.from..chunk.to) {
            *write = head.write(t);
        }
        if by_key(&head.args) {
            self.by_key(simd, head, chunk, dq);
        } else {
            self.by_head(simd, head, chunk, products);
        }
        if let Some(u) = head.bonus() {
            let (q, k) = (head.q(chunk), head.k(chunk));
            for t in 0..chunk.len() {
                let own: f32 = (0..self.k_size).map(|i| q.row(t)[i] * u[i] * k.row(t)[i]).sum();
                self.scores[t * CHUNK + t] = head.args.scale * self.write[t] * own;
            }
        }
    }

    #[inline(always)]
    fn by_head<S: Simd>(&mut self, simd: S, head: &Head<'_>, chunk: Chunk, products: &[f32]) {
        let (n, after_read) = (chunk.len(), head.args.bonus.is_some());
        let g = self.head_gates(head, chunk);
        // Row after row: what earlier positions have left at t.
        let mut left = [1.0; CHUNK];
        for t in 0..n {
            let by = match after_read {
                true => {
                    if t > 0 {
                        g[t - 1]
                    } else {
                        1.0
                    }
                }
                false => g[t],
            };
            // A position is not decayed where it is written.
            let decayed = if after_read { t.saturating_sub(1) } else { t };
            for left in &mut left[..decayed] {
                *left *= by;
            }
            let row = t * CHUNK..t * CHUNK + t + 1;
            let (mask, scores) = (&mut self.mask[row.clone()], &mut self.scores[row.clone()]);
            let products = &products[row];
            for s in 0..=t {
                mask[s] = left[s];
                scores[s] = products[s] * left[s] * self.write[s];
            }
        }
        let (q, k, mut decay) = (head.q(chunk), head.k(chunk), head.args.scale);
        for (t, g) in g[..n].iter().enumerate() {
            let read = if after_read { decay } else { decay * g };
            decay *= g;
            let out = &mut self.q[t * self.k_size..][..self.k_size];
            scale(simd, read, q.row(t), out);
        }
        let mut decay = 1.0;
        for s in (0..n).rev() {
            let weight = decay * self.write[s];
            let out = &mut self.k[s * self.k_size..][..self.k_size];
            scale(simd, weight, k.row(s), out);
            decay *= g[s];
        }
        self.total.fill(decay);
    }

    /// g of the positions of a chunk, with a decay of the head.
    fn head_gates(&self, head: &Head<'_>, chunk: Chunk) -> [f32; CHUNK] {
        let mut g = [1.0; CHUNK];
        match head.args.decay {
            Decay::Head(x) => g.fill(x[head.h].exp()),
            Decay::HeadVarying(x) => {
                g.iter_mut().zip(chunk.from..chunk.to).for_each(|(g, t)| *g = x.row(head.row(t))[head.h].exp());
            }
            _ => {}
        }
        g
    }

    /// Makes [`gate`](Self::gate) valid with a decay of the head.
    pub(super) fn spread(&mut self, head: &Head<'_>, chunk: Chunk) {
        if !by_key(&head.args) {
            let g = self.head_gates(head, chunk);
            self.gates.chunks_exact_mut(self.k_size).zip(g).for_each(|(gates, g)| gates.fill(g));
        }
    }

    /// Keys are decayed position after position; at the end of the chunk they are k'.
    #[inline(always)]
    fn by_key<S: Simd>(&mut self, simd: S, head: &Head<'_>, chunk: Chunk, mut dq: Option<(&[f32], &mut [f32])>) {
        let (size, after_read, factor) = (self.k_size, head.args.bonus.is_some(), head.args.scale);
        let (q, k) = (head.q(chunk), head.k(chunk));
        self.total.fill(1.0);
        for t in 0..chunk.len() {
            let gate = &mut self.gates[t * size..][..size];
            match head.args.decay {
                Decay::Key(x) => exp(simd, &x[head.keys()], gate),
                Decay::KeyVarying(x) => exp(simd, &x.row(head.row(chunk.from + t))[head.keys()], gate),
                _ => gate.fill(1.0),
            }
            let gate = &*gate;
            let (earlier, mine) = self.k.split_at_mut(t * size);
            for (s, key) in earlier.chunks_exact_mut(size).enumerate() {
                if !after_read {
                    multiply(simd, key, gate);
                }
                self.scores[t * CHUNK + s] = factor * dot(simd, q.row(t), key);
                if let Some((dscores, dq)) = &mut dq {
                    add(simd, &mut dq[t * size..][..size], factor * dscores[t * CHUNK + s], key);
                }
                if after_read {
                    multiply(simd, key, gate);
                }
            }
            let mine = &mut mine[..size];
            scale(simd, self.write[t], k.row(t), mine);
            if !after_read {
                self.scores[t * CHUNK + t] = factor * dot(simd, q.row(t), mine);
                if let Some((dscores, dq)) = &mut dq {
                    add(simd, &mut dq[t * size..][..size], factor * dscores[t * CHUNK + t], mine);
                }
                multiply(simd, &mut self.total, gate);
            }
            let read = &mut self.q[t * size..][..size];
            scale(simd, factor, q.row(t), read);
            multiply(simd, read, &self.total);
            if after_read {
                multiply(simd, &mut self.total, gate);
            }
        }
    }
}

#[inline(always)]
fn exp<S: Simd>(simd: S, x: &[f32], out: &mut [f32]) {
    let ((x, x_tail), (out, out_tail)) = (S::as_simd_f32s(x), S::as_mut_simd_f32s(out));
    for (x, out) in x.iter().zip(out) {
        *out = math::exp(simd, *x);
    }
    if !x_tail.is_empty() {
        simd.partial_store_f32s(out_tail, math::exp(simd, simd.partial_load_f32s(x_tail)));
    }
}
