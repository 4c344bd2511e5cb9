//! `elapid compare`: the held-out figures of several training runs, side by side.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use elapid::files::atomic_write;
use elapid_train::metrics::{self, Record};
use elapid_train::plot::{self, Series};
use serde_json::json;

use crate::failure::wrong;
use crate::output::{Output, scaled, table, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid compare runs/out/hybrids/*
  elapid compare runs/out/hybrids/* --report docs/results/hybrids.md
      a page with the table, and the curves beside it
  elapid compare runs/out/task/a runs/out/task/b --figure accuracy

Runs whose folders are named alike but for -seed-N are drawn in one colour.";

/// The runs to compare.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Output directories of training runs
    #[arg(value_name = "DIR", required = true)]
    runs: Vec<PathBuf>,
    /// What to compare, by its name in metrics.jsonl [default: bits_per_byte if all runs have it, else val_loss]
    #[arg(long, value_name = "NAME")]
    figure: Option<String>,
    /// Write a page with the table, and the curves as an SVG beside it
    #[arg(long, value_name = "FILE.md")]
    report: Option<PathBuf>,
    /// Heading of the page
    #[arg(long, value_name = "TEXT", default_value = "Runs compared")]
    title: String,
}

struct Run {
    name: String,
    records: Vec<Record>,
    /// Tokens and the figure there.
    points: Vec<(f64, f64)>,
}

impl Run {
    /// The name without its seed.
    fn kind(&self) -> &str {
        self.name.rsplit_once("-seed-").map_or(&self.name, |(kind, _)| kind)
    }

    fn row(&self, largest_is_best: bool) -> Option<Vec<String>> {
        let last = self.records.last()?;
        let values = self.points.iter().map(|point| point.1);
        let best = if largest_is_best { values.fold(f64::NAN, f64::max) } else { values.fold(f64::NAN, f64::min) };
        let (_, at_end) = self.points.last()?;
        let speed = last.tokens as f64 / last.seconds;
        let cells = [
            self.name.clone(),
            thousands(last.tokens),
            format!("{at_end:.4}"),
            format!("{best:.4}"),
            scaled(speed, "tokens/s"),
        ];
        Some(cells.to_vec())
    }
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<()> {
    let mut runs = Vec::with_capacity(arguments.runs.len());
    for dir in &arguments.runs {
        let records = metrics::read(&dir.join("metrics.jsonl"))?;
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned());
        runs.push(Run { name, records, points: Vec::new() });
    }
    let has = |run: &Run, figure: &str| run.records.iter().any(|record| record.figure(figure).is_some());
    let figure = match &arguments.figure {
        Some(figure) => figure.as_str(),
        None if runs.iter().all(|run| has(run, metrics::BITS_PER_BYTE)) => metrics::BITS_PER_BYTE,
        None => metrics::VAL_LOSS,
    };
    for run in &mut runs {
        let point = |record: &Record| Some((record.tokens as f64, record.figure(figure)?));
        run.points = run.records.iter().filter_map(point).collect();
        if run.points.is_empty() {
            let have =
                run.records.iter().flat_map(|record| record.figures.keys()).collect::<std::collections::BTreeSet<_>>();
            return Err(wrong(format!("{}: no `{figure}` in its metrics.jsonl; it has {have:?}", run.name)));
        }
    }
    let largest_is_best = [metrics::ACCURACY, metrics::R2].contains(&figure);
    let heading = ["run", "tokens", "last", "best", "speed"];
    let rows: Vec<Vec<String>> = runs.iter().filter_map(|run| run.row(largest_is_best)).collect();
    if let Some(path) = &arguments.report {
        write(path, arguments, figure, &runs, &rows)?;
    }
    let object = json!({ "figure": figure, "runs": runs.iter().map(|run| json!({ "name": run.name, "points": run.points })).collect::<Vec<_>>() });
    output.result(&object, || format!("{figure}, held out\n{}", table(&heading, &rows)))
}

fn write(path: &Path, arguments: &Arguments, figure: &str, runs: &[Run], rows: &[Vec<String>]) -> Result<()> {
    let mut kinds: Vec<&str> = Vec::new();
    let mut series = Vec::with_capacity(runs.len());
    for run in runs {
        let known = kinds.iter().position(|kind| *kind == run.kind());
        let colour = known.unwrap_or(kinds.len());
        let name = if known.is_none() { run.kind().to_owned() } else { String::new() };
        if known.is_none() {
            kinds.push(run.kind());
        }
        series.push(Series { name, points: run.points.clone(), colour: colour % 8, ..Series::default() });
    }
    let options = plot::Options {
        title: arguments.title.clone(),
        x_label: "tokens".into(),
        y_label: format!("{figure}, held out"),
        ..plot::Options::default()
    };
    let stem = path.file_stem().map_or_else(|| "curves".into(), |stem| stem.to_string_lossy().into_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| wrong(format!("cannot make {}: {error}", folder.display())))?;
    let chart = plot::line_chart(&series, &options)?;
    let picture = format!("{stem}-curves.svg");
    atomic_write(&folder.join(&picture), |w| w.write_all(chart.svg.as_bytes()))?;
    let mut text = format!("# {}\n\n![{figure} by tokens]({picture})\n\n", arguments.title);
    writeln!(text, "| run | tokens | {figure} at the end | best | speed |\n|---|---:|---:|---:|---:|")?;
    for row in rows {
        writeln!(text, "| {} |", row.join(" | "))?;
    }
    Ok(atomic_write(path, |w| w.write_all(text.as_bytes()))?)
}
