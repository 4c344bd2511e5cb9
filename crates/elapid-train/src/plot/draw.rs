//! A chart: its layout, and the drawing of its parts.

use plotters::coord::Shift;
use plotters::prelude::{DrawingArea, DrawingBackend, RGBColor};
use plotters::style::text_anchor::{HPos, VPos};

use super::axis::{Axis, value};
use super::frame::{Frame, Path};
use super::pen::{Failure, GRID, INK, PALE_INK, PAPER, Pen};
use super::{Look, Options, Scale, Series};

/// Colours that colour-blind people can distinguish (Okabe and Ito), without the pale ones.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(120, 94, 200),
    RGBColor(150, 110, 20),
    RGBColor(86, 160, 210),
    RGBColor(90, 90, 90),
];
/// Dashes of lines with the same colour, in pixels, and the space between them.
const DASHES: [(f64, f64); 2] = [(9.0, 5.0), (2.0, 4.0)];

/// Space around the chart, in pixels.
const LEFT: i32 = 92;
const TOP: i32 = 92;
const BOTTOM: i32 = 74;
/// Height of a row of the legend, and width of the line in front of a name.
const ROW: i32 = 24;
const SAMPLE: i32 = 34;
/// Height of a panel, and the space above it.
const PANEL: i32 = 104;
const GAP: i32 = 26;
/// The minimum distance between two texts, one below the other.
const APART: f64 = 20.0;
/// The estimated width of a letter, so that a chart has the same layout in every font.
const LETTER: f64 = 9.0;
/// Room for the values at the right, and for names in a chart of dots.
const VALUES: i32 = 92;

/// A chart that can be drawn.
pub(super) struct Plan<'a> {
    series: &'a [Series],
    options: &'a Options,
    frame: Frame,
    panel: Option<(Frame, &'a str, Series)>,
}

impl<'a> Plan<'a> {
    /// `None` if there is no finite point.
    pub(super) fn new(series: &'a [Series], options: &'a Options) -> Option<Self> {
        let (x, y) = axes(series, options)?;
        let values = options.right.is_some() || series.iter().any(|s| s.last_value);
        let rows = legend(series, options).map(|(_, row, _)| row).max().unwrap_or(0);
        let (left, top) = (LEFT, TOP + ROW * rows);
        let width = (options.size.0 as i32 - left - if values { VALUES } else { 36 }).max(1);
        let all = options.size.1 as i32 - top - BOTTOM;
        let below = if options.panel.is_some() { PANEL + GAP } else { 0 };
        let frame = |top: i32, height: i32, x: Axis, y: Axis| {
            let [left, top, width, height] = [left, top, width, height.max(1)].map(f64::from);
            Frame { left, top, width, height, x, y }
        };
        let panel = options.panel.as_ref().and_then(|(label, points)| {
            let values = points.iter().map(|point| point.1).chain([0.0]);
            let y = Axis::new(values, Scale::Linear, 0.0, 3)?;
            let line = Series { points: points.clone(), colour: 7, ..Series::default() };
            Some((frame(top + all - PANEL, PANEL, x.clone(), y), label.as_str(), line))
        });
        Some(Self { series, options, frame: frame(top, all - below, x, y), panel })
    }

    /// Draws with `scale` pixels for each; text in a bitmap is placed differently than in an SVG.
    pub(super) fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        scale: i32,
        bitmap: bool,
    ) -> Result<(), Failure<B>> {
        let pen = Pen { area, scale, bitmap };
        area.fill(&PAPER)?;
        let (frame, options) = (&self.frame, self.options);
        let lowest = self.panel.as_ref().map_or(frame, |(panel, ..)| panel);
        vertical_axis(&pen, frame, &options.y_label)?;
        if let Some((label, factor)) = &options.right {
            right_axis(&pen, frame, label, *factor)?;
        }
        if let Some((panel, label, line)) = &self.panel {
            vertical_axis(&pen, panel, label)?;
            lines(&pen, panel, std::slice::from_ref(line))?;
        }
        horizontal_axis(&pen, lowest, &options.x_label, f64::from(options.size.1) - 16.0)?;
        self.marks(&pen)?;
        lines(&pen, frame, self.series)?;
        self.names(&pen)?;
        self.heading(&pen)?;
        self.last_values(&pen)
    }

    /// Vertical lines, with their names at the bottom, on the side that has more room.
    fn marks<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        let (top, bottom) = (self.frame.top, self.frame.bottom());
        for (x, name) in &self.options.marks {
            let at = self.frame.left + self.frame.x.place(*x) * self.frame.width;
            if !self.frame.holds((at, top)) {
                continue;
            }
            pen.dashed(&[(at, bottom), (at, top)], (5.0, 4.0), PALE_INK, 1.2, 1.0)?;
            let first_half = at < self.frame.left + 0.5 * self.frame.width;
            let (at, h) = if first_half { (at + 8.0, HPos::Left) } else { (at - 8.0, HPos::Right) };
            pen.text(name, (at, bottom - 14.0), 16, PALE_INK, h, VPos::Center)?;
        }
        Ok(())
    }

    /// The names beside dots, where they hide neither each other nor a dot: to the right, in the right half of the chart to the left,
    /// else on the other side, else a little higher or lower.
    fn names<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        let named = self.series.iter().filter(|series| series.look == Look::Named);
        let places =
            |series: &'a Series| self.frame.runs(&series.points).concat().into_iter().map(move |at| (at, series));
        let mut all: Vec<((f64, f64), &Series)> = named.flat_map(places).collect();
        all.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
        // Left and right ends and heights of what is there.
        let mut taken: Vec<(f64, f64, f64)> = all.iter().map(|((x, y), _)| (x - 5.0, x + 5.0, *y)).collect();
        for ((x, y), series) in &all {
            let wide = LETTER * series.name.chars().count() as f64;
            let right_first = *x < self.frame.left + 0.5 * self.frame.width;
            let ends = |right: bool| if right { (x + 9.0, x + 9.0 + wide) } else { (x - 9.0 - wide, x - 9.0) };
            let free = |&(right, y): &(bool, f64)| {
                let (from, to) = ends(right);
                taken.iter().all(|t| t.0 >= to || from >= t.1 || (t.2 - y).abs() >= APART - 1.0)
            };
            let steps = (0..).flat_map(|i| [f64::from(i), -f64::from(i)]).map(|i| y + i * 0.5 * APART);
            let mut tries = steps.flat_map(|y| [(right_first, y), (!right_first, y)]).take(8 * all.len() + 8);
            let (right, y) = tries.find(free).unwrap_or((right_first, *y));
            let (from, to) = ends(right);
            let (at, h) = if right { (from, HPos::Left) } else { (to, HPos::Right) };
            pen.text(&series.name, (at, y), 17, colour(series), h, VPos::Center)?;
            taken.push((from, to, y));
        }
        Ok(())
    }

    /// Title, and under it the legend.
    fn heading<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        pen.bold(&self.options.title, (f64::from(LEFT), 20.0), 25, INK)?;
        for (series, row, x) in legend(self.series, self.options) {
            let (x, y) = (f64::from(LEFT + x), f64::from(66 + ROW * row));
            stroke(pen, series, &[(x, y), (x + 26.0, y)])?;
            if series.look == Look::Dots {
                pen.dot((x + 13.0, y), colour(series))?;
            }
            pen.text(&series.name, (x + f64::from(SAMPLE), y), 17, INK, HPos::Left, VPos::Center)?;
        }
        Ok(())
    }

    /// Writes the last value of each series to the right of its end, moved so that they do not overlap.
    fn last_values<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        let (top, bottom) = (self.frame.top, self.frame.bottom());
        let last = |series: &Series| {
            let (place, y) = series.points.iter().rev().find_map(|&point| Some((self.frame.at(point)?, point.1)))?;
            Some((place.1.clamp(top, bottom), value(y), colour(series)))
        };
        let mut labels: Vec<_> = self.series.iter().filter(|s| s.last_value).filter_map(last).collect();
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut least = f64::NEG_INFINITY;
        for label in &mut labels {
            label.0 = label.0.max(least);
            least = label.0 + APART;
        }
        // Those pushed below the chart push the others up.
        let mut most = bottom;
        for label in labels.iter_mut().rev() {
            label.0 = label.0.min(most);
            most = label.0 - APART;
        }
        let x = self.frame.right() + 10.0;
        labels.iter().try_for_each(|(y, text, colour)| pen.text(text, (x, *y), 17, *colour, HPos::Left, VPos::Center))
    }
}

/// The axes for all points that count.
fn axes(series: &[Series], options: &Options) -> Option<(Axis, Axis)> {
    // A point counts only if both of its coordinates can be drawn.
    let has_place = |&&(x, y): &&(f64, f64)| {
        x.is_finite() && y.is_finite() && (!options.x.is_log() || x > 0.0) && (!options.y.is_log() || y > 0.0)
    };
    let of = |faint: bool, settled: bool| -> Vec<(f64, f64)> {
        let those = series.iter().filter(move |s| faint || s.look != Look::Faint);
        let counts = move |s: &Series, x: f64| !settled || s.settled.is_none_or(|from| x >= from);
        those.flat_map(|s| s.points.iter().filter(has_place).filter(move |point| counts(s, point.0))).copied().collect()
    };
    let first_with_points = |choices: &[(bool, bool)]| {
        choices.iter().map(|&(faint, settled)| of(faint, settled)).find(|points| !points.is_empty())
    };
    let all = first_with_points(&[(false, false), (true, false)])?;
    let settled = first_with_points(&[(false, true), (false, false), (true, false)])?;
    let x_low = all.iter().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let x_high = all.iter().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
    // An axis that begins just after 0 begins at 0.
    let zero = (options.x == Scale::Linear && x_low > 0.0 && x_low < x_high / 5.0).then_some(0.0);
    let also = zero.into_iter().chain(options.marks.iter().map(|mark| mark.0));
    let lone = series.iter().any(|s| s.look == Look::Named);
    let x = all.iter().map(|point| point.0).chain(also);
    let x = Axis::new(x, options.x, if lone { 0.03 } else { 0.0 }, 8)?;
    Some((x, Axis::new(settled.iter().map(|point| point.1), options.y, 0.05, 6)?))
}

/// Named series, each with its legend row and its position in it.
fn legend<'a>(series: &'a [Series], options: &Options) -> impl Iterator<Item = (&'a Series, i32, i32)> {
    let room = options.size.0 as i32 - LEFT - 20;
    let (mut x, mut row) = (0, 0);
    let named = series.iter().filter(|s| !s.name.is_empty() && !s.points.is_empty() && s.look != Look::Named);
    named.map(move |series| {
        let width = SAMPLE + LETTER as i32 * series.name.chars().count() as i32;
        if x > 0 && x + width > room {
            (x, row) = (0, row + 1);
        }
        let place = x;
        x += width + 26;
        (series, row, place)
    })
}

/// The vertical axis of a frame, with its grid.
fn vertical_axis<B: DrawingBackend>(pen: &Pen<'_, B>, frame: &Frame, label: &str) -> Result<(), Failure<B>> {
    let (left, right) = (frame.left, frame.right());
    for (y, text) in &frame.y.ticks {
        let y = frame.bottom() - frame.y.place(*y) * frame.height;
        pen.path(&[(left, y), (right, y)], GRID, 1.0, 1.0)?;
        pen.text(text, (left - 12.0, y), 17, PALE_INK, HPos::Right, VPos::Center)?;
    }
    pen.path(&[(left, frame.bottom()), (right, frame.bottom())], PALE_INK, 1.2, 1.0)?;
    let size = if label.chars().count() as f64 * LETTER > frame.height { 16 } else { 18 };
    pen.upright(label, (24.0, frame.top + frame.height / 2.0), size, INK)
}

/// The second vertical axis: the values of the first times `factor`.
fn right_axis<B: DrawingBackend>(pen: &Pen<'_, B>, frame: &Frame, label: &str, factor: f64) -> Result<(), Failure<B>> {
    let axis = frame.y.times(factor, 6);
    let right = frame.right();
    for (y, text) in &axis.ticks {
        let y = frame.bottom() - axis.place(*y) * frame.height;
        pen.path(&[(right, y), (right + 6.0, y)], PALE_INK, 1.0, 1.0)?;
        pen.text(text, (right + 12.0, y), 17, PALE_INK, HPos::Left, VPos::Center)?;
    }
    pen.upright(label, (right + f64::from(VALUES) - 20.0, frame.top + frame.height / 2.0), 18, INK)
}

/// The horizontal axis, under the lowest frame.
fn horizontal_axis<B: DrawingBackend>(pen: &Pen<'_, B>, frame: &Frame, label: &str, y: f64) -> Result<(), Failure<B>> {
    let bottom = frame.bottom();
    for (x, text) in &frame.x.ticks {
        let x = frame.left + frame.x.place(*x) * frame.width;
        pen.path(&[(x, bottom), (x, bottom + 6.0)], PALE_INK, 1.0, 1.0)?;
        pen.text(text, (x, bottom + 12.0), 17, PALE_INK, HPos::Center, VPos::Top)?;
    }
    pen.text(label, (frame.left + frame.width / 2.0, y), 18, INK, HPos::Center, VPos::Bottom)
}

/// The lines and dots of all series, the faint ones first.
fn lines<B: DrawingBackend>(pen: &Pen<'_, B>, frame: &Frame, series: &[Series]) -> Result<(), Failure<B>> {
    for series in series.iter().filter(|series| series.look == Look::Faint) {
        for run in frame.runs(&series.points) {
            for part in frame.inside(&run, EVERYWHERE) {
                stroke(pen, series, &thin(&part))?;
            }
        }
    }
    let clear: Vec<&Series> = series.iter().filter(|series| series.look != Look::Faint).collect();
    let paths: Vec<Vec<Path>> = clear.iter().map(|series| frame.runs(&series.points)).collect();
    for ((series, runs), turns) in clear.iter().zip(&paths).zip(frame.turns(&paths)) {
        for run in runs.iter().filter(|_| series.look != Look::Named) {
            for part in turns.iter().flat_map(|&turn| frame.inside(run, turn)) {
                stroke(pen, series, &thin(&part))?;
            }
        }
    }
    for (j, (series, runs)) in clear.iter().zip(&paths).enumerate() {
        for run in runs {
            let dotted = match series.look {
                Look::Dots | Look::Named => true,
                Look::Line => run.len() == 1,
                Look::Thin | Look::Faint => false,
            };
            // Of dots on each other, another one is uppermost at every further point.
            let on = |i: usize, place: (f64, f64)| {
                let mut dots = paths[i].iter().flatten().filter(|_| clear[i].look == series.look);
                dots.any(|at| (at.0 - place.0).hypot(at.1 - place.1) < 2.0)
            };
            for (k, &place) in run.iter().enumerate().filter(|(_, place)| dotted && frame.holds(**place)) {
                let below = (0..j).filter(|&i| on(i, place)).count();
                let above = (j + 1..clear.len()).filter(|&i| on(i, place)).count();
                if k % (below + above + 1) >= below {
                    pen.dot(place, colour(series))?;
                }
            }
        }
    }
    Ok(())
}

const EVERYWHERE: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

/// Draws a path in the manner of a series.
fn stroke<B: DrawingBackend>(pen: &Pen<'_, B>, series: &Series, path: &[(f64, f64)]) -> Result<(), Failure<B>> {
    let (width, alpha) = match series.look {
        Look::Line | Look::Named => (2.4, 1.0),
        Look::Dots => (1.8, 1.0),
        Look::Thin => (1.1, 0.5),
        Look::Faint => (1.1, 0.4),
    };
    match series.colour / COLOURS.len() {
        0 => pen.path(path, colour(series), width, alpha),
        more => pen.dashed(path, DASHES[(more - 1) % DASHES.len()], colour(series), width, alpha),
    }
}

fn colour(series: &Series) -> RGBColor {
    COLOURS[series.colour % COLOURS.len()]
}

/// The same line with at most four points per pixel column: first, lowest, highest, last.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut out: Vec<(f64, f64)> = Vec::new();
    for column in points.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
        if column.len() <= 4 {
            out.extend_from_slice(column);
            continue;
        }
        let by_y = |i: &usize, j: &usize| column[*i].1.total_cmp(&column[*j].1);
        let (low, high) = ((0..column.len()).min_by(by_y), (0..column.len()).max_by(by_y));
        let mut kept = [0, low.unwrap_or(0), high.unwrap_or(0), column.len() - 1];
        kept.sort_unstable();
        out.extend(kept.map(|i| column[i]));
    }
    out
}
