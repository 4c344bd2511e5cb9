//! `elapid plot`: a figure of several training runs as curves in one chart.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use elapid::files::atomic_write;
use elapid_train::metrics;
use elapid_train::plot::{self, Scale, Series};
use serde_json::{Value, json};

use crate::failure::wrong;
use crate::output::{Output, folder_of};
use crate::runs::{self, By, Run};

const EXAMPLES: &str = "\
Examples:
  elapid plot runs/out/a runs/out/b
      the training losses by step, in loss-by-steps.svg and loss-by-steps.png
  elapid plot runs/out/hybrids/* --y bits_per_byte --x tokens --output docs/hybrids.svg
  elapid plot runs/out/mqar/* --y accuracy --x seconds --title \"Recall of pairs\"
  elapid plot runs/out/a --y lr
  elapid plot runs/out/a runs/out/b --x tokens --log-x --log-y

The figures are those of metrics.jsonl: loss, lr, grad_norm, tokens_per_second, and held out val_loss, bits_per_byte, accuracy and
others. Runs whose folders are named alike but for -seed-N are drawn in one colour. The height of the chart is that of the values
after the warm-up, but with --log-y. Training losses, norms and speeds are means over up to a hundred equal parts of a run.";

/// Figures of every step, drawn as means.
const NOISY: [&str; 3] = ["loss", "grad_norm", "tokens_per_second"];
/// Figures that begin far above where they end.
const FALLING: [&str; 4] = ["loss", "grad_norm", metrics::VAL_LOSS, metrics::BITS_PER_BYTE];
/// The most curves whose last values have room beside the chart.
const VALUES: usize = 20;

/// The runs, the figure, and the picture.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Output directories of training runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The figure to draw, by its name in metrics.jsonl
    #[arg(long, value_name = "NAME", default_value = "loss")]
    y: String,
    /// What the horizontal axis counts
    #[arg(long, value_name = "COUNT", default_value = "steps")]
    x: By,
    /// A horizontal axis of logarithms
    #[arg(long)]
    log_x: bool,
    /// A vertical axis of logarithms
    #[arg(long)]
    log_y: bool,
    /// The picture, .svg or .png; both for a name without one of these [default: loss-by-steps]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Title of the chart [default: the name of the run, or the figure]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<()> {
    let figure = arguments.y.as_str();
    let name = PathBuf::from(format!("{figure}-by-{}", arguments.x.name()));
    let files = files(arguments.output.as_ref().unwrap_or(&name))?;
    let runs = Run::open_all(&arguments.runs)?;
    let points: Vec<Vec<(f64, f64)>> = runs.iter().map(|run| run.points(arguments.x, figure)).collect::<Result<_>>()?;
    let chart = plot::line_chart(&series(arguments, &runs, &points), &options(arguments, &runs))?;
    for file in &files {
        let bytes = if ends_in(file, "png") { &chart.png[..] } else { chart.svg.as_bytes() };
        folder_of(file)?;
        atomic_write(file, |w| w.write_all(bytes))?;
    }
    let curves: Vec<Value> =
        runs.iter().zip(&points).map(|(run, points)| json!({ "name": run.name, "points": points })).collect();
    let object = json!({ "figure": figure, "x": arguments.x.name(), "files": files, "runs": curves });
    output.result(&object, || files.iter().map(|file| format!("{}\n", file.display())).collect())
}

fn series(arguments: &Arguments, runs: &[Run], points: &[Vec<(f64, f64)>]) -> Vec<Series> {
    let figure = arguments.y.as_str();
    let drawn = |points: &Vec<(f64, f64)>| if NOISY.contains(&figure) { plot::means(points) } else { points.clone() };
    let mut series = runs::curves(runs.iter().zip(points.iter().map(drawn)));
    for (series, run) in series.iter_mut().zip(runs) {
        series.last_value = runs.len() <= VALUES;
        if FALLING.contains(&figure) && !arguments.log_y {
            series.settled = plot::settled(&run.records).map(|record| arguments.x.of(record));
        }
    }
    series
}

fn options(arguments: &Arguments, runs: &[Run]) -> plot::Options {
    let scale = |log: bool| if log { Scale::Log } else { Scale::Linear };
    let label = runs::label(&arguments.y);
    let title = match (&arguments.title, runs) {
        (Some(title), _) => title.clone(),
        (None, [run]) => run.name.clone(),
        (None, _) => format!("{} by {}", label.split(',').next().unwrap_or_default(), arguments.x.name()),
    };
    plot::Options {
        title,
        x_label: arguments.x.name().into(),
        y_label: label,
        x: scale(arguments.log_x),
        y: scale(arguments.log_y),
        ..plot::Options::default()
    }
}

fn ends_in(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|own| own.eq_ignore_ascii_case(extension))
}

/// The files to write.
fn files(output: &Path) -> Result<Vec<PathBuf>> {
    if ["svg", "png"].iter().any(|extension| ends_in(output, extension)) {
        return Ok(vec![output.to_owned()]);
    }
    if ["pdf", "eps", "ps", "jpg", "jpeg", "gif", "webp"].iter().any(|extension| ends_in(output, extension)) {
        return Err(wrong(format!("--output: pictures are .svg or .png, got {}", output.display())));
    }
    let Some(name) = output.file_name() else {
        return Err(wrong(format!("--output: wanted a file's name, got {}", output.display())));
    };
    let with = |extension: &str| output.with_file_name(format!("{}.{extension}", name.to_string_lossy()));
    Ok(vec![with("svg"), with("png")])
}
