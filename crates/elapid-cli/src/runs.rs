//! Training runs as `elapid compare` and `elapid plot` read them: their figures, and the curves of these.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use elapid_train::metrics::{self, Record};
use elapid_train::plot::Series;

use crate::failure::wrong;

/// A run, from its directory.
pub(crate) struct Run {
    /// The name of its directory.
    pub(crate) name: String,
    pub(crate) records: Vec<Record>,
}

/// What a horizontal axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    /// Steps of the optimiser
    Steps,
    /// Tokens trained on
    Tokens,
    /// Seconds of training, without validations
    Seconds,
}

impl By {
    pub(crate) fn name(self) -> &'static str {
        match self {
            By::Steps => "steps",
            By::Tokens => "tokens",
            By::Seconds => "seconds",
        }
    }

    pub(crate) fn of(self, record: &Record) -> f64 {
        match self {
            By::Steps => record.step as f64,
            By::Tokens => record.tokens as f64,
            By::Seconds => record.seconds,
        }
    }
}

impl Run {
    /// The runs of some directories. Those with the same name have their paths as names.
    pub(crate) fn open_all(dirs: &[PathBuf]) -> Result<Vec<Self>> {
        let name = |dir: &Path| dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let open = |dir: &PathBuf| {
            let records = metrics::read(&dir.join("metrics.jsonl"))?;
            let own = name(dir).filter(|own| dirs.iter().filter(|dir| name(dir).as_ref() == Some(own)).count() == 1);
            Ok(Self { name: own.unwrap_or_else(|| dir.display().to_string()), records })
        };
        dirs.iter().map(open).collect()
    }

    /// The name without its seed.
    pub(crate) fn kind(&self) -> &str {
        self.name.rsplit_once("-seed-").map_or(&self.name, |(kind, _)| kind)
    }

    pub(crate) fn has(&self, figure: &str) -> bool {
        self.figures().contains(figure)
    }

    /// The names of all figures of its records.
    fn figures(&self) -> BTreeSet<&str> {
        self.records.iter().flat_map(Record::all).map(|(name, _)| name).collect()
    }

    /// A figure where the run has it.
    ///
    /// # Errors
    /// If it has it nowhere.
    pub(crate) fn points(&self, by: By, figure: &str) -> Result<Vec<(f64, f64)>> {
        let value = |record: &Record| record.all().find(|(name, _)| *name == figure).map(|(_, value)| value);
        let points: Vec<(f64, f64)> =
            self.records.iter().filter_map(|record| Some((by.of(record), value(record)?))).collect();
        if points.is_empty() {
            let has = self.figures().into_iter().collect::<Vec<_>>().join(", ");
            let has = if has.is_empty() { "it has no records".into() } else { format!("it has {has}") };
            return Err(wrong(format!("{}: no `{figure}` in its metrics.jsonl; {has}", self.name)));
        }
        Ok(points)
    }
}

/// A figure on an axis.
pub(crate) fn label(figure: &str) -> String {
    match figure {
        "loss" => "training loss, nats per token".into(),
        metrics::VAL_LOSS => "held-out loss, nats per token".into(),
        "lr" => "learning rate".into(),
        "grad_norm" => "norm of the gradients".into(),
        "tokens" | "seconds" | "tokens_per_second" => figure.replace('_', " "),
        _ => format!("{}, held out", figure.replace('_', " ")),
    }
}

/// The curves of runs. Those whose names differ only in the seed are drawn in one colour.
pub(crate) fn curves<'a>(runs: impl Iterator<Item = (&'a Run, Vec<(f64, f64)>)>) -> Vec<Series> {
    let mut kinds: Vec<&str> = Vec::new();
    let curve = |(run, points): (&'a Run, Vec<(f64, f64)>)| {
        let known = kinds.iter().position(|kind| *kind == run.kind());
        let colour = known.unwrap_or(kinds.len());
        let name = if known.is_none() { run.kind().to_owned() } else { String::new() };
        if known.is_none() {
            kinds.push(run.kind());
        }
        Series { name, points, colour, ..Series::default() }
    };
    runs.map(curve).collect()
}
