//! Answers of a model to a synthetic task.

use std::path::{Path, PathBuf};

use elapid_train::config::TrainConfig;
use elapid_train::tasks::{Kind, Score};
use serde_json::{Value, json};

use crate::model::Loaded;
use crate::output::{bytes, table, thousands};

const HEADING: [&str; 6] = [">length", ">sequences", ">answers", ">right", ">peak memory", ">seconds"];

/// The request of `--task`.
pub(crate) struct Request<'a> {
    pub(crate) lengths: Option<&'a [usize]>,
    pub(crate) sequences: u64,
    pub(crate) seed: u64,
    pub(crate) chunk: Option<usize>,
    pub(crate) report: Option<&'a Path>,
}

/// A model and what it answered.
pub(crate) struct Answers {
    pub(crate) loaded: Loaded,
    /// Its directory and training settings, if it was trained on this task.
    pub(crate) trained: Option<(PathBuf, TrainConfig)>,
    pub(crate) lines: Vec<Line>,
}

/// The answers at one length.
pub(crate) struct Line {
    pub(crate) length: usize,
    pub(crate) score: Score,
    pub(crate) seconds: f64,
    pub(crate) peak: Option<u64>,
}

impl Answers {
    pub(crate) fn object(&self) -> Value {
        json!({ "model": self.loaded.name, "lengths": self.lines.iter().map(Line::object).collect::<Vec<_>>() })
    }

    pub(crate) fn text(&self, kind: &Kind) -> String {
        let cells: Vec<Vec<String>> = self.lines.iter().map(Line::cells).collect();
        format!("{}, {}\n\n{}", kind.name, self.loaded.name, table(&HEADING, &cells))
    }
}

impl Line {
    pub(crate) fn object(&self) -> Value {
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
