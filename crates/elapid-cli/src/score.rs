//! `elapid eval --task`: right answers of a model to a synthetic task, by length.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use elapid::Device;
use elapid::files::atomic_write;
use elapid_train::config::TrainConfig;
use elapid_train::metrics;
use elapid_train::plot::{self, Look, Series};
use elapid_train::tasks::{self, Kind, Reader, Score, Sequences, Split};
use serde_json::{Value, json};

use crate::failure::wrong;
use crate::model::Loaded;
use crate::output::{Output, bytes, table, thousands};

/// What `--task` asks for.
pub(crate) struct Request<'a> {
    pub(crate) task: &'a str,
    pub(crate) lengths: Option<&'a [usize]>,
    pub(crate) sequences: u64,
    pub(crate) seed: u64,
    pub(crate) chunk: Option<usize>,
    /// The model's directory, whose config.toml has the sizes of the task.
    pub(crate) dir: Option<&'a Path>,
    pub(crate) report: Option<&'a Path>,
}

/// The answers at one length.
struct Line {
    length: usize,
    score: Score,
    seconds: f64,
    peak: Option<u64>,
}

/// `64..1024` (doubled from the first to the last), `64,100`, or one length.
pub(crate) fn lengths(text: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is not a length"));
    let Some((from, to)) = text.split_once("..") else {
        return text.split(',').map(number).collect();
    };
    let (from, to) = (number(from)?, number(to)?);
    if from == 0 || from > to {
        return Err("wanted FROM..TO with 1 <= FROM <= TO".into());
    }
    Ok(std::iter::successors(Some(from), |length| length.checked_mul(2)).take_while(|&length| length <= to).collect())
}

pub(crate) fn run(request: &Request<'_>, loaded: &Loaded, output: Output) -> Result<()> {
    let kind = Kind::find(request.task)?;
    let trained = request.dir.map(|dir| dir.join("config.toml")).filter(|file| file.is_file());
    let trained = trained.map(|file| TrainConfig::load(&file)).transpose()?;
    let trained = trained.filter(|config| config.task.name == kind.name);
    let config = trained.clone().map_or_else(|| TrainConfig::parse(kind.settings, kind.name), Ok)?;
    let Some(task) = tasks::open(&config.task)? else { unreachable!("its name is that of a task") };
    let own = [config.data.length];
    let lengths = request.lengths.unwrap_or(&own);
    let device = loaded.model.device();
    let mut reader = Reader::on(device);
    reader.chunk = request.chunk.unwrap_or(reader.chunk);
    let all: Vec<Sequences> = lengths
        .iter()
        .map(|&length| Sequences::new(task.clone(), length, request.seed, Split::Test))
        .collect::<Result<_, _>>()
        .map_err(|unfit| wrong(format!("--lengths: wanted {}, got {}", unfit.wanted, unfit.got)))?;
    let positions: u64 = all.iter().map(|sequences| sequences.positions() as u64 * request.sequences).sum();
    let bar = output.bar(kind.name, positions);
    let mut lines = Vec::with_capacity(all.len());
    for (&length, sequences) in lengths.iter().zip(&all) {
        forget_peak(device);
        let started = Instant::now();
        let score = reader.score(&loaded.model, sequences, 0..request.sequences, |more| bar.inc(more as u64))?;
        lines.push(Line { length, score, seconds: started.elapsed().as_secs_f64(), peak: peak(device) });
    }
    bar.finish_and_clear();
    if let Some(path) = request.report {
        report(path, kind, request, loaded, trained.as_ref(), &lines)?;
    }
    let object = json!({
        "task": kind.name,
        "model": loaded.name,
        "seed": request.seed,
        "lengths": lines.iter().map(Line::object).collect::<Vec<_>>(),
    });
    output.result(&object, || {
        let cells: Vec<Vec<String>> = lines.iter().map(Line::cells).collect();
        format!("{}, {}\n\n{}", kind.name, loaded.name, table(&HEADING, &cells))
    })
}

const HEADING: [&str; 6] = [">length", ">sequences", ">answers", ">right", ">peak memory", ">seconds"];

impl Line {
    fn object(&self) -> Value {
        json!({
            "length": self.length,
            "sequences": self.score.sequences,
            "answers": self.score.answers,
            "right": self.score.right,
            "accuracy": self.score.accuracy(),
            "loss": self.score.loss(),
            "peak_bytes": self.peak,
            "seconds": self.seconds,
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            thousands(self.length as u64),
            thousands(self.score.sequences),
            thousands(self.score.answers),
            format!("{:.2} %", 100.0 * self.score.accuracy()),
            self.peak.map_or("-".into(), bytes),
            format!("{:.1}", self.seconds),
        ]
    }
}

/// Writes the results as Markdown, with pictures beside it.
fn report(
    path: &Path,
    kind: &Kind,
    request: &Request<'_>,
    loaded: &Loaded,
    trained: Option<&TrainConfig>,
    lines: &[Line],
) -> Result<()> {
    let stem = path.file_stem().map_or_else(|| kind.name.into(), |stem| stem.to_string_lossy().into_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| wrong(format!("cannot make {}: {error}", folder.display())))?;
    let config = loaded.model.config();
    let parameters = thousands(loaded.model.params().count() as u64);
    let mut text = format!("# {}: answers by length\n\n", kind.name);
    writeln!(text, "{} layers of width {}, {parameters} parameters.", config.n_layer, config.d_model)?;
    let mut pictures = Vec::new();
    if let Some((train, dir)) = trained.zip(request.dir) {
        let records = metrics::read(&dir.join("metrics.jsonl"))?;
        if let Some(last) = records.last() {
            let t = &train.train;
            writeln!(
                text,
                "Trained at length {} with batches of {}, learning rate {:e} ({:?}), weight decay {}, seed {}: {} steps, \
                 {} tokens, {:.0} seconds.",
                thousands(train.data.length as u64),
                t.batch,
                t.lr,
                t.schedule,
                t.weight_decay,
                t.seed,
                thousands(last.step),
                thousands(last.tokens),
                last.seconds
            )?;
        }
        let points = records.iter().filter_map(|record| Some((record.step as f64, 100.0 * record.accuracy?))).collect();
        pictures.push(("steps", "step", false, Series { points, look: Look::Line, ..Series::default() }));
    }
    let points = lines.iter().map(|line| (line.length as f64, 100.0 * line.score.accuracy())).collect();
    pictures.push(("lengths", "length", true, Series { points, look: Look::Dots, ..Series::default() }));
    writeln!(
        text,
        "Evaluated on {}, {} fresh sequences a length (seed {}), the state carried from part to part of a sequence.\n",
        loaded.model.device(),
        thousands(request.sequences),
        request.seed
    )?;
    writeln!(text, "{}\n", kind.paper)?;
    writeln!(text, "| {} |", HEADING.map(|title| title.trim_start_matches('>')).join(" | "))?;
    writeln!(text, "|{}", "---:|".repeat(HEADING.len()))?;
    for line in lines {
        writeln!(text, "| {} |", line.cells().join(" | "))?;
    }
    for (name, x_label, x_log, series) in pictures {
        if series.points.len() < 2 {
            continue;
        }
        let options = plot::Options {
            title: format!("{}: right answers by {x_label}", kind.name),
            x_label: x_label.into(),
            y_label: "right answers, %".into(),
            x_log,
            ..plot::Options::default()
        };
        let chart = plot::line_chart(&[series], &options)?;
        let file = format!("{stem}-{name}.svg");
        atomic_write(&folder.join(&file), |w| std::io::Write::write_all(w, chart.svg.as_bytes()))?;
        writeln!(text, "\n![right answers by {x_label}]({file})")?;
    }
    Ok(atomic_write(path, |w| std::io::Write::write_all(w, text.as_bytes()))?)
}

/// Begins to measure the peak of memory anew, where the system can.
fn forget_peak(device: Device) {
    if device == Device::Cpu {
        // Linux: 5 sets the peak of resident memory to what is resident now. Elsewhere there is no such file.
        std::fs::write("/proc/self/clear_refs", "5").ok();
    }
}

/// Most memory held since then, in bytes: resident memory of the process, or what tensors took on a GPU.
fn peak(device: Device) -> Option<u64> {
    if let Some(gpu) = device.gpu() {
        return Some(gpu.memory().peak as u64);
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_doubled_or_listed() {
        assert_eq!(lengths("64..512").unwrap(), [64, 128, 256, 512]);
        assert_eq!(lengths("3..11").unwrap(), [3, 6]);
        assert_eq!(lengths("5..5").unwrap(), [5]);
        assert_eq!(lengths("7,100").unwrap(), [7, 100]);
        for wrong in ["", "a", "0..8", "9..8", "4..", "1,,2", "-3"] {
            assert!(lengths(wrong).is_err(), "{wrong}");
        }
    }
}
