//! The backward pass; `docs/math/linear_attention.md` derives it.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::chunk::{Decayed, by_key, products};
use super::forward::{pad, strip};
use super::parts::{CHUNK, Chunk, Head, Saved, TOGETHER, chunks, pieces, states};
use super::product::{self, Factor, add, dot, multiply, product, scale};
use crate::linear_attention::{Args, Decay, Dims, Grads, Outputs};
use crate::{Isa, Rows, RowsMut};

// Long: cuts every output to the parts of heads.
pub(in crate::linear_attention) fn backward(
    isa: Isa,
    dims: Dims,
    args: &Args<Rows<'_>>,
    saved: &Saved,
    outputs: &Outputs<Rows<'_>>,
    grads: Grads<RowsMut<'_>>,
) {
    let Dims { b, l, groups, heads, k, v } = dims;
    let state = k * dims.columns(args.normaliser.is_some());
    let Grads { dq, dk, dv, ddecay, ddecay_constant, dwrite, dbonus, dskip, dinitial } = grads;
    // Each head's share of what heads of a group add up.
    let shares = if heads > groups { b * l * heads * k } else { 0 };
    let (mut q_shares, mut k_shares) = (vec![0.0; shares], vec![0.0; shares]);
    let (mut dq, mut dk) = (dq, dk);
    let (dqs, dks) = if heads > groups {
        (
            pieces(RowsMut::new(&mut q_shares, heads * k), dims, heads, k),
            pieces(RowsMut::new(&mut k_shares, heads * k), dims, heads, k),
        )
    } else {
        (pieces(dq.reborrow(), dims, heads, k), pieces(dk.reborrow(), dims, heads, k))
    };
    let ddecays = some_pieces(ddecay, dims, if by_key(args) { k } else { 1 });
    let dwrites = some_pieces(dwrite, dims, 1);
    let mut dinitials: Vec<Option<&mut [f32]>> = match dinitial {
        Some(dinitial) => dinitial.chunks_exact_mut(state).map(Some).collect(),
        None => (0..b * heads).map(|_| None).collect(),
    };
    dinitials.resize_with(b * heads, || None);
    let counts = states(dims, args);
    let mut first = 0;
    let mut tasks = Vec::with_capacity(b * heads);
    let written = dqs.into_iter().zip(dks).zip(pieces(dv, dims, heads, v)).zip(ddecays).zip(dwrites).zip(dinitials);
    for (i, (((((dq, dk), dv), ddecay), dwrite), dinitial)) in written.enumerate() {
        let count = counts[i / heads] * state;
        let kept = &saved.states[first..first + count];
        first += count;
        let divisors = if args.normaliser.is_some() { &saved.divisors[i * l..][..l] } else { &[] };
        let head = Head { dims, args: *args, b: i / heads, h: i % heads };
        let constant = ddecay_constant.is_some();
        let written = Written { dq, dk, dv, ddecay, dwrite, dinitial };
        tasks.push(Backward { head, outputs: *outputs, kept, divisors, constant, written });
    }
    let sums: Vec<Sums> = tasks.into_par_iter().map(|task| isa.run(task)).collect();
    if heads > groups {
        join(dims, &q_shares, dq);
        join(dims, &k_shares, dk);
    }
    let per_head = |to: Option<&mut [f32]>, of: &dyn Fn(&Sums) -> &[f32]| {
        let Some(to) = to else { return };
        for (i, sums) in sums.iter().enumerate() {
            let from = of(sums);
            let to = &mut to[i % heads * from.len()..][..from.len()];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    };
    per_head(ddecay_constant, &|sums| &sums.ddecay);
    per_head(dbonus, &|sums| &sums.dbonus);
    per_head(dskip, &|sums| &sums.dskip);
}

fn some_pieces(m: Option<RowsMut<'_>>, dims: Dims, width: usize) -> Vec<Option<RowsMut<'_>>> {
    match m {
        Some(m) => pieces(m, dims, dims.heads, width).into_iter().map(Some).collect(),
        None => (0..dims.b * dims.heads).map(|_| None).collect(),
    }
}

/// Adds the heads of each group up.
fn join(dims: Dims, shares: &[f32], to: RowsMut<'_>) {
    let (k, each) = (dims.k, dims.heads / dims.groups);
    let grain = crate::parallel::grain(to.rows(), dims.heads * k, 1 << 15, 1);
    crate::parallel::split(to.rows(), grain, to, &|from, count, mut to: RowsMut<'_>| {
        for r in 0..count {
            let shares = &shares[(from + r) * dims.heads * k..][..dims.heads * k];
            for (to, group) in to.row(r).chunks_exact_mut(k).zip(shares.chunks_exact(each * k)) {
                to.fill(0.0);
                for head in group.chunks_exact(k) {
                    to.iter_mut().zip(head).for_each(|(to, head)| *to += head);
                }
            }
        }
    });
}

/// What one head of one row writes.
struct Written<'a> {
    dq: RowsMut<'a>,
    dk: RowsMut<'a>,
    dv: RowsMut<'a>,
    ddecay: Option<RowsMut<'a>>,
    dwrite: Option<RowsMut<'a>>,
    dinitial: Option<&'a mut [f32]>,
}

/// What it adds to, summed over its positions.
struct Sums {
    ddecay: Vec<f32>,
    dbonus: Vec<f32>,
    dskip: Vec<f32>,
}

/// One head of one row.
struct Backward<'a, 'b, 's, 'o> {
    head: Head<'a>,
    outputs: Outputs<Rows<'b>>,
    kept: &'s [f32],
    divisors: &'s [f32],
    /// Whether the gradient of a constant decay is wanted.
    constant: bool,
    written: Written<'o>,
}

/// Arrays of a chunk, with rows of the state's width or of a key.
struct Scratch {
    width: usize,
    decayed: Decayed,
    pairs: Vec<f32>,
    v: Vec<f32>,
    /// The gradient of what is read, with the factor of products in it.
    dread: Vec<f32>,
    dv: Vec<f32>,
    dq: Vec<f32>,
    /// Gradient of w k.
    dk: Vec<f32>,
    /// `[CHUNK CHUNK]`: gradient of the scores.
    dscores: Vec<f32>,
    /// `[k]`: a running product of decays; the gradient of a logarithm of g.
    decay: Vec<f32>,
    ddecay: Vec<f32>,
    /// `[CHUNK k]`: later queries, decayed to the position that they see.
    queries: Vec<f32>,
}

impl Scratch {
    fn new(k: usize, width: usize) -> Self {
        let (wide, keys, square) = (|| vec![0.0; CHUNK * width], || vec![0.0; CHUNK * k], || vec![0.0; CHUNK * CHUNK]);
        Self {
            width,
            decayed: Decayed::new(k),
            pairs: square(),
            v: wide(),
            dread: wide(),
            dv: wide(),
            dq: keys(),
            dk: keys(),
            dscores: square(),
            decay: vec![0.0; k],
            ddecay: vec![0.0; k],
            queries: keys(),
        }
    }
}

impl WithSimd for Backward<'_, '_, '_, '_> {
    type Output = Sums;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) -> Sums {
        let Head { dims, args, b, h } = self.head;
        let (k, columns) = (dims.k, dims.columns(args.normaliser.is_some()));
        let width = product::stride::<S>(columns);
        let mut scratch = Scratch::new(k, width);
        let (mut states, mut ds) = (vec![0.0; TOGETHER * k * width], vec![0.0; k * width]);
        if let Some(dlast) = self.outputs.dlast {
            pad(&dlast[(b * dims.heads + h) * k * columns..][..k * columns], columns, width, &mut ds);
        }
        let decays = match args.decay {
            Decay::Head(_) => 1,
            Decay::Key(_) => k,
            _ => 0,
        };
        let skips = args.skip.map_or(0, |skip| skip.len() / dims.heads);
        let bonuses = args.bonus.map_or(0, |_| k);
        let mut sums = Sums { ddecay: vec![0.0; decays], dbonus: vec![0.0; bonuses], dskip: vec![0.0; skips] };
        let all = chunks(args.segments, b, dims.l);
        for (i, together) in all.chunks(TOGETHER).enumerate().rev() {
            pad(&self.kept[i * k * columns..][..k * columns], columns, width, &mut states);
            for (j, &chunk) in together.iter().enumerate() {
                let (before, after) = states[j * k * width..].split_at_mut(k * width);
                if chunk.fresh {
                    before.fill(0.0);
                }
                if j + 1 < together.len() {
                    let (head, n) = (self.head, chunk.len());
                    scratch.fill(simd, &head, chunk, None);
                    after[..k * width].copy_from_slice(before);
                    let Scratch { decayed, v, .. } = &scratch;
                    product::write(simd, &decayed.total, decayed.k(n), v, columns, &mut after[..k * width]);
                }
            }
            for (&chunk, state) in together.iter().zip(states.chunks_exact(k * width)).rev() {
                self.chunk(simd, chunk, state, &mut ds, &mut scratch, &mut sums);
            }
        }
        let Written { dq, dk, dv, ddecay, dwrite, dinitial } = self.written;
        for mut m in [dq, dk, dv].into_iter().chain(ddecay).chain(dwrite) {
            (args.segments.len(b, dims.l)..dims.l).for_each(|t| m.row(t).fill(0.0));
        }
        if let Some(dinitial) = dinitial {
            strip(&ds, width, columns, dinitial);
        }
        sums
    }
}

impl Scratch {
    #[inline(always)]
    fn fill<S: Simd>(&mut self, simd: S, head: &Head<'_>, chunk: Chunk, dq: Option<(&[f32], &mut [f32])>) {
        if !by_key(&head.args) {
            products(simd, head, chunk, &mut self.pairs);
        }
        self.decayed.fill(simd, head, chunk, &self.pairs, dq);
        head.values_to(chunk, self.width, &mut self.v);
    }
}

impl Backward<'_, '_, '_, '_> {
    /// `state` is the one before the chunk; `ds` becomes the gradient of it.
    // Long: the sums of the derivation, one after another.
    #[inline(always)]
    fn chunk<S: Simd>(
        &mut self,
        simd: S,
        chunk: Chunk,
        state: &[f32],
        ds: &mut [f32],
        scratch: &mut Scratch,
        sums: &mut Sums,
    ) {
        let head = self.head;
        let Head { dims, args, .. } = head;
        let (k, columns, n, width) = (dims.k, dims.columns(args.normaliser.is_some()), chunk.len(), scratch.width);
        let after_read = args.bonus.is_some();
        self.read_gradients(chunk, scratch, sums);
        head.values_to(chunk, width, &mut scratch.v);
        let of_state = Rows::new(state, width).columns(0, columns);

        // The gradient of the scores, then what the scores and the state pass on.
        let mut dscores = std::mem::take(&mut scratch.dscores);
        {
            let (v, dread) = (
                Rows::new(&scratch.v, width).slice(0, n).columns(0, columns),
                Rows::new(&scratch.dread, width).slice(0, n).columns(0, columns),
            );
            let to = RowsMut::new(&mut dscores, CHUNK).split_rows(n).0.split_columns(n).0;
            product(to, false, Factor::Plain(dread), Factor::Transposed(v));
            let mut dq = std::mem::take(&mut scratch.dq);
            product(RowsMut::new(&mut dq[..n * k], k), false, Factor::Plain(dread), Factor::Transposed(of_state));
            scratch.dq = dq;
            let mut dk = std::mem::take(&mut scratch.dk);
            let of_ds = Rows::new(ds, width).columns(0, columns);
            product(RowsMut::new(&mut dk[..n * k], k), false, Factor::Plain(v), Factor::Transposed(of_ds));
            scratch.dk = dk;
        }
        // Gates are known after `fill`; with a decay by key, what queries see is added there.
        let mut own = vec![0.0; n * k];
        scratch.fill(simd, &head, chunk, Some((&dscores, &mut own)));
        scratch.decayed.spread(&head, chunk);
        {
            let mut dv = std::mem::take(&mut scratch.dv);
            let dread = Rows::new(&scratch.dread, width).slice(0, n).columns(0, columns);
            let to = RowsMut::new(&mut dv, width).split_rows(n).0.split_columns(columns).0;
            product(to, false, Factor::Transposed(scratch.decayed.scores(n)), Factor::Plain(dread));
            let of_ds = Rows::new(ds, width).columns(0, columns);
            let to = RowsMut::new(&mut dv, width).split_rows(n).0.split_columns(columns).0;
            product(to, true, Factor::Plain(scratch.decayed.k(n)), Factor::Plain(of_ds));
            scratch.dv = dv;
        }
        decay_rows(simd, &args, n, k, scratch);
        for (dq, own) in scratch.dq.chunks_exact_mut(k).zip(own.chunks_exact(k)) {
            dq.iter_mut().zip(own).for_each(|(dq, own)| *dq += own);
        }
        if by_key(&args) {
            earlier_keys(simd, &head, chunk, &dscores, scratch);
        } else {
            within(&head, chunk, &mut dscores, scratch);
        }
        scratch.dscores = dscores;

        // The gradient of the state before the chunk.
        for (ds, total) in ds.chunks_exact_mut(width).zip(&scratch.decayed.total) {
            ds.iter_mut().for_each(|ds| *ds *= total);
        }
        let to = RowsMut::new(ds, width).split_columns(columns).0;
        product(
            to,
            true,
            Factor::Transposed(scratch.decayed.q(n)),
            Factor::Plain(Rows::new(&scratch.dread, width).slice(0, n).columns(0, columns)),
        );

        if self.constant || self.written.ddecay.is_some() {
            for (i, ddecay) in scratch.ddecay.iter_mut().enumerate() {
                *ddecay = dot(simd, &state[i * width..][..columns], &ds[i * width..][..columns]);
            }
        }
        for t in 0..n {
            self.position(chunk, t, after_read, scratch, sums);
        }
        if chunk.fresh {
            ds.fill(0.0);
        }
    }

    /// The gradient of what each position reads, and of the skip.
    #[inline(always)]
    fn read_gradients(&mut self, chunk: Chunk, scratch: &mut Scratch, sums: &mut Sums) {
        let head = self.head;
        let v = head.dims.v;
        for (t, dread) in (chunk.from..chunk.to).zip(scratch.dread.chunks_exact_mut(scratch.width)) {
            let row = head.row(t);
            let (dy, y) = (&self.outputs.dy.row(row)[head.values()], &self.outputs.y.row(row)[head.values()]);
            let values = &head.args.v.row(row)[head.values()];
            dread[..v].copy_from_slice(dy);
            if head.args.normaliser.is_some() {
                let by = 1.0 / self.divisors[t];
                dread[..v].iter_mut().for_each(|x| *x *= by);
                let part = |j: usize| dread[j] * (y[j] - head.skip(j) * values[j]);
                dread[v] = -(0..v).map(part).sum::<f32>();
            }
            match sums.dskip.len() {
                0 => {}
                1 => sums.dskip[0] += dy.iter().zip(values).map(|(dy, v)| dy * v).sum::<f32>(),
                _ => sums.dskip.iter_mut().zip(dy).zip(values).for_each(|((sum, dy), v)| *sum += dy * v),
            }
        }
    }

    /// Writes the gradients of one position, and takes its share off the gradient of the decay.
    #[inline(always)]
    fn position(&mut self, chunk: Chunk, t: usize, after_read: bool, scratch: &mut Scratch, sums: &mut Sums) {
        let head = self.head;
        let Head { dims, args, .. } = head;
        let (k, at) = (dims.k, chunk.from + t);
        let (q, key, w) = (head.q(chunk).row(t), head.k(chunk).row(t), scratch.decayed.write[t]);
        let (dq, dk) = (&mut scratch.dq[t * k..][..k], &mut scratch.dk[t * k..][..k]);
        if self.constant || self.written.ddecay.is_some() {
            let ddecay = &mut scratch.ddecay;
            let take_read = |ddecay: &mut [f32]| (0..k).for_each(|i| ddecay[i] -= q[i] * dq[i]);
            if after_read {
                take_read(ddecay);
            }
            match sums.ddecay.len() {
                0 => {}
                1 if !by_key(&args) => sums.ddecay[0] += ddecay.iter().sum::<f32>(),
                _ => sums.ddecay.iter_mut().zip(&*ddecay).for_each(|(sum, ddecay)| *sum += ddecay),
            }
            if let Some(out) = &mut self.written.ddecay {
                match by_key(&args) {
                    true => out.row(at).copy_from_slice(ddecay),
                    false => out.row(at)[0] = ddecay.iter().sum(),
                }
            }
            if !after_read {
                take_read(ddecay);
            }
            (0..k).for_each(|i| ddecay[i] += w * key[i] * dk[i]);
        }
        if let Some(u) = head.bonus() {
            let own = args.scale * scratch.dscores[t * CHUNK + t];
            for i in 0..k {
                dq[i] += own * w * u[i] * key[i];
                dk[i] += own * u[i] * q[i];
                sums.dbonus[i] += own * w * q[i] * key[i];
            }
        }
        if let Some(out) = &mut self.written.dwrite {
            out.row(at)[0] = key.iter().zip(&*dk).map(|(key, dk)| key * dk).sum();
        }
        self.written.dq.row(at).copy_from_slice(dq);
        self.written.dk.row(at).iter_mut().zip(&*dk).for_each(|(out, dk)| *out = w * dk);
        let dv = &scratch.dv[t * scratch.width..][..dims.v];
        let dy = &self.outputs.dy.row(head.row(at))[head.values()];
        for (j, out) in self.written.dv.row(at).iter_mut().enumerate() {
            *out = dv[j] + head.skip(j) * dy[j];
        }
    }
}

/// Decays what comes from the state before the chunk (dq) and from the one after it (dk).
#[inline(always)]
fn decay_rows<S: Simd>(simd: S, args: &Args<Rows<'_>>, n: usize, k: usize, scratch: &mut Scratch) {
    let Scratch { decayed, dq, dk, decay, .. } = scratch;
    decay.fill(args.scale);
    for t in 0..n {
        if args.bonus.is_none() {
            multiply(simd, decay, decayed.gate(t));
        }
        multiply(simd, &mut dq[t * k..][..k], decay);
        if args.bonus.is_some() {
            multiply(simd, decay, decayed.gate(t));
        }
    }
    decay.fill(1.0);
    for s in (0..n).rev() {
        multiply(simd, &mut dk[s * k..][..k], decay);
        multiply(simd, decay, decayed.gate(s));
    }
}

/// Adds to dk what later queries of the chunk pass on, with a decay by key: queries are decayed position before position.
#[inline(always)]
fn earlier_keys<S: Simd>(simd: S, head: &Head<'_>, chunk: Chunk, dscores: &[f32], scratch: &mut Scratch) {
    let (n, k, after_read, q) = (chunk.len(), head.dims.k, head.args.bonus.is_some(), head.q(chunk));
    let Scratch { decayed, dk, queries, .. } = scratch;
    for s in (0..n).rev() {
        let mine = &mut queries[s * k..][..k];
        scale(simd, head.args.scale, q.row(s), mine);
        // A query that was read before the decay of its own position sees the position before it as it is.
        let later = s + 1 + usize::from(after_read);
        for t in later..n {
            multiply(simd, &mut queries[t * k..][..k], decayed.gate(s + 1));
        }
        for t in s + usize::from(after_read)..n {
            add(simd, &mut dk[s * k..][..k], dscores[t * CHUNK + s], &queries[t * k..][..k]);
        }
    }
}

/// Adds to dq and dk what positions of the chunk pass on, with a decay of the head.
#[inline(always)]
fn within(head: &Head<'_>, chunk: Chunk, dscores: &mut [f32], scratch: &mut Scratch) {
    let (n, k, after_read) = (chunk.len(), head.dims.k, head.args.bonus.is_some());
    let Scratch { decayed, dq, dk, pairs, .. } = scratch;
    // Of q with k; then with w.
    let mut weighted = vec![0.0; CHUNK * CHUNK];
    for t in 0..n {
        for s in 0..n {
            let at = t * CHUNK + s;
            let seen = s < t || (s == t && !after_read);
            pairs[at] = if seen { head.args.scale * dscores[at] * decayed.mask[at] } else { 0.0 };
            weighted[at] = pairs[at] * decayed.write[s];
        }
    }
    product(RowsMut::new(&mut dq[..n * k], k), true, Factor::Plain(square(&weighted, n)), Factor::Plain(head.k(chunk)));
    product(
        RowsMut::new(&mut dk[..n * k], k),
        true,
        Factor::Transposed(square(pairs, n)),
        Factor::Plain(head.q(chunk)),
    );
}

/// The first n rows and columns.
fn square(x: &[f32], n: usize) -> Rows<'_> {
    Rows::new(x, CHUNK).slice(0, n).columns(0, n)
}
