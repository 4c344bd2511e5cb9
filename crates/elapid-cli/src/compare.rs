//! `elapid compare`: the held-out figures of several training runs, side by side.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use elapid::LanguageModel;
use elapid::files::atomic_write;
use elapid_train::config::TrainConfig;
use elapid_train::metrics;
use elapid_train::plot::{self, Look, Scale, Series};
use elapid_train::tasks;
use serde_json::{Value, json};

use crate::output::{Output, bytes, folder_of, scaled, table, thousands};
use crate::runs::{self, By, Run};

const EXAMPLES: &str = "\
Examples:
  elapid compare runs/out/hybrids/*
  elapid compare runs/out/hybrids/* --report docs/results/hybrids.md
      a page with the table, and the curves beside it
  elapid compare runs/out/task/a runs/out/task/b --figure accuracy
  elapid compare runs/out/models/* --against state --report models.md
      also the sizes of models and states, and a picture of the best figure against the bytes of a state

Runs whose folders are named alike but for -seed-N are drawn in one colour. With --against, runs whose folders are \
named alike but for a number at the end are joined by a line, and others have their names beside them.";

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
    /// Also compute the parameters and the bytes of a sequence's state from each run's config.toml, and draw the best figure
    /// against one of them
    #[arg(long, value_name = "SIZE")]
    against: Option<Against>,
    /// Positions that the sequence has read; states of attention grow
    #[arg(long, value_name = "N", default_value_t = 8192, requires = "against", value_parser = clap::value_parser!(u64).range(1..))]
    context: u64,
    /// Write a page with the table, and the curves as an SVG beside it
    #[arg(long, value_name = "FILE.md")]
    report: Option<PathBuf>,
    /// Heading of the page
    #[arg(long, value_name = "TEXT", default_value = "Runs compared")]
    title: String,
}

/// A size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Against {
    /// Bytes of the state of one sequence, in f32
    State,
    /// Parameters
    Parameters,
}

/// The sizes of a run's model.
#[derive(Clone, Copy)]
struct Sizes {
    parameters: u64,
    state_bytes: u64,
}

impl Sizes {
    fn of(dir: &Path, context: u64) -> Result<Self> {
        let config = TrainConfig::load(&dir.join("config.toml"))?;
        let model = match tasks::open(&config.task)? {
            Some(task) => config.model.resolve_for(task.vocab_size()),
            None => config.model.resolve(&config.data.open_tokenizer()?),
        };
        let model = LanguageModel::without_values(model?)?;
        let state_bytes = 4 * model.cost(context - 1).state;
        Ok(Self { parameters: model.params().count() as u64, state_bytes })
    }

    fn of_kind(self, against: Against) -> u64 {
        match against {
            Against::State => self.state_bytes,
            Against::Parameters => self.parameters,
        }
    }
}

/// A run beside others.
struct Compared {
    run: Run,
    /// Tokens and the figure there.
    points: Vec<(f64, f64)>,
    sizes: Option<Sizes>,
}

impl Compared {
    fn best(&self, largest_is_best: bool) -> f64 {
        let values = self.points.iter().map(|point| point.1);
        if largest_is_best { values.fold(f64::NAN, f64::max) } else { values.fold(f64::NAN, f64::min) }
    }

    /// The name without a number at its end.
    fn line(&self) -> &str {
        let (kind, number) =
            (self.run.kind(), |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        kind.rsplit_once('-').filter(|(_, end)| number(end)).map_or(kind, |(line, _)| line)
    }

    fn object(&self, largest_is_best: bool) -> Value {
        let mut object = json!({ "name": self.run.name, "best": self.best(largest_is_best), "points": self.points });
        if let Some(sizes) = self.sizes {
            (object["parameters"], object["state_bytes"]) = (sizes.parameters.into(), sizes.state_bytes.into());
        }
        object
    }

    fn row(&self, largest_is_best: bool) -> Option<Vec<String>> {
        let last = self.run.records.last()?;
        let best = self.best(largest_is_best);
        let (_, at_end) = self.points.last()?;
        let speed = last.tokens as f64 / last.seconds;
        let mut cells = vec![self.run.name.clone()];
        cells.extend(self.sizes.iter().flat_map(|sizes| [thousands(sizes.parameters), bytes(sizes.state_bytes)]));
        cells.extend([thousands(last.tokens), format!("{at_end:.4}"), format!("{best:.4}"), scaled(speed, "tokens/s")]);
        Some(cells)
    }
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<()> {
    let runs = Run::open_all(&arguments.runs)?;
    let figure = match &arguments.figure {
        Some(figure) => figure.as_str(),
        None if runs.iter().all(|run| run.has(metrics::BITS_PER_BYTE)) => metrics::BITS_PER_BYTE,
        None => metrics::VAL_LOSS,
    };
    let compared = |(run, dir): (Run, &PathBuf)| {
        let sizes = arguments.against.map(|_| Sizes::of(dir, arguments.context)).transpose()?;
        Ok(Compared { points: run.points(By::Tokens, figure)?, run, sizes })
    };
    let runs: Vec<Compared> = runs.into_iter().zip(&arguments.runs).map(compared).collect::<Result<_>>()?;
    let largest_is_best = [metrics::ACCURACY, metrics::R2].contains(&figure);
    let state = format!("state at {}", thousands(arguments.context));
    let sizes = arguments.against.map_or_else(Vec::new, |_| vec![">parameters", &state]);
    let heading = [&["run"][..], &sizes, &["tokens", "last", "best", "speed"]].concat();
    let rows: Vec<Vec<String>> = runs.iter().filter_map(|run| run.row(largest_is_best)).collect();
    if let Some(path) = &arguments.report {
        write(path, arguments, figure, &runs, &rows)?;
    }
    let objects: Vec<Value> = runs.iter().map(|run| run.object(largest_is_best)).collect();
    output.result(&json!({ "figure": figure, "runs": objects }), || {
        format!("{}\n{}", runs::label(figure), table(&heading, &rows))
    })
}

/// The best figure against a size.
fn against(arguments: &Arguments, size: Against, figure: &str, runs: &[Compared]) -> Result<plot::Chart> {
    let largest_is_best = [metrics::ACCURACY, metrics::R2].contains(&figure);
    let mut series: Vec<Series> = Vec::new();
    for run in runs {
        let Some(sizes) = run.sizes else { continue };
        let point = (sizes.of_kind(size) as f64, run.best(largest_is_best));
        match series.iter_mut().find(|series| series.name == run.line()) {
            Some(series) => series.points.push(point),
            None => {
                let colour = series.len();
                series.push(Series { name: run.line().into(), points: vec![point], colour, ..Series::default() });
            }
        }
    }
    for series in &mut series {
        series.look = if series.points.len() > 1 { Look::Dots } else { Look::Named };
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let x_label = match size {
        Against::State => format!("bytes of the state at {} positions", thousands(arguments.context)),
        Against::Parameters => "parameters".into(),
    };
    let (title, y_label, x) = (arguments.title.clone(), runs::label(figure), Scale::Log);
    Ok(plot::line_chart(&series, &plot::Options { title, x_label, y_label, x, ..plot::Options::default() })?)
}

fn write(path: &Path, arguments: &Arguments, figure: &str, runs: &[Compared], rows: &[Vec<String>]) -> Result<()> {
    let series = runs::curves(runs.iter().map(|compared| (&compared.run, compared.points.clone())));
    let options = plot::Options {
        title: arguments.title.clone(),
        x_label: "tokens".into(),
        y_label: runs::label(figure),
        ..plot::Options::default()
    };
    let stem = path.file_stem().map_or_else(|| "curves".into(), |stem| stem.to_string_lossy().into_owned());
    let folder = folder_of(path)?;
    let chart = plot::line_chart(&series, &options)?;
    let picture = format!("{stem}-curves.svg");
    atomic_write(&folder.join(&picture), |w| w.write_all(chart.svg.as_bytes()))?;
    let mut text = format!("# {}\n\n![{figure} by tokens]({picture})\n\n", arguments.title);
    let mut columns = String::new();
    if let Some(size) = arguments.against {
        let (chart, picture) = (against(arguments, size, figure, runs)?, format!("{stem}-sizes.svg"));
        atomic_write(&folder.join(&picture), |w| w.write_all(chart.svg.as_bytes()))?;
        writeln!(text, "![{figure} by size]({picture})\n")?;
        columns = format!(" parameters | state at {} |", thousands(arguments.context));
    }
    writeln!(text, "| run |{columns} tokens | {figure} at the end | best | speed |")?;
    writeln!(text, "|---|{}---:|---:|---:|---:|", "---:|".repeat(columns.matches('|').count()))?;
    for row in rows {
        writeln!(text, "| {} |", row.join(" | "))?;
    }
    Ok(atomic_write(path, |w| w.write_all(text.as_bytes()))?)
}
