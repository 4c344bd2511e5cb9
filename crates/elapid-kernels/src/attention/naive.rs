//! The equations as loops, softmax in two passes.

use super::keys::Keys;
use super::{Args, Attention, Grads};
use crate::{Float, Rows, RowsMut};

fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

/// The columns of a head.
fn head<T>(row: &[T], h: usize, dim: usize) -> &[T] {
    &row[h * dim..(h + 1) * dim]
}

fn head_mut<T>(row: &mut [T], h: usize, dim: usize) -> &mut [T] {
    &mut row[h * dim..(h + 1) * dim]
}

/// softmax of the scores over the keys that are seen, and what a score's gradient is multiplied by for the soft cap; the
/// probability of the head's learned logit.
fn probabilities<T: Float>(
    attention: &Attention,
    h: usize,
    q: &[T],
    k: Keys<'_, T>,
    seen: &[(usize, usize)],
    sink: Option<T>,
) -> (Vec<T>, Vec<T>, T) {
    let (scale, cap) = (T::of(f64::from(attention.scale)), T::of(f64::from(attention.softcap)));
    let slope = match attention.alibi {
        true => T::of(attention.slope(h)),
        false => T::zero(),
    };
    let mut slopes = Vec::new();
    let score = |&(s, distance): &(usize, usize)| {
        let score = scale * dot(q, k.row(s));
        let score = if attention.softcap > 0.0 {
            let tanh = (score / cap).tanh();
            slopes.push(T::one() - tanh * tanh);
            cap * tanh
        } else {
            score
        };
        if attention.alibi { score - slope * T::of(distance as f64) } else { score }
    };
    let mut p: Vec<T> = seen.iter().map(score).collect();
    let most = p.iter().copied().chain(sink).fold(T::neg_infinity(), T::max);
    p.iter_mut().for_each(|p| *p = (*p - most).exp());
    let of_sink = sink.map_or(T::zero(), |sink| (sink - most).exp());
    let sum = p.iter().copied().sum::<T>() + of_sink;
    p.iter_mut().for_each(|p| *p /= sum);
    (p, slopes, of_sink / sum)
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(attention: &Attention, args: &Args<Rows<'_, T>>, mut y: RowsMut<'_, T>) {
    let &Attention { heads, kv_heads, .. } = attention;
    let (dk, dv) = (args.q.cols() / heads, args.v.cols() / kv_heads);
    (0..y.rows()).for_each(|r| y.row(r).fill(T::zero()));
    for stretch in args.stretches {
        for (i, r) in stretch.queries.clone().enumerate() {
            let seen = stretch.seen(&attention.mask, i);
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let sink = args.sink_logits.map(|logits| logits[h]);
                let (keys, values) = Keys::of(args, stretch, kv, (dk, dv));
                let (p, ..) = probabilities(attention, h, head(args.q.row(r), h, dk), keys, &seen, sink);
                let y = head_mut(y.row(r), h, dv);
                for (&(s, _), p) in seen.iter().zip(p) {
                    y.iter_mut().zip(values.row(s)).for_each(|(y, &v)| *y += p * v);
                }
            }
        }
    }
}

/// With p the probabilities and ds = p (dy v - Σ p dy v), times the slope of the soft cap: dq = scale Σ ds k (=), dk += scale ds q, dv += p dy,
/// dsink -= p_sink Σ p dy v. Shapes as in [`super::backward`].
pub fn backward<T: Float>(
    attention: &Attention,
    args: &Args<Rows<'_, T>>,
    dy: Rows<'_, T>,
    grads: Grads<RowsMut<'_, T>>,
) {
    let &Attention { heads, kv_heads, .. } = attention;
    let (dk_cols, dv_cols) = (args.q.cols() / heads, args.v.cols() / kv_heads);
    let scale = T::of(f64::from(attention.scale));
    let Grads { mut dq, mut dk, mut dv, mut dsink_logits } = grads;
    (0..dq.rows()).for_each(|r| dq.row(r).fill(T::zero()));
    for stretch in args.stretches {
        for (i, r) in stretch.queries.clone().enumerate() {
            let seen = stretch.seen(&attention.mask, i);
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let (q, dy) = (head(args.q.row(r), h, dk_cols), head(dy.row(r), h, dv_cols));
                let sink = args.sink_logits.map(|logits| logits[h]);
                let (keys, values) = Keys::of(args, stretch, kv, (dk_cols, dv_cols));
                let (p, slopes, of_sink) = probabilities(attention, h, q, keys, &seen, sink);
                let dp: Vec<T> = seen.iter().map(|&(s, _)| dot(dy, values.row(s))).collect();
                let mean = dot(&p, &dp);
                if let Some(dsinks) = dsink_logits.as_deref_mut() {
                    dsinks[h] -= of_sink * mean;
                }
                let dq = head_mut(dq.row(r), h, dk_cols);
                for (at, ((&(s, _), &p), &dp)) in seen.iter().zip(&p).zip(&dp).enumerate() {
                    let slope = slopes.get(at).copied().unwrap_or(T::one());
                    let ds = scale * slope * p * (dp - mean);
                    dq.iter_mut().zip(keys.row(s)).for_each(|(dq, &k)| *dq += ds * k);
                    let Some(s) = stretch.row(s) else { continue };
                    head_mut(dk.row(s), kv, dk_cols).iter_mut().zip(q).for_each(|(dk, &q)| *dk += ds * q);
                    head_mut(dv.row(s), kv, dv_cols).iter_mut().zip(dy).for_each(|(dv, &dy)| *dv += p * dy);
                }
            }
        }
    }
}
