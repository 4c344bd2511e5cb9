//! The page that `elapid eval --task --report` writes: right answers by length beside the paper's, how the models were
//! trained, what the evaluation cost, and pictures.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use elapid::files::atomic_write;
use elapid_train::config::TrainConfig;
use elapid_train::metrics::{self, Record};
use elapid_train::plot::{self, Look, Scale, Series};
use elapid_train::tasks::Kind;

use crate::answers::{Answers, Request};
use crate::output::{bytes, folder_of, thousands};

/// A model on the page.
struct Run<'a> {
    name: String,
    answers: &'a Answers,
    records: Vec<Record>,
}

/// Writes the page, and its pictures beside it.
pub(crate) fn write(path: &Path, kind: &Kind, request: &Request<'_>, models: &[Answers]) -> Result<()> {
    let stem = path.file_stem().map_or_else(|| kind.name.into(), |stem| stem.to_string_lossy().into_owned());
    let folder = folder_of(path)?;
    let runs: Vec<Run<'_>> = models.iter().map(Run::new).collect::<Result<_>>()?;
    let mut text = format!("# {}\n\n", kind.name);
    by_length(&mut text, kind, request, &runs)?;
    for (name, x_label, x, series) in pictures(kind, &runs) {
        let marks = if name == LENGTHS { training_lengths(&runs) } else { Vec::new() };
        let options = plot::Options {
            title: format!("{}: right answers by {x_label}", kind.name),
            x_label: x_label.into(),
            y_label: "right answers, %".into(),
            x,
            marks,
            ..plot::Options::default()
        };
        let chart = plot::line_chart(&series, &options)?;
        let file = format!("{stem}-{name}.svg");
        atomic_write(&folder.join(&file), |w| std::io::Write::write_all(w, chart.svg.as_bytes()))?;
        writeln!(text, "![right answers by {x_label}]({file})\n")?;
    }
    training(&mut text, kind, &runs)?;
    cost(&mut text, &runs)?;
    Ok(atomic_write(path, |w| std::io::Write::write_all(w, text.as_bytes()))?)
}

impl<'a> Run<'a> {
    fn new(answers: &'a Answers) -> Result<Self> {
        let name = match &answers.trained {
            Some((dir, _)) => dir.file_name().map(|name| name.to_string_lossy().into_owned()),
            None => None,
        };
        let records = answers.trained.as_ref().map(|(dir, _)| metrics::read(&dir.join("metrics.jsonl"))).transpose()?;
        let records = records.unwrap_or_default();
        Ok(Self { name: name.unwrap_or_else(|| answers.loaded.name.clone()), answers, records })
    }

    /// Right answers in percent by length.
    fn points(&self) -> Vec<(usize, f64)> {
        self.answers.lines.iter().map(|line| (line.length, 100.0 * line.score.accuracy())).collect()
    }
}

/// One row per model, the paper's below ours; one column per length.
fn by_length(text: &mut String, kind: &Kind, request: &Request<'_>, runs: &[Run<'_>]) -> Result<()> {
    let mut lengths: Vec<usize> = runs.iter().flat_map(|run| &run.answers.lines).map(|line| line.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let device = runs.first().map_or_else(String::new, |run| match run.answers.loaded.model.device().gpu() {
        Some(gpu) => format!("{}, {}", gpu.name(), run.answers.loaded.model.dtype()),
        None => "a CPU".into(),
    });
    writeln!(
        text,
        "Right answers in % by length: {} fresh sequences of each (seed {}), read on {device}; a sequence is read in \
         parts, which pass the state on.\n",
        thousands(request.sequences),
        request.seed
    )?;
    let columns: Vec<String> = lengths.iter().map(|&length| thousands(length as u64)).collect();
    writeln!(text, "| | {} |\n|---|{}", columns.join(" | "), "---:|".repeat(lengths.len()))?;
    let ours = runs.iter().map(|run| (run.name.clone(), run.points()));
    let theirs = kind.paper.models.iter().map(|(name, points)| (format!("the paper's {name}"), points.to_vec()));
    for (name, points) in ours.chain(theirs) {
        let cell = |length: &usize| {
            let point = points.iter().find(|point| point.0 == *length);
            point.map_or_else(|| "-".into(), |point| format!("{:.1}", point.1))
        };
        let cells: Vec<String> = lengths.iter().map(cell).collect();
        writeln!(text, "| {name} | {} |", cells.join(" | "))?;
    }
    Ok(writeln!(text, "\n{}\n", kind.paper.source)?)
}

/// The picture by length.
const LENGTHS: &str = "lengths";

/// The length of training, if it is the same in all runs.
fn training_lengths(runs: &[Run<'_>]) -> Vec<(f64, String)> {
    let mut lengths: Vec<usize> =
        runs.iter().filter_map(|run| Some(run.answers.trained.as_ref()?.1.data.length)).collect();
    lengths.dedup();
    let [length] = lengths[..] else { return Vec::new() };
    vec![(length as f64, "training length".into())]
}

/// For each picture: name, label and scale of x, and lines. By step, and by length if there are several.
fn pictures(kind: &Kind, runs: &[Run<'_>]) -> Vec<(&'static str, &'static str, Scale, Vec<Series>)> {
    let series =
        |name: &str, points: Vec<(f64, f64)>, look| Series { name: name.into(), points, look, ..Series::default() };
    let floats = |points: &[(usize, f64)]| points.iter().map(|&(length, right)| (length as f64, right)).collect();
    let ours = runs.iter().map(|run| series(&run.name, floats(&run.points()), Look::Dots));
    let theirs = kind.paper.models.iter().filter(|(_, points)| points.len() > 1);
    let theirs = theirs.map(|(name, points)| series(&format!("the paper's {name}"), floats(points), Look::Line));
    let steps = |run: &Run<'_>| -> Vec<(f64, f64)> {
        run.records
            .iter()
            .filter_map(|record| Some((record.step as f64, 100.0 * record.figure(metrics::ACCURACY)?)))
            .collect()
    };
    let by_step = runs.iter().map(|run| Series { last_value: true, ..series(&run.name, steps(run), Look::Line) });
    // The paper's first, so that ours are drawn above them.
    let by_length: Vec<Series> = theirs.chain(ours).collect();
    let lengths = Scale::of_lengths(by_length.iter().flat_map(|s| &s.points).map(|point| point.0 as usize));
    [(LENGTHS, "length", lengths, by_length), ("steps", "step", Scale::Linear, by_step.collect())]
        .into_iter()
        .filter_map(|(name, x_label, scale, mut lines): (_, _, _, Vec<Series>)| {
            lines.retain(|series| series.points.len() > 1);
            lines.iter_mut().enumerate().for_each(|(i, series)| series.colour = i);
            let drawn = lines.iter().any(|series| runs.iter().any(|run| run.name == series.name));
            drawn.then_some((name, x_label, scale, lines))
        })
        .collect()
}

/// How the models were trained.
fn training(text: &mut String, kind: &Kind, runs: &[Run<'_>]) -> Result<()> {
    let Some((_, first)) = runs.iter().find_map(|run| run.answers.trained.as_ref()) else { return Ok(()) };
    let base = TrainConfig::parse(kind.settings, kind.name)?;
    let t = &first.train;
    writeln!(
        text,
        "## Training\n\nAt length {} with batches of {}, learning rate {:e} ({}), AdamW with betas {} and {}, eps {:e}, weight \
         decay {}{}; all settings are in `crates/elapid-train/configs/{}.toml`. The model kept is the one with the lowest held-out loss. Seconds are those of \
         training, validations not counted.\n",
        thousands(first.data.length as u64),
        t.batch,
        t.lr,
        format!("{:?}", t.schedule).to_lowercase(),
        t.beta1,
        t.beta2,
        t.eps,
        t.weight_decay,
        if t.label_smoothing > 0.0 { format!(", label smoothing {}", t.label_smoothing) } else { String::new() },
        kind.name,
    )?;
    writeln!(
        text,
        "| | parameters | seed | steps | tokens | seconds | trained by |\n|---|---:|---:|---:|---:|---:|---|"
    )?;
    for run in runs {
        let Some(((_, config), last)) = run.answers.trained.as_ref().zip(run.records.last()) else { continue };
        let differences = config.differences(&base)?.into_iter();
        let own = differences.filter(|one| !one.starts_with("output.") && !one.starts_with("train.seed="));
        let sets: String = own.map(|one| format!(" --set '{one}'")).collect();
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.0} | `elapid train --task {} --seed {}{sets}` |",
            run.name,
            thousands(run.answers.loaded.model.params().count() as u64),
            config.train.seed,
            thousands(last.step),
            thousands(last.tokens),
            last.seconds,
            kind.name,
            config.train.seed,
        )?;
    }
    Ok(writeln!(text)?)
}

/// The cost of reading: shows that memory does not grow with the length.
fn cost(text: &mut String, runs: &[Run<'_>]) -> Result<()> {
    let Some(run) = runs.first() else { return Ok(()) };
    writeln!(
        text,
        "## Cost of reading, {}\n\n| length | answers | peak memory | seconds |\n|---:|---:|---:|---:|",
        run.name
    )?;
    for line in &run.answers.lines {
        let (length, answers) = (thousands(line.length as u64), thousands(line.score.answers));
        writeln!(text, "| {length} | {answers} | {} | {:.1} |", line.peak.map_or("-".into(), bytes), line.seconds)?;
    }
    Ok(())
}
