//! A frame of a chart: its place in pixels, its two axes, and what of a line is inside.

use super::axis::Axis;

/// The width of the slots in which lines that lie on each other take turns, in pixels.
const SLOT: f64 = 14.0;
/// Lines this many pixels apart lie on each other.
const NEAR: f64 = 2.0;

/// A rectangle with axes.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) x: Axis,
    pub(super) y: Axis,
}

/// A line in pixels.
pub(super) type Path = Vec<(f64, f64)>;

impl Frame {
    pub(super) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// The position of a point in pixels, which may be outside. `None` if it cannot be drawn.
    pub(super) fn at(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        let at = (self.left + self.x.place(x) * self.width, self.bottom() - self.y.place(y) * self.height);
        (at.0.is_finite() && at.1.is_finite()).then_some(at)
    }

    /// Whether a place in pixels is inside or on the border.
    pub(super) fn holds(&self, (x, y): (f64, f64)) -> bool {
        (self.left - 0.5..=self.right() + 0.5).contains(&x) && (self.top - 0.5..=self.bottom() + 0.5).contains(&y)
    }

    /// The lines of consecutive points that can be drawn.
    pub(super) fn runs(&self, points: &[(f64, f64)]) -> Vec<Path> {
        let places: Vec<Option<(f64, f64)>> = points.iter().map(|&point| self.at(point)).collect();
        let runs = places.split(Option::is_none).map(|run| run.iter().copied().flatten().collect::<Path>());
        runs.filter(|run| !run.is_empty()).collect()
    }

    /// The parts of a line inside, of those from `from` to `to` in the direction of x.
    pub(super) fn inside(&self, line: &[(f64, f64)], (from, to): (f64, f64)) -> Vec<Path> {
        let (x, y) = ((from.max(self.left), to.min(self.right())), (self.top, self.bottom()));
        let mut parts: Vec<Path> = Vec::new();
        for pair in line.windows(2) {
            let Some((begin, end)) = cut(pair[0], pair[1], x, y) else { continue };
            match parts.last_mut() {
                Some(part) if part.last() == Some(&begin) => part.push(end),
                _ => parts.push(vec![begin, end]),
            }
        }
        parts
    }

    /// For each of some lines, in the order of drawing, from where to where it is drawn. All of it, but where lines lie on each
    /// other the upper ones leave out slots, so that each is seen in one slot of as many.
    pub(super) fn turns(&self, lines: &[Vec<Path>]) -> Vec<Vec<(f64, f64)>> {
        let edges = (self.width / SLOT).ceil() as usize;
        let edge = |k: usize| self.left + k as f64 * SLOT;
        let heights: Vec<Vec<Option<f64>>> =
            lines.iter().map(|runs| (0..=edges).map(|k| height(runs, edge(k))).collect()).collect();
        let near = |a: Option<f64>, b: Option<f64>| a.zip(b).is_some_and(|(a, b)| (a - b).abs() < NEAR);
        let together = |i: usize, j: usize, k: usize| [k, k + 1].iter().all(|&k| near(heights[i][k], heights[j][k]));
        let drawn = |j: usize, k: usize| {
            let below = (0..j).filter(|&i| together(i, j, k)).count();
            let above = (j + 1..lines.len()).filter(|&i| together(i, j, k)).count();
            k % (below + above + 1) >= below
        };
        (0..lines.len())
            .map(|j| {
                let all: Vec<usize> = (0..edges).filter(|&k| drawn(j, k)).collect();
                let mut turns: Vec<(f64, f64)> = all
                    .chunk_by(|a, b| a + 1 == *b)
                    .map(|part| (edge(part[0]), edge(part[part.len() - 1] + 1)))
                    .collect();
                // What is only just outside is cut off by the frame.
                if let Some(first) = turns.first_mut().filter(|turn| turn.0 <= self.left) {
                    first.0 = f64::NEG_INFINITY;
                }
                turns
            })
            .collect()
    }
}

/// The height of a line at an x, if it goes from left to right and is there.
fn height(runs: &[Path], x: f64) -> Option<f64> {
    let run = runs.iter().find(|run| run[0].0 <= x && run[run.len() - 1].0 >= x)?;
    let after = run.partition_point(|place| place.0 < x).min(run.len() - 1);
    let [(ax, ay), (bx, by)] = [run[after.saturating_sub(1)], run[after]];
    let share = if bx > ax { (x - ax) / (bx - ax) } else { 1.0 };
    (0.0..=1.0).contains(&share).then_some(ay + share * (by - ay))
}

/// The part of a straight line inside a rectangle, if there is any.
fn cut(a: (f64, f64), b: (f64, f64), x: (f64, f64), y: (f64, f64)) -> Option<((f64, f64), (f64, f64))> {
    // Shares of the way from a to b.
    let (mut from, mut to) = (0.0_f64, 1.0_f64);
    for (start, end, (low, high)) in [(a.0, b.0, x), (a.1, b.1, y)] {
        let way = end - start;
        if way == 0.0 {
            if !(low..=high).contains(&start) {
                return None;
            }
            continue;
        }
        let (one, other) = ((low - start) / way, (high - start) / way);
        (from, to) = (from.max(one.min(other)), to.min(one.max(other)));
    }
    let at = |share: f64| match share {
        0.0 => a,
        1.0 => b,
        _ => (a.0 + share * (b.0 - a.0), a.1 + share * (b.1 - a.1)),
    };
    (from < to).then(|| (at(from), at(to)))
}

#[cfg(test)]
mod tests {
    use super::super::Scale;
    use super::*;

    /// 100 by 100 pixels for values from 0 to 10.
    fn frame() -> Frame {
        let axis = || Axis::new([0.0, 10.0].into_iter(), Scale::Linear, 0.0, 5).unwrap();
        Frame { left: 0.0, top: 0.0, width: 100.0, height: 100.0, x: axis(), y: axis() }
    }

    const ALL: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

    #[test]
    fn a_line_is_cut_off_at_the_frame() {
        let frame = frame();
        let runs = frame.runs(&[(0.0, 20.0), (2.0, 0.0), (4.0, 5.0), (5.0, f64::NAN), (6.0, 11.0), (8.0, 12.0)]);
        assert_eq!(runs.len(), 2);
        assert_eq!(frame.inside(&runs[0], ALL), [[(10.0, 0.0), (20.0, 100.0), (40.0, 50.0)]]);
        assert_eq!(frame.inside(&runs[1], ALL), [[(0.0, 0.0); 0]; 0], "nothing along the top");
        assert_eq!(frame.inside(&runs[0], (30.0, 35.0)), [[(30.0, 75.0), (35.0, 62.5)]]);
        assert!(frame.holds((0.0, 0.0)) && frame.holds((100.0, 100.0)) && !frame.holds((0.0, -1.0)));
    }

    #[test]
    fn lines_on_each_other_take_turns() {
        let frame = frame();
        let flat = |y: f64, from: f64| frame.runs(&[(from, y), (10.0, y)]);
        let lines = [flat(5.0, 0.0), flat(5.0, 0.0), flat(5.1, 0.0), flat(8.0, 0.0)];
        let turns = frame.turns(&lines);
        let drawn = |j: usize, x: f64| turns[j].iter().any(|&(from, to)| from <= x && x < to);
        // The upmost line in each slot.
        let seen: Vec<usize> = (0..6).map(|k| (0..3).rfind(|&j| drawn(j, SLOT * k as f64 + 1.0)).unwrap()).collect();
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
        assert!((0..100).all(|x| drawn(3, f64::from(x))), "a line by itself is drawn whole");
        let crossing = [frame.runs(&[(0.0, 0.0), (10.0, 10.0)]), frame.runs(&[(0.0, 10.0), (10.0, 0.0)])];
        assert!(frame.turns(&crossing).iter().all(|turns| turns.len() == 1 && turns[0].1 >= 100.0));
    }
}
