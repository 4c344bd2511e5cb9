//! Which keys of a tile rows see.

use std::ops::Range;

use super::sizes::TILE;
use crate::attention::{Attention, Mask, Stretch};
use crate::reuse::List;

/// Keys of the tile at position `p0` outside of which queries at positions `t` see none, of a document of `n` positions.
pub(super) fn hull(mask: &Mask, t: Range<usize>, n: usize, p0: usize) -> Range<usize> {
    let inside = |position: usize| position.saturating_sub(p0).min(TILE);
    let end = if mask.causal { n.min(t.end) } else { n };
    let Some(reach) = mask.reach() else { return 0..inside(end) };
    let near = (t.start + 1).saturating_sub(reach)..end.min(t.end.saturating_add(reach - 1));
    let sinks = inside(end.min(mask.sinks));
    match inside(near.start)..inside(near.end) {
        near if sinks == 0 => near,
        near if near.is_empty() => 0..sinks,
        near => 0..sinks.max(near.end),
    }
}

/// Whether queries at positions `t` see all keys of the tile.
pub(super) fn all(mask: &Mask, t: Range<usize>, n: usize, p0: usize) -> bool {
    let past = p0 + TILE;
    if past > n || mask.causal && past > t.start + 1 {
        return false;
    }
    let near = t.end <= p0 + mask.window && (mask.causal || past <= t.start + mask.window);
    mask.window == 0 || past <= mask.sinks || mask.dilation == 1 && near
}

/// 1 where the query at position `t` sees the key, else 0.
pub(super) fn mark(mask: &Mask, t: usize, n: usize, p0: usize, marks: &mut [f32; TILE]) {
    marks.fill(0.0);
    let past = n.min(p0 + TILE).min(if mask.causal { t + 1 } else { usize::MAX });
    let Some(past) = past.checked_sub(p0).filter(|&past| past > 0) else { return };
    let marks = &mut marks[..past];
    if mask.window == 0 || mask.globals.contains(&t) {
        return marks.fill(1.0);
    }
    marks[..mask.sinks.saturating_sub(p0).min(past)].fill(1.0);
    for at in mask.globals.iter().filter_map(|at| at.checked_sub(p0)).filter(|&at| at < past) {
        marks[at] = 1.0;
    }
    let reach = (mask.window - 1).saturating_mul(mask.dilation);
    every(mask.dilation, t, t.saturating_sub(reach)..t.saturating_add(reach).saturating_add(1), p0, marks);
    if mask.strided {
        every(mask.window, t, 0..usize::MAX, p0, marks);
    }
}

/// Marks the positions of a range whose distance from `t` is a multiple of `step`.
fn every(step: usize, t: usize, range: Range<usize>, p0: usize, marks: &mut [f32]) {
    let (from, to) = (range.start.max(p0), range.end.min(p0 + marks.len()));
    if from >= to {
        return;
    }
    // The first of them with the remainder of t.
    let first = from + (t % step + step - from % step) % step;
    if first < to {
        marks[first - p0..to - p0].iter_mut().step_by(step).for_each(|mark| *mark = 1.0);
    }
}

/// The tiles that queries see, in order.
pub(super) fn tiles(attention: &Attention, stretch: &Stretch, queries: Range<usize>) -> List<usize> {
    let n = stretch.end();
    if queries.is_empty() {
        return List::new();
    }
    let (first, last) = (stretch.time(queries.start), stretch.time(queries.end - 1));
    let there = |k: &usize| k * TILE < stretch.sinks || (k + 1) * TILE > stretch.sinks + stretch.gap;
    let seen = |k: &usize| !hull(&attention.mask, first..last + 1, n, k * TILE).is_empty();
    (0..n.div_ceil(TILE)).filter(there).filter(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_what_is_visible() {
        let masks = |causal: bool| {
            let window = |window: usize| Mask { window, causal, ..Mask::default() };
            let beside = Mask { sinks: 200, globals: [3, 140, 300].into(), ..window(7) };
            [
                window(0),
                window(1),
                window(40),
                window(300),
                Mask { dilation: 3, ..window(50) },
                Mask { dilation: 300, ..window(2) },
                Mask { strided: true, ..window(11) },
                Mask { sinks: 4, ..window(130) },
                Mask { sinks: 130, dilation: 2, ..window(9) },
                Mask { strided: true, dilation: 2, ..beside.clone() },
                beside,
            ]
        };
        let n = 390;
        for mask in masks(true).into_iter().chain(masks(false)) {
            let visible = |t: usize, s: usize| s < n && mask.visible(t, s);
            for p0 in (0..n).step_by(TILE) {
                for t in 0..n {
                    let mut marks = [f32::NAN; TILE];
                    mark(&mask, t, n, p0, &mut marks);
                    let want: Vec<f32> = (p0..p0 + TILE).map(|s| f32::from(u8::from(visible(t, s)))).collect();
                    assert_eq!(marks[..], want, "{mask:?}, {t} sees of {p0}");
                    for rows in [1, 6, 96] {
                        let times = t..(t + rows).min(n);
                        let hull = hull(&mask, times.clone(), n, p0);
                        for t in times.clone() {
                            let outside = (0..TILE).filter(|s| !hull.contains(s)).any(|s| visible(t, p0 + s));
                            assert!(!outside, "{mask:?}, {times:?} sees outside {hull:?} of {p0}");
                        }
                        let whole = times.clone().all(|t| (p0..p0 + TILE).all(|s| visible(t, s)));
                        assert!(whole || !all(&mask, times.clone(), n, p0), "{mask:?}, {times:?} sees less of {p0}");
                    }
                }
            }
        }
    }
}
