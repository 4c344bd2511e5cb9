//! As naive, but for sorting: top-k selects before it sorts, top-p sorts a growing head until it has the mass, and
//! without either the ids stay in their order.

use std::cmp::Ordering;

use super::{Params, Past, Scratch};

/// Larger logits first, then smaller ids.
fn order(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

pub(super) fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &z) in logits.iter().enumerate() {
        if z > logits[best] {
            best = i;
        }
    }
    best as u32
}

pub(super) fn sample(params: &Params, logits: &[f32], past: Past<'_>, uniform: f64, scratch: &mut Scratch) -> u32 {
    let Scratch { logits: z, kept, recent: seen } = scratch;
    z.clear();
    z.extend_from_slice(logits);
    if params.repetition_penalty != 1.0 {
        seen.clear();
        seen.extend_from_slice(past.recent);
        seen.sort_unstable();
        seen.dedup();
        for &id in seen.iter() {
            let z = &mut z[id as usize];
            let penalised = if *z > 0.0 { *z / params.repetition_penalty } else { *z * params.repetition_penalty };
            *z = penalised.clamp(f32::MIN, f32::MAX);
        }
    }
    if params.counts() {
        for (z, &count) in z.iter_mut().zip(past.counts).filter(|(_, count)| **count > 0) {
            // Rounded as on a GPU: no fused multiply-add.
            let penalty = params.frequency_penalty * f32::from(count) + params.presence_penalty;
            *z = (*z - penalty).clamp(f32::MIN, f32::MAX);
        }
    }
    let best = greedy(z);
    if params.temperature == 0.0 || params.top_k == 1 {
        return best;
    }
    kept.clear();
    // -0 and 0 are equal logits, but not to `total_cmp`.
    kept.extend(z.iter().zip(0..).map(|(&z, id)| (z + 0.0, id)));
    if params.top_k > 0 && params.top_k < kept.len() {
        kept.select_nth_unstable_by(params.top_k - 1, order);
        kept.truncate(params.top_k);
        kept.sort_unstable_by(order);
    }
    let top = z[best as usize];
    if params.min_p > 0.0 && params.top_p == 1.0 {
        let least = f64::from(params.min_p);
        kept.retain(|&(z, _)| weight(z, top, params.temperature) >= least);
    } else if params.top_p < 1.0 {
        nucleus(kept, top, params);
    }
    choose(kept, top, params.temperature, uniform)
}

/// The weight of a token in units of the best one's.
fn weight(z: f32, top: f32, temperature: f32) -> f64 {
    ((f64::from(z) - f64::from(top)) / f64::from(temperature)).exp()
}

/// Keeps the smallest head that has `top_p` of the mass, best first, then what `min_p` leaves of it.
fn nucleus(kept: &mut Vec<(f32, u32)>, top: f32, params: &Params) {
    let weight = |k: &(f32, u32)| weight(k.0, top, params.temperature);
    let mass = f64::from(params.top_p) * kept.iter().map(weight).sum::<f64>();
    let (mut sorted, mut before) = (0, 0.0);
    let mut head = 256;
    loop {
        let to = head.min(kept.len());
        if to < kept.len() {
            kept[sorted..].select_nth_unstable_by(to - sorted - 1, order);
        }
        kept[sorted..to].sort_unstable_by(order);
        for at in sorted..to {
            if before >= mass || weight(&kept[at]) < f64::from(params.min_p) {
                return kept.truncate(at);
            }
            before += weight(&kept[at]);
        }
        if to == kept.len() {
            return;
        }
        sorted = to;
        head *= 8;
    }
}

/// The token that a share `uniform` of the mass falls on, in the order they are in.
fn choose(kept: &[(f32, u32)], top: f32, temperature: f32, uniform: f64) -> u32 {
    let mass: f64 = kept.iter().map(|k| weight(k.0, top, temperature)).sum();
    let mut left = uniform * mass;
    let mut last = kept[0].1;
    for &(z, id) in kept {
        let w = weight(z, top, temperature);
        if w > 0.0 {
            last = id;
            if left < w {
                return id;
            }
            left -= w;
        }
    }
    last
}
