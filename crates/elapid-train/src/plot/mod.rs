//! Line charts as SVG and PNG without system fonts; the loss curve of a run.

mod axis;
mod draw;
mod frame;
mod pen;
mod series;

use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use elapid::files::atomic_write;
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, DrawingArea, DrawingBackend, IntoDrawingArea, SVGBackend};
use plotters::style::{FontStyle, register_font};

use crate::metrics::{self, Record};
use crate::{Error, Result};

pub use series::{Look, Options, Scale, Series};

/// Pixels of a PNG for one of the SVG, in each direction: screens have as many.
const PIXELS: u32 = 2;
/// Supersampling factor in each direction: as many drawn pixels are averaged to one, for smooth lines.
const SUPERSAMPLE: u32 = 2;
/// The most points of a line of means.
const MEANS: usize = 100;

/// A chart in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    /// With text as text elements.
    pub svg: String,
    /// The same as a PNG file, with twice as many pixels each way.
    pub png: Vec<u8>,
}

impl Chart {
    /// Writes `<stem>.svg` and `<stem>.png` into a directory.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn save(&self, dir: &Path, stem: &str) -> Result<()> {
        atomic_write(&dir.join(format!("{stem}.svg")), |w| w.write_all(self.svg.as_bytes()))?;
        atomic_write(&dir.join(format!("{stem}.png")), |w| w.write_all(&self.png))?;
        Ok(())
    }
}

/// Draws a chart of series.
///
/// # Errors
/// If there is no finite point, or the size is 0 or above 8192 in a direction.
pub fn line_chart(series: &[Series], options: &Options) -> Result<Chart> {
    let failed = |reason: String| Error::Plot { what: format!("`{}`", options.title), reason };
    let (width, height) = options.size;
    if !(1..=8192).contains(&width) || !(1..=8192).contains(&height) {
        return Err(failed(format!("its size is {width} x {height}; wanted 1 to 8192 pixels each way")));
    }
    let plan = draw::Plan::new(series, options).ok_or_else(|| failed("there is no finite point to draw".into()))?;
    LazyLock::force(&FONTS);

    let mut svg = String::new();
    paint(SVGBackend::with_string(&mut svg, options.size).into_drawing_area(), &plan, 1, false).map_err(failed)?;

    let (size, scale) = ((width * PIXELS, height * PIXELS), PIXELS * SUPERSAMPLE);
    let large = (width * scale, height * scale);
    let mut pixels = vec![255; 3 * large.0 as usize * large.1 as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, large).into_drawing_area();
    paint(area, &plan, scale as i32, true).map_err(failed)?;
    let png = encode(&average(&pixels, size), size).map_err(|e| failed(e.to_string()))?;
    Ok(Chart { svg, png })
}

/// The training loss of a run and its held-out loss, with bits per byte at the right if it has them, and the learning rate beneath.
///
/// The training loss is drawn as means over the intervals of logging, or over several of them where there are more than a hundred,
/// with all of them in a pale colour. The height is that of the losses after the warm-up (see [`settled`]).
///
/// # Errors
/// If no record has a finite loss.
pub fn loss_curve(records: &[Record], title: &str) -> Result<Chart> {
    let of = |figure: &dyn Fn(&Record) -> Option<f64>| -> Vec<(f64, f64)> {
        records.iter().filter_map(|record| Some((record.step as f64, figure(record)?))).collect()
    };
    let raw = of(&|record| Some(record.loss));
    let val = of(&|record| record.figure(metrics::VAL_LOSS));
    let from = settled(records).map(|record| record.step as f64);
    let bits = |record: &Record| Some(record.figure(metrics::BITS_PER_BYTE)? / record.figure(metrics::VAL_LOSS)?);
    // Bits per byte are the loss in another unit: for a text, the factor is the same everywhere.
    let factor = records.iter().rev().find_map(bits).filter(|factor| factor.is_finite() && *factor > 0.0);
    let named = |name: &str, points: Vec<(f64, f64)>, factor: Option<f64>| {
        let last = points.iter().rev().map(|point| point.1).find(|loss| loss.is_finite());
        let value = last.map_or_else(String::new, |loss| format!(": {loss:.3}"));
        let bits = last.zip(factor).map(|(loss, factor)| format!(", {:.3} bits per byte", loss * factor));
        let name = format!("{name}{value}{}", bits.unwrap_or_default());
        Series { name, points, settled: from, ..Series::default() }
    };
    let series = [
        Series { points: raw.clone(), look: Look::Faint, ..Series::default() },
        named("training", means(&raw), None),
        Series { look: Look::Dots, colour: 1, ..named("held out", val, factor) },
    ];
    let options = Options {
        title: title.to_owned(),
        x_label: "step".into(),
        y_label: "loss, nats per token".into(),
        right: factor.map(|factor| ("bits per byte".into(), factor)),
        panel: Some(("learning rate".into(), of(&|record| Some(record.lr)))),
        size: (1200, 800),
        ..Options::default()
    };
    line_chart(&series, &options)
}

/// The first record after the warm-up and after a twentieth of all steps. Losses before it are far above all others.
pub fn settled(records: &[Record]) -> Option<&Record> {
    let last = records.last()?.step;
    let highest = records.iter().map(|record| record.lr).fold(0.0, f64::max);
    let warm = records.iter().find(|record| record.lr >= highest).map_or(0, |record| record.step);
    // A run that was stopped in its warm-up has nothing after it.
    let from = warm.min(last / 2).max(last.div_ceil(20));
    records.iter().find(|record| record.step >= from)
}

/// Points of a line with at most a hundred: means over equal numbers of consecutive points, without those that are not finite.
pub fn means(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |part: &[(f64, f64)]| {
        let finite = part.iter().filter(|point| point.1.is_finite());
        let (x, y, count) =
            finite.fold((0.0, 0.0, 0.0), |(x, y, count), point| (x + point.0, y + point.1, count + 1.0));
        if count > 0.0 { (x / count, y / count) } else { (part[0].0, f64::NAN) }
    };
    points.chunks(points.len().div_ceil(MEANS).max(1)).map(mean).collect()
}

/// Draws `loss.svg` and `loss.png` of a run's directory from its `metrics.jsonl`; for a task, also `accuracy.*`.
///
/// # Errors
/// If the metrics cannot be read, have no finite loss, or a picture cannot be written.
pub fn plot_run(dir: &Path, title: &str) -> Result<()> {
    let records = metrics::read(&dir.join("metrics.jsonl"))?;
    loss_curve(&records, title)?.save(dir, "loss")?;
    let points: Vec<(f64, f64)> = records
        .iter()
        .filter_map(|record| Some((record.step as f64, 100.0 * record.figure(metrics::ACCURACY)?)))
        .collect();
    if points.is_empty() {
        return Ok(());
    }
    let options = Options {
        title: title.to_owned(),
        x_label: "step".into(),
        y_label: "right answers, %".into(),
        ..Options::default()
    };
    let series = Series { name: "held out".into(), points, last_value: true, ..Series::default() };
    line_chart(&[series], &options)?.save(dir, "accuracy")
}

/// DejaVu Sans for `sans-serif`: bitmaps are drawn with it, and the text of an SVG is measured with it.
static FONTS: LazyLock<()> = LazyLock::new(|| {
    for (style, font) in [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())] {
        // The fonts are fixed; if one were damaged, drawing would report that it is missing.
        let _ = register_font("sans-serif", style, font);
    }
});

fn paint<B: DrawingBackend>(
    area: DrawingArea<B, Shift>,
    plan: &draw::Plan<'_>,
    scale: i32,
    bitmap: bool,
) -> Result<(), String> {
    plan.draw(&area, scale, bitmap).and_then(|()| area.present()).map_err(|e| e.to_string())
}

/// The mean of every `SUPERSAMPLE` by `SUPERSAMPLE` pixels.
///
/// Sums of a row of pixels are added up in loops without divisions: a picture has millions of them, and this is most of
/// what it costs to draw one.
fn average(pixels: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
    let (width, k) = (width as usize, SUPERSAMPLE as usize);
    let mut out = Vec::with_capacity(3 * width * height as usize);
    let mut sums = vec![0_u16; 3 * width * k];
    for rows in pixels.chunks_exact(3 * width * k * k) {
        sums.fill(0);
        for row in rows.chunks_exact(3 * width * k) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += u16::from(value);
            }
        }
        for pixel in sums.chunks_exact(3 * k) {
            let (mut red, mut green, mut blue) = (0, 0, 0);
            for part in pixel.as_chunks::<3>().0 {
                red += part[0];
                green += part[1];
                blue += part[2];
            }
            let count = SUPERSAMPLE as u16 * SUPERSAMPLE as u16;
            out.extend([red, green, blue].map(|sum: u16| ((sum + count / 2) / count) as u8));
        }
    }
    out
}

fn encode(pixels: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests;
