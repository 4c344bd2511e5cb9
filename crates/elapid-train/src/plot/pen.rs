//! Draws lines, dots and text on an area of plotters.

use plotters::coord::Shift;
use plotters::element::{Circle, PathElement};
use plotters::prelude::{Color, DrawingArea, DrawingAreaErrorKind, DrawingBackend, RGBColor};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, FontTransform, IntoFont, ShapeStyle, TextStyle};

pub(super) const INK: RGBColor = RGBColor(32, 33, 36);
pub(super) const PALE_INK: RGBColor = RGBColor(95, 99, 104);
pub(super) const GRID: RGBColor = RGBColor(228, 230, 233);
pub(super) const PAPER: RGBColor = RGBColor(255, 255, 255);

pub(super) type Failure<B> = DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>;

/// The dashes of a line, `on` pixels long with `off` between them.
fn dashes(points: &[(f64, f64)], on: f64, off: f64) -> Vec<Vec<(f64, f64)>> {
    let mut out = vec![points.iter().copied().take(1).collect::<Vec<_>>()];
    // What is left of this dash, or of this gap.
    let (mut drawn, mut left) = (true, on);
    for pair in points.windows(2) {
        let [(ax, ay), (bx, by)] = [pair[0], pair[1]];
        let length = (bx - ax).hypot(by - ay);
        let mut done = 0.0;
        while length - done > left {
            done += left;
            let at = (ax + (bx - ax) * done / length, ay + (by - ay) * done / length);
            match out.last_mut() {
                Some(dash) if drawn => dash.push(at),
                _ => out.push(vec![at]),
            }
            drawn = !drawn;
            left = if drawn { on } else { off };
        }
        left -= length - done;
        if let Some(dash) = out.last_mut().filter(|_| drawn) {
            dash.push((bx, by));
        }
    }
    out
}

/// Draws in pixels of the picture on an area with `scale` times as many.
pub(super) struct Pen<'a, B: DrawingBackend> {
    pub(super) area: &'a DrawingArea<B, Shift>,
    pub(super) scale: i32,
    pub(super) bitmap: bool,
}

impl<B: DrawingBackend> Pen<'_, B> {
    fn px(&self, (x, y): (f64, f64)) -> (i32, i32) {
        let scale = f64::from(self.scale);
        ((x * scale).round() as i32, (y * scale).round() as i32)
    }

    pub(super) fn path(
        &self,
        points: &[(f64, f64)],
        colour: RGBColor,
        width: f64,
        alpha: f64,
    ) -> Result<(), Failure<B>> {
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

    /// A path in dashes of `on` pixels with `off` between them.
    pub(super) fn dashed(
        &self,
        points: &[(f64, f64)],
        (on, off): (f64, f64),
        colour: RGBColor,
        width: f64,
        alpha: f64,
    ) -> Result<(), Failure<B>> {
        dashes(points, on, off).iter().try_for_each(|dash| self.path(dash, colour, width, alpha))
    }

    pub(super) fn dot(&self, place: (f64, f64), colour: RGBColor) -> Result<(), Failure<B>> {
        let style = ShapeStyle { color: colour.to_rgba(), filled: true, stroke_width: 0 };
        self.area.draw(&Circle::new(self.px(place), 4 * self.scale, style))
    }

    fn style(&self, size: i32, colour: RGBColor) -> TextStyle<'static> {
        ("sans-serif", size * self.scale).into_font().color(&colour)
    }

    pub(super) fn text(
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

    pub(super) fn bold(&self, text: &str, place: (f64, f64), size: i32, colour: RGBColor) -> Result<(), Failure<B>> {
        let font = ("sans-serif", size * self.scale, FontStyle::Bold).into_font();
        let place = (place.0, place.1 + self.lower(size, VPos::Top));
        self.area.draw_text(text, &font.color(&colour), self.px(place))
    }

    /// From bottom to top, around a point.
    pub(super) fn upright(&self, text: &str, place: (f64, f64), size: i32, colour: RGBColor) -> Result<(), Failure<B>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_go_around_corners() {
        let line = [(0.0, 0.0), (4.0, 0.0), (4.0, 6.0), (4.0, 9.0)];
        let want = [vec![(0.0, 0.0), (3.0, 0.0)], vec![(4.0, 1.0), (4.0, 4.0)], vec![(4.0, 6.0), (4.0, 9.0)]];
        assert_eq!(dashes(&line, 3.0, 2.0), want);
        assert_eq!(dashes(&line[..1], 3.0, 2.0), [[(0.0, 0.0)]]);
    }
}
