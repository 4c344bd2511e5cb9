//! Draws a chart from the lines, dots and text of plotters.

use plotters::coord::Shift;
use plotters::element::{Circle, PathElement};
use plotters::prelude::{Color, DrawingArea, DrawingAreaErrorKind, DrawingBackend, RGBColor};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, FontTransform, IntoFont, ShapeStyle, TextStyle};

use super::axis::{Axis, value};
use super::{Look, Options, Series};

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
const INK: RGBColor = RGBColor(32, 33, 36);
const PALE_INK: RGBColor = RGBColor(95, 99, 104);
const GRID: RGBColor = RGBColor(228, 230, 233);
const PAPER: RGBColor = RGBColor(255, 255, 255);

/// Space around the chart, in pixels.
const LEFT: i32 = 92;
const TOP: i32 = 92;
const BOTTOM: i32 = 74;
/// Height of a row of the legend, and width of the line in front of a name.
const ROW: i32 = 24;
const SAMPLE: i32 = 34;
/// The minimum distance between two last values.
const APART: i32 = 20;

type Failure<B> = DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>;

/// A chart that can be drawn.
pub(super) struct Plan<'a> {
    series: &'a [Series],
    options: &'a Options,
    x: Axis,
    y: Axis,
    /// Space at the right: more if there are values.
    right: i32,
    /// Space at the top: more for a legend of several rows.
    top: i32,
}

impl<'a> Plan<'a> {
    /// `None` if there is no finite point.
    pub(super) fn new(series: &'a [Series], options: &'a Options) -> Option<Self> {
        // A point counts only if both of its coordinates can be drawn.
        let has_place = |&&(x, y): &&(f64, f64)| {
            x.is_finite() && y.is_finite() && (!options.x_log || x > 0.0) && (!options.y_log || y > 0.0)
        };
        let clear: Vec<(f64, f64)> = {
            let of = |faint: bool| {
                let those = series.iter().filter(move |s| faint || s.look != Look::Faint);
                those.flat_map(|s| s.points.iter().filter(has_place)).copied().collect::<Vec<_>>()
            };
            let clear = of(false);
            if clear.is_empty() { of(true) } else { clear }
        };
        let x_low = clear.iter().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let x_high = clear.iter().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
        // An axis that begins just after 0 begins at 0.
        let zero = (!options.x_log && x_low > 0.0 && x_low < x_high / 5.0).then_some(0.0);
        let x = Axis::new(clear.iter().map(|point| point.0).chain(zero), options.x_log, 0.0, 8)?;
        let y = Axis::new(clear.iter().map(|point| point.1), options.y_log, 0.05, 6)?;
        let right = if series.iter().any(|s| s.last_value) { 92 } else { 36 };
        let mut plan = Self { series, options, x, y, right, top: TOP };
        plan.top += ROW * plan.legend().map(|(_, row, _)| row).max().unwrap_or(0);
        Some(plan)
    }

    /// Named series, each with its legend row and its position in it. The width of text is estimated from its number of
    /// letters, so that a chart has the same layout in every font.
    fn legend(&self) -> impl Iterator<Item = (&'a Series, i32, i32)> {
        let room = self.options.size.0 as i32 - LEFT - 20;
        let (mut x, mut row) = (0, 0);
        let named = self.series.iter().filter(|s| !s.name.is_empty() && !s.points.is_empty() && s.look != Look::Named);
        named.map(move |series| {
            let width = SAMPLE + 9 * series.name.chars().count() as i32;
            if x > 0 && x + width > room {
                (x, row) = (0, row + 1);
            }
            let place = x;
            x += width + 26;
            (series, row, place)
        })
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
        self.axes(&pen)?;
        for faint in [true, false] {
            for series in self.series.iter().filter(|series| (series.look == Look::Faint) == faint) {
                self.line(&pen, series)?;
            }
        }
        self.names(&pen)?;
        self.heading(&pen)?;
        self.last_values(&pen)
    }

    fn width(&self) -> i32 {
        (self.options.size.0 as i32 - LEFT - self.right).max(1)
    }

    fn height(&self) -> i32 {
        (self.options.size.1 as i32 - self.top - BOTTOM).max(1)
    }

    /// The position of a point in pixels, clamped to the chart. `None` if it cannot be drawn.
    fn at(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        let (x, y) = (self.x.place(x), self.y.place(y));
        if x.is_nan() || y.is_nan() {
            return None;
        }
        let x = f64::from(LEFT) + x.clamp(0.0, 1.0) * f64::from(self.width());
        Some((x, f64::from(self.top) + (1.0 - y.clamp(0.0, 1.0)) * f64::from(self.height())))
    }

    fn axes<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        let (right, bottom) = (f64::from(LEFT + self.width()), f64::from(self.top + self.height()));
        let (left, top) = (f64::from(LEFT), f64::from(self.top));
        for (y, text) in &self.y.ticks {
            let y = top + (1.0 - self.y.place(*y)) * (bottom - top);
            pen.path(&[(left, y), (right, y)], GRID, 1.0, 1.0)?;
            pen.text(text, (left - 12.0, y), 17, PALE_INK, HPos::Right, VPos::Center)?;
        }
        for (x, text) in &self.x.ticks {
            let x = left + self.x.place(*x) * (right - left);
            pen.path(&[(x, bottom), (x, bottom + 6.0)], PALE_INK, 1.0, 1.0)?;
            pen.text(text, (x, bottom + 12.0), 17, PALE_INK, HPos::Center, VPos::Top)?;
        }
        pen.path(&[(left, bottom), (right, bottom)], PALE_INK, 1.2, 1.0)?;
        let middle = ((left + right) / 2.0, f64::from(self.options.size.1) - 16.0);
        pen.text(&self.options.x_label, middle, 18, INK, HPos::Center, VPos::Bottom)?;
        pen.upright(&self.options.y_label, (24.0, (top + bottom) / 2.0), 18, INK)
    }

    fn line<B: DrawingBackend>(&self, pen: &Pen<'_, B>, series: &Series) -> Result<(), Failure<B>> {
        let colour = colour(series);
        let (width, alpha) = match series.look {
            Look::Line => (2.4, 1.0),
            Look::Dots => (1.8, 1.0),
            Look::Named => return self.dots(pen, series),
            Look::Thin | Look::Faint => (1.1, 0.4),
        };
        let places: Vec<Option<(f64, f64)>> = series.points.iter().map(|&point| self.at(point)).collect();
        for run in places.split(Option::is_none) {
            let run: Vec<(f64, f64)> = run.iter().copied().flatten().collect();
            let lone = run.len() == 1 && series.look == Look::Line;
            pen.path(&thin(&run), colour, width, alpha)?;
            if series.look == Look::Dots || lone {
                for &place in &run {
                    pen.dot(place, colour)?;
                }
            }
        }
        Ok(())
    }

    fn dots<B: DrawingBackend>(&self, pen: &Pen<'_, B>, series: &Series) -> Result<(), Failure<B>> {
        let places = series.points.iter().filter_map(|&point| self.at(point));
        places.into_iter().try_for_each(|place| pen.dot(place, colour(series)))
    }

    /// The names beside dots: to the right, in the right half of the chart to the left, and below a name that is in the way.
    fn names<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        let named = self.series.iter().filter(|series| series.look == Look::Named);
        let mut all: Vec<((f64, f64), &Series)> =
            named.flat_map(|series| series.points.iter().filter_map(move |&at| Some((self.at(at)?, series)))).collect();
        all.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
        // Left and right ends and heights of what is written.
        let mut taken: Vec<(f64, f64, f64)> = Vec::new();
        for ((x, mut y), series) in all {
            let wide = 9.0 * series.name.chars().count() as f64;
            let right = x < f64::from(LEFT) + 0.5 * f64::from(self.width());
            let (from, to, h) =
                if right { (x + 9.0, x + 9.0 + wide, HPos::Left) } else { (x - 9.0 - wide, x - 9.0, HPos::Right) };
            let blocked =
                |y: f64| taken.iter().find(|t| t.0 < to && from < t.1 && (t.2 - y).abs() < f64::from(APART) - 1.0);
            while let Some(other) = blocked(y) {
                y = other.2 + f64::from(APART);
            }
            pen.text(&series.name, (if right { from } else { to }, y), 17, colour(series), h, VPos::Center)?;
            taken.push((from, to, y));
        }
        Ok(())
    }

    /// Title, and under it the legend.
    fn heading<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        pen.bold(&self.options.title, (f64::from(LEFT), 20.0), 25, INK)?;
        for (series, row, x) in self.legend() {
            let (x, y) = (f64::from(LEFT + x), f64::from(66 + ROW * row));
            pen.path(&[(x, y), (x + 26.0, y)], colour(series), 2.6, 1.0)?;
            if series.look == Look::Dots {
                pen.dot((x + 13.0, y), colour(series))?;
            }
            pen.text(&series.name, (x + f64::from(SAMPLE), y), 17, INK, HPos::Left, VPos::Center)?;
        }
        Ok(())
    }

    /// Writes the last value of each series to the right of its end, moved so that they do not overlap.
    fn last_values<B: DrawingBackend>(&self, pen: &Pen<'_, B>) -> Result<(), Failure<B>> {
        let last = |series: &Series| {
            let &(x, y) = series.points.iter().rev().find(|&&point| self.at(point).is_some())?;
            let (px, py) = self.at((x, y))?;
            Some((px, py, value(y), colour(series)))
        };
        let mut labels: Vec<_> = self.series.iter().filter(|s| s.last_value).filter_map(last).collect();
        labels.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut least = f64::NEG_INFINITY;
        for label in &mut labels {
            label.1 = label.1.max(least);
            least = label.1 + f64::from(APART);
        }
        // Those pushed below the chart push the others up.
        let mut most = f64::from(self.top + self.height());
        for label in labels.iter_mut().rev() {
            label.1 = label.1.min(most);
            most = label.1 - f64::from(APART);
        }
        let x = f64::from(LEFT + self.width()) + 10.0;
        labels
            .iter()
            .try_for_each(|(_, y, text, colour)| pen.text(text, (x, *y), 17, *colour, HPos::Left, VPos::Center))
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

/// Draws in pixels of the picture on an area with `scale` times as many.
struct Pen<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    scale: i32,
    bitmap: bool,
}

impl<B: DrawingBackend> Pen<'_, B> {
    fn px(&self, (x, y): (f64, f64)) -> (i32, i32) {
        let scale = f64::from(self.scale);
        ((x * scale).round() as i32, (y * scale).round() as i32)
    }

    fn path(&self, points: &[(f64, f64)], colour: RGBColor, width: f64, alpha: f64) -> Result<(), Failure<B>> {
        let width = (width * f64::from(self.scale)).round().max(1.0) as u32;
        let style = ShapeStyle { color: colour.mix(alpha), filled: false, stroke_width: width };
        let points: Vec<(i32, i32)> = points.iter().map(|&point| self.px(point)).collect();
        if points.len() < 2 {
            return Ok(());
        }
        if !self.bitmap || width < 2 {
            return self.area.draw(&PathElement::new(points, style));
        }
        // In a bitmap plotters mitres every corner, however sharp: at a spike the line would leave the chart.
        let turns_back = |i: usize| {
            let [(ax, ay), (bx, by), (cx, cy)] = [points[i - 1], points[i], points[i + 1]];
            (bx - ax) * (cx - bx) + (by - ay) * (cy - by) <= 0
        };
        let corners = (1..points.len() - 1).filter(|&i| turns_back(i)).chain([points.len() - 1]);
        let mut from = 0;
        for to in corners {
            self.area.draw(&PathElement::new(&points[from..=to], style))?;
            from = to;
        }
        Ok(())
    }

    fn dot(&self, place: (f64, f64), colour: RGBColor) -> Result<(), Failure<B>> {
        let style = ShapeStyle { color: colour.to_rgba(), filled: true, stroke_width: 0 };
        self.area.draw(&Circle::new(self.px(place), 4 * self.scale, style))
    }

    fn style(&self, size: i32, colour: RGBColor) -> TextStyle<'static> {
        ("sans-serif", size * self.scale).into_font().color(&colour)
    }

    fn text(
        &self,
        text: &str,
        place: (f64, f64),
        size: i32,
        colour: RGBColor,
        h: HPos,
        v: VPos,
    ) -> Result<(), Failure<B>> {
        let place = (place.0, place.1 + self.lower(size, v));
        self.area.draw_text(text, &self.style(size, colour).pos(Pos::new(h, v)), self.px(place))
    }

    fn bold(&self, text: &str, place: (f64, f64), size: i32, colour: RGBColor) -> Result<(), Failure<B>> {
        let font = ("sans-serif", size * self.scale, FontStyle::Bold).into_font();
        let place = (place.0, place.1 + self.lower(size, VPos::Top));
        self.area.draw_text(text, &font.color(&colour), self.px(place))
    }

    /// From bottom to top, around a point.
    fn upright(&self, text: &str, place: (f64, f64), size: i32, colour: RGBColor) -> Result<(), Failure<B>> {
        let font = ("sans-serif", size * self.scale).into_font().transform(FontTransform::Rotate270);
        let style = TextStyle::from(font).color(&colour).pos(Pos::new(HPos::Center, VPos::Center));
        let place = (place.0 + self.lower(size, VPos::Center), place.1);
        self.area.draw_text(text, &style, self.px(place))
    }

    /// How far to move text down in a bitmap to match the SVG: plotters puts the base line half a line, not half a capital,
    /// below the top or the middle.
    fn lower(&self, size: i32, v: VPos) -> f64 {
        let share = match v {
            VPos::Top => 0.15,
            VPos::Center => 0.2,
            VPos::Bottom => 0.08,
        };
        if self.bitmap { share * f64::from(size) } else { 0.0 }
    }
}
