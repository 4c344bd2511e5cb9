//! The equations as loops, softmax in two passes.

use std::ops::Range;

use super::{Args, Attention, Grads, Stretch};
use crate::{Float, Rows, RowsMut};

/// The keys that query `i` of a stretch sees, as rows of k.
fn visible(attention: &Attention, stretch: &Stretch, i: usize) -> Range<usize> {
    let last = stretch.offset + i;
    let first = if attention.window == 0 { 0 } else { (last + 1).saturating_sub(attention.window) };
    stretch.keys.start + first..stretch.keys.start + last + 1
}

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

/// softmax(scale q k) over the visible keys.
fn probabilities<T: Float>(scale: T, q: &[T], k: Rows<'_, T>, kv: usize, visible: Range<usize>) -> Vec<T> {
    let mut p: Vec<T> = visible.map(|s| scale * dot(q, head(k.row(s), kv, q.len()))).collect();
    let most = p.iter().copied().fold(T::neg_infinity(), T::max);
    p.iter_mut().for_each(|p| *p = (*p - most).exp());
    let sum = p.iter().copied().sum::<T>();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(attention: &Attention, args: &Args<'_, T>, mut y: RowsMut<'_, T>) {
    let Attention { heads, kv_heads, .. } = *attention;
    let (dk, dv) = (args.q.cols() / heads, args.v.cols() / kv_heads);
    let scale = T::of(f64::from(attention.scale));
    (0..y.rows()).for_each(|r| y.row(r).fill(T::zero()));
    for stretch in args.stretches {
        for (i, r) in stretch.queries.clone().enumerate() {
            for h in 0..heads {
                let (kv, seen) = (h / (heads / kv_heads), visible(attention, stretch, i));
                let p = probabilities(scale, head(args.q.row(r), h, dk), args.k, kv, seen.clone());
                let y = head_mut(y.row(r), h, dv);
                for (s, p) in seen.zip(p) {
                    y.iter_mut().zip(head(args.v.row(s), kv, dv)).for_each(|(y, &v)| *y += p * v);
                }
            }
        }
    }
}

/// With p the probabilities and ds = p (dy v - Σ p dy v): dq = scale Σ ds k, dk += scale ds q, dv += p dy. Shapes as in
/// [`super::backward`].
pub fn backward<T: Float>(attention: &Attention, args: &Args<'_, T>, dy: Rows<'_, T>, grads: Grads<'_, T>) {
    let Attention { heads, kv_heads, .. } = *attention;
    let (dk_cols, dv_cols) = (args.q.cols() / heads, args.v.cols() / kv_heads);
    let scale = T::of(f64::from(attention.scale));
    let Grads { mut dq, mut dk, mut dv } = grads;
    (0..dq.rows()).for_each(|r| dq.row(r).fill(T::zero()));
    for stretch in args.stretches {
        for (i, r) in stretch.queries.clone().enumerate() {
            for h in 0..heads {
                let (kv, seen) = (h / (heads / kv_heads), visible(attention, stretch, i));
                let (q, dy) = (head(args.q.row(r), h, dk_cols), head(dy.row(r), h, dv_cols));
                let p = probabilities(scale, q, args.k, kv, seen.clone());
                let dp: Vec<T> = seen.clone().map(|s| dot(dy, head(args.v.row(s), kv, dv_cols))).collect();
                let mean = dot(&p, &dp);
                let dq = head_mut(dq.row(r), h, dk_cols);
                for ((s, &p), &dp) in seen.zip(&p).zip(&dp) {
                    let ds = scale * p * (dp - mean);
                    dq.iter_mut().zip(head(args.k.row(s), kv, dk_cols)).for_each(|(dq, &k)| *dq += ds * k);
                    head_mut(dk.row(s), kv, dk_cols).iter_mut().zip(q).for_each(|(dk, &q)| *dk += ds * q);
                    head_mut(dv.row(s), kv, dv_cols).iter_mut().zip(dy).for_each(|(dv, &dy)| *dv += p * dy);
                }
            }
        }
    }
}
