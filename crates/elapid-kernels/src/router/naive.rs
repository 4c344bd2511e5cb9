//! The equations, position by position. Also what the CPU runs: the work is small beside that of the experts.

use super::args::{Router, SINKHORN_CHANGE, SINKHORN_LEAST, SINKHORN_TURNS};
use crate::float::Float;
use crate::{Rows, RowsMut};

/// Softmax of a row.
fn softmax<T: Float>(logits: &[T]) -> Vec<T> {
    let most = logits.iter().copied().fold(T::neg_infinity(), T::max);
    let mut scores: Vec<T> = logits.iter().map(|&z| (z - most).exp()).collect();
    let sum: T = scores.iter().copied().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}

/// The places of the largest values, the largest first, of equal ones the first.
fn first<T: Float>(values: &[T], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let falling = |&a: &u32, &b: &u32| {
        let (x, y) = (values[a as usize], values[b as usize]);
        y.partial_cmp(&x).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b))
    };
    order.sort_by(falling);
    order.truncate(count);
    order
}

impl Router {
    fn scores<T: Float>(&self, logits: &[T]) -> Vec<T> {
        if self.sigmoid { logits.iter().map(|z| z.sigmoid()).collect() } else { softmax(logits) }
    }

    fn pick<T: Float>(&self, logits: &[T], scores: &[T], correction: Option<&[T]>) -> Vec<u32> {
        let mut choice = if self.correct_logits { logits.to_vec() } else { scores.to_vec() };
        if let Some(correction) = correction {
            choice.iter_mut().zip(correction).for_each(|(choice, &c)| *choice += c);
        }
        if self.top_groups < self.groups {
            let size = scores.len() / self.groups;
            let best = |group: &[T]| -> T {
                first(group, 1 + usize::from(correction.is_some())).iter().map(|&e| group[e as usize]).sum()
            };
            let groups: Vec<T> = choice.chunks(size).map(best).collect();
            let kept = first(&groups, self.top_groups);
            for (g, group) in choice.chunks_mut(size).enumerate() {
                if !kept.contains(&(g as u32)) {
                    group.fill(T::neg_infinity());
                }
            }
        }
        first(&choice, self.top_k)
    }

    /// What the weights of picked scores are multiplied by.
    fn factor<T: Float>(&self, picked: &[T]) -> T {
        let scale = T::of(self.scale.into());
        if self.renormalise { scale / picked.iter().copied().sum::<T>() } else { scale }
    }
}

/// The picks `[m k]`; weights (=).
pub fn forward<T: Float>(
    router: &Router,
    logits: Rows<'_, T>,
    correction: Option<&[T]>,
    mut weights: RowsMut<'_, T>,
) -> Vec<u32> {
    let mut all = Vec::with_capacity(logits.rows() * router.top_k);
    for r in 0..logits.rows() {
        let scores = router.scores(logits.row(r));
        let picked = router.pick(logits.row(r), &scores, correction);
        let of: Vec<T> = picked.iter().map(|&e| scores[e as usize]).collect();
        let factor = router.factor(&of);
        weights.row(r).iter_mut().zip(of).for_each(|(weight, score)| *weight = factor * score);
        all.extend(picked);
    }
    all
}

/// dlogits (=).
pub fn backward<T: Float>(
    router: &Router,
    logits: Rows<'_, T>,
    picked: &[u32],
    dweights: Rows<'_, T>,
    mut dlogits: RowsMut<'_, T>,
) {
    for (r, picked) in picked.chunks(router.top_k).enumerate() {
        let scores = router.scores(logits.row(r));
        let of: Vec<T> = picked.iter().map(|&e| scores[e as usize]).collect();
        let factor = router.factor(&of);
        // If the weights are divided by the sum of scores, each score lowers them all.
        let shared = match router.renormalise {
            true => dweights.row(r).iter().zip(&of).map(|(&d, &p)| d * p).sum::<T>() / of.iter().copied().sum::<T>(),
            false => T::zero(),
        };
        let mut dscores = vec![T::zero(); scores.len()];
        picked.iter().zip(dweights.row(r)).for_each(|(&e, &d)| dscores[e as usize] = factor * (d - shared));
        let mean: T = dscores.iter().zip(&scores).map(|(&d, &p)| d * p).sum();
        for (dz, (&d, &p)) in dlogits.row(r).iter_mut().zip(dscores.iter().zip(&scores)) {
            *dz = if router.sigmoid { d * p * (T::one() - p) } else { p * (d - mean) };
        }
    }
}

/// Row 0 the picks of each expert per position, row 1 its mean probability (=).
pub fn spread<T: Float>(logits: Rows<'_, T>, picked: &[u32], mut spread: RowsMut<'_, T>) {
    let (m, experts) = logits.shape();
    let part = T::of(1.0 / m as f64);
    let mut counts = vec![0_u32; experts];
    picked.iter().filter(|&&e| (e as usize) < experts).for_each(|&e| counts[e as usize] += 1);
    spread.row(0).iter_mut().zip(counts).for_each(|(f, count)| *f = T::of(count.into()) * part);
    spread.row(1).fill(T::zero());
    for r in 0..m {
        spread.row(1).iter_mut().zip(softmax(logits.row(r))).for_each(|(sum, p)| *sum += p * part);
    }
}

/// dlogits (=) from the gradient of the mean probabilities.
pub fn spread_backward<T: Float>(logits: Rows<'_, T>, dp: &[T], mut dlogits: RowsMut<'_, T>) {
    let part = T::of(1.0 / logits.rows() as f64);
    for r in 0..logits.rows() {
        let p = softmax(logits.row(r));
        let mean: T = p.iter().zip(dp).map(|(&p, &d)| p * d).sum();
        dlogits.row(r).iter_mut().zip(p.iter().zip(dp)).for_each(|(dz, (&p, &d))| *dz = p * (d - mean) * part);
    }
}

/// Shapes as in [`super::z_loss`]; returns the mean.
pub fn z_loss<T: Float>(logits: Rows<'_, T>, logs: &mut [T]) -> T {
    for (r, log) in logs.iter_mut().enumerate() {
        let row = logits.row(r);
        let most = row.iter().copied().fold(T::neg_infinity(), T::max);
        *log = most + row.iter().map(|&z| (z - most).exp()).sum::<T>().ln();
    }
    let sum = logs.iter().map(|&log| log * log).sum::<T>();
    if logs.is_empty() { T::zero() } else { sum / T::of(logs.len() as f64) }
}

/// Shapes as in [`super::z_loss_backward`].
pub fn z_loss_backward<T: Float>(logits: Rows<'_, T>, logs: &[T], dmean: T, mut dlogits: RowsMut<'_, T>) {
    for (r, &log) in logs.iter().enumerate() {
        let factor = dmean * T::of(2.0) * log / T::of(logs.len() as f64);
        for (dz, &z) in dlogits.row(r).iter_mut().zip(logits.row(r)) {
            *dz = factor * (z - log).exp();
        }
    }
}

/// correction (=): shapes as in [`super::sinkhorn`].
pub fn sinkhorn<T: Float>(logits: Rows<'_, T>, correction: &mut [T]) {
    let (m, experts) = logits.shape();
    let two = T::of(2.0);
    // c divided by its largest in each row, which changes the row's factor alone.
    let c: Vec<Vec<T>> = (0..m)
        .map(|r| {
            let row = logits.row(r);
            let most = row.iter().copied().fold(T::neg_infinity(), T::max);
            row.iter().map(|&z| (two * (z - most)).exp()).collect()
        })
        .collect();
    correction.fill(T::zero());
    let even = T::of(m as f64 / experts.max(1) as f64);
    for _ in 0..SINKHORN_TURNS {
        let factor: Vec<T> = correction.iter().map(|&x| (two * x).exp()).collect();
        let mut sums = vec![T::of(SINKHORN_LEAST); experts];
        for row in &c {
            let all = row.iter().zip(&factor).map(|(&c, &f)| c * f).sum::<T>() + T::of(SINKHORN_LEAST);
            sums.iter_mut().zip(row).for_each(|(sum, &c)| *sum += c / all);
        }
        let mut change = T::zero();
        for (x, sum) in correction.iter_mut().zip(sums) {
            let next = (even / sum).ln() / two;
            change = change.max((next - *x).abs());
            *x = next;
        }
        if change <= T::of(SINKHORN_CHANGE) {
            break;
        }
    }
}
