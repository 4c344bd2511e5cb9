//! What a chart shows, and how.

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// By logarithms, with ticks at powers of ten and their multiples. Points at 0 and below are left out.
    Log,
    /// The same, with ticks at powers of two.
    Log2,
}

impl Scale {
    /// `Log2` if all values are powers of two, as lengths often are; else `Log`.
    pub fn of_lengths(mut lengths: impl Iterator<Item = usize>) -> Self {
        if lengths.all(usize::is_power_of_two) { Scale::Log2 } else { Scale::Log }
    }

    pub(super) fn is_log(self) -> bool {
        self != Scale::Linear
    }
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Look {
    /// A line.
    #[default]
    Line,
    /// A line with a dot at every point.
    Dots,
    /// A thin pale line.
    Thin,
    /// The same, behind the others. It does not affect the range of the chart.
    Faint,
    /// Dots that are not joined, each with the name of the series beside it and not in the legend.
    Named,
}

/// Points to be joined. Points that are not finite make gaps, and lines are cut off at the frame. Where lines lie on each other,
/// each is drawn in dashes between those of the others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend; empty for none.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub look: Look,
    /// Index of one of the eight colours; lines of further ones have the same colours, and dashes.
    pub colour: usize,
    /// Points before this x do not affect the range of the chart's y.
    pub settled: Option<f64>,
    /// Whether the last value is written beside it.
    pub last_value: bool,
}

/// Titles, axes and size of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Title at the top.
    pub title: String,
    /// Label under the horizontal axis.
    pub x_label: String,
    /// Label beside the vertical axis.
    pub y_label: String,
    /// The horizontal axis.
    pub x: Scale,
    /// The vertical axis.
    pub y: Scale,
    /// Vertical lines, each with a short name beside it.
    pub marks: Vec<(f64, String)>,
    /// A second vertical axis at the right: its label, and its values in units of the first axis's.
    pub right: Option<(String, f64)>,
    /// A small panel beneath with the same horizontal axis: its label and its line, drawn from 0.
    pub panel: Option<(String, Vec<(f64, f64)>)>,
    /// Width and height of the SVG in pixels; a PNG has twice as many each way.
    pub size: (u32, u32),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            title: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            x: Scale::Linear,
            y: Scale::Linear,
            marks: Vec::new(),
            right: None,
            panel: None,
            size: (1200, 700),
        }
    }
}
