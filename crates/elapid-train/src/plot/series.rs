//! What a chart shows, and how.

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
    /// The same, behind the others. It does not affect the range of the chart and may leave it.
    Faint,
    /// Dots that are not joined, each with the name of the series beside it and not in the legend.
    Named,
}

/// Points to be joined. Points that are not finite make gaps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend; empty for none.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub look: Look,
    /// Index of one of the eight colours.
    pub colour: usize,
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
    /// Whether the horizontal axis is logarithmic; points at 0 and below are then left out.
    pub x_log: bool,
    /// The same for the vertical axis.
    pub y_log: bool,
    /// Width and height in pixels.
    pub size: (u32, u32),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            title: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            x_log: false,
            y_log: false,
            size: (1200, 700),
        }
    }
}
