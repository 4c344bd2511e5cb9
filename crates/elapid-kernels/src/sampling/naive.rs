//! The definition, by sorting everything.

use super::{Params, Past};
use crate::Float;

/// Each id that may be chosen with its probability, best first.
pub fn distribution<T: Float>(params: &Params, logits: &[T], past: Past<'_>) -> Vec<(u32, T)> {
    let of = |x: f32| T::of(f64::from(x));
    let mut kept: Vec<(u32, T)> = (0..).zip(logits.iter().copied()).collect();
    for (id, z) in &mut kept {
        if past.recent.contains(id) {
            let penalty = of(params.repetition_penalty);
            *z = if *z > T::zero() { *z / penalty } else { *z * penalty };
        }
        let count = past.counts.get(*id as usize).copied().unwrap_or(0);
        if count > 0 {
            *z -= of(params.presence_penalty) + of(params.frequency_penalty) * T::of(f64::from(count));
        }
    }
    kept.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0)));
    if params.temperature == 0.0 {
        kept.truncate(1);
    }
    if params.top_k > 0 {
        kept.truncate(params.top_k);
    }
    let temperature = if params.temperature == 0.0 { T::one() } else { of(params.temperature) };
    let best = kept.first().map_or(T::zero(), |k| k.1);
    for (_, z) in &mut kept {
        *z = ((*z - best) / temperature).exp();
    }
    if params.top_p < 1.0 {
        let mass = of(params.top_p) * kept.iter().map(|k| k.1).sum::<T>();
        let mut before = T::zero();
        kept.retain(|k| {
            let keep = before < mass;
            before += k.1;
            keep
        });
    }
    kept.retain(|k| k.1 >= of(params.min_p));
    let mass = kept.iter().map(|k| k.1).sum::<T>();
    kept.iter_mut().for_each(|k| k.1 /= mass);
    kept
}
