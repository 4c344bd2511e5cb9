//! For each block of rows: logits by a matrix product, one pass per row that turns them into gradients in place, two matrix
//! products. The block's logits are the only temporary: about 4 MiB or 128 rows, whichever is more.
//!
//! Departures from naive: exp is a polynomial; sums of a row run in vectors, in an order that depends on `v` only.

use pulp::{Simd, WithSimd};

use super::{Args, Grads};
use crate::packed::{self, Packed};
use crate::parallel::{self, Each};
use crate::{Isa, Rows, RowsMut, linear, math};

/// Rows per block for a vocabulary of `v`.
fn block(m: usize, v: usize) -> usize {
    ((1 << 20) / v.max(1)).max(128).min(m)
}

pub(super) fn forward(isa: Isa, args: &Args<Rows<'_>>, nll: &mut [f32], grads: Option<Grads<RowsMut<'_>>>) {
    let Args { h, w, targets, smoothing, softcap } = *args;
    let (m, v) = (h.rows(), w.rows());
    let block = block(m, v);
    let mut logits = vec![0.0; block * v];
    let (mut rest, mut dw, scale) = match grads {
        Some(Grads { dh, mut dw, scale }) => {
            dw.fill(0.0);
            (Some(dh), Some(dw), Some(scale / count(targets).max(1) as f32))
        }
        None => (None, None, None),
    };
    for from in (0..m).step_by(block.max(1)) {
        let rows = block.min(m - from);
        let (h, targets, nll) = (h.slice(from, rows), &targets[from..][..rows], &mut nll[from..][..rows]);
        let logits = &mut logits[..rows * v];
        let dh = rest.take().map(|all| {
            let (dh, below) = all.split_rows(rows);
            rest = Some(below);
            dh
        });
        if targets.iter().all(|&target| target < 0) {
            nll.fill(0.0);
            dh.into_iter().for_each(|mut dh| dh.fill(0.0));
            continue;
        }
        // A slice cannot count rows without columns, but then there is no row to keep, as v is above every target.
        match scale {
            Some(_) => linear::cpu::forward(h, w, None, RowsMut::new(logits, v)),
            // Without gradients, a row's loss has the same bits whatever rows are beside it.
            None => linear::invariant::forward(isa, h, w, None, RowsMut::new(logits, v)),
        }
        losses(isa, (logits, v), (targets, smoothing, softcap), nll, scale);
        if let (Some(dh), Some(dw)) = (dh, &mut dw) {
            let dlogits = Rows::new(logits, v);
            linear::cpu::backward_input(dlogits, w, dh, false);
            linear::cpu::backward_weight(dlogits, h, dw.reborrow());
        }
    }
}

/// [`forward`] without gradients, with a packed W.
pub(super) fn forward_packed(
    isa: Isa,
    h: Rows<'_>,
    w: &Packed,
    (targets, smoothing, softcap): (&[i32], f32, f32),
    nll: &mut [f32],
) {
    let (m, v) = (h.rows(), w.shape().0);
    let block = block(m, v);
    let mut logits = vec![0.0; block * v];
    for from in (0..m).step_by(block.max(1)) {
        let rows = block.min(m - from);
        let (targets, nll) = (&targets[from..][..rows], &mut nll[from..][..rows]);
        if targets.iter().all(|&target| target < 0) {
            nll.fill(0.0);
            continue;
        }
        let logits = &mut logits[..rows * v];
        packed::multiply(isa, h.slice(from, rows), w, None, RowsMut::new(logits, v));
        losses(isa, (logits, v), (targets, smoothing, softcap), nll, None);
    }
}

/// The loss of each row of logits `[rows v]`, and with a `scale` its gradient in place of the logits.
fn losses(
    isa: Isa,
    (logits, v): (&mut [f32], usize),
    (targets, smoothing, softcap): (&[i32], f32, f32),
    nll: &mut [f32],
    scale: Option<f32>,
) {
    let rows = targets.len();
    let grain = parallel::grain(rows, 4 * v, 1 << 15, 1);
    parallel::split(rows, grain, (Each(logits, v), nll), &|from, _, (Each(logits, _), nll)| {
        isa.run(Softmax { logits, v, targets: &targets[from..][..nll.len()], smoothing, softcap, nll, scale });
    });
}

fn count(targets: &[i32]) -> usize {
    targets.iter().filter(|&&target| target >= 0).count()
}

/// The mean over the targets that count.
pub(super) fn mean(nll: &[f32], targets: &[i32]) -> f32 {
    let sum = nll.iter().map(|&x| f64::from(x)).sum::<f64>();
    (sum / count(targets).max(1) as f64) as f32
}

/// The loss of each row, and its gradient in place of the logits.
struct Softmax<'a> {
    logits: &'a mut [f32],
    v: usize,
    targets: &'a [i32],
    smoothing: f32,
    softcap: f32,
    nll: &'a mut [f32],
    scale: Option<f32>,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { logits, v, targets, smoothing, softcap, nll, scale } = self;
        // The derivative of the soft cap at each logit of a row.
        let mut slopes = vec![0.0; if softcap > 0.0 { v } else { 0 }];
        for ((z, &target), nll) in logits.chunks_exact_mut(v).zip(targets).zip(nll) {
            let Ok(target) = usize::try_from(target) else {
                *nll = 0.0;
                z.fill(0.0);
                continue;
            };
            for (z, slope) in z.iter_mut().zip(&mut slopes) {
                let t = (*z / softcap).tanh();
                (*z, *slope) = (softcap * t, 1.0 - t * t);
            }
            let picked = z[target];
            let top = math::largest(simd, z);
            // The target's logit minus the mean of the logits.
            let lead = if smoothing > 0.0 { picked - math::sum(simd, z) / v as f32 } else { 0.0 };
            // The target's own exponential is left out of the sum: if the prediction is nearly certain, loss and gradient
            // are the small remainder, which a sum near 1 would round away.
            z[target] = f32::NEG_INFINITY;
            let all = exponentials(simd, z, top);
            let rest = all - z[target];
            let others = if rest < 0.0 { 0.0 } else { rest }; // NaN stays NaN
            let sum = others + (picked - top).exp();
            *nll = if picked == top { others.ln_1p() } else { (top - picked) + sum.ln() };
            *nll += smoothing * lead;
            if let Some(scale) = scale {
                let (share, shared) = (scale / sum, scale * smoothing / v as f32);
                z.iter_mut().for_each(|z| *z = *z * share - shared);
                z[target] = scale * smoothing - shared - share * others;
                z.iter_mut().zip(&slopes).for_each(|(z, slope)| *z *= slope);
            }
        }
    }
}

/// Replaces z by exp(z - top) and returns the sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, z: &mut [f32], top: f32) -> f32 {
    let tops = simd.splat_f32s(top);
    let (vectors, tail) = S::as_mut_simd_f32s(z);
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (j, z) in vectors.iter_mut().enumerate() {
        *z = math::exp(simd, simd.sub_f32s(*z, tops));
        sums[j % 4] = simd.add_f32s(sums[j % 4], *z);
    }
    let mut sum = math::total(simd, sums);
    if !tail.is_empty() {
        let e = math::exp(simd, simd.sub_f32s(simd.partial_load_f32s(tail), tops));
        simd.partial_store_f32s(tail, e);
        sum += tail.iter().sum::<f32>();
    }
    sum
}
