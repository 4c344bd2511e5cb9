//! `metrics.jsonl`: one line per logged step, append-only.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use elapid::fault;
use elapid::files::{self, atomic_write, limit};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// The figures of training after a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimiser steps done.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Seconds of training so far, over all resumed runs.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
    /// Training loss in nats per token, mean over the steps since the last record.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Learning rate of the step.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Norm of all gradients before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Tokens per second since the last record.
    #[serde(deserialize_with = "number")]
    pub tokens_per_second: f64,
    /// Further figures by name: those of a validation after this step, and those of the objective.
    #[serde(flatten, deserialize_with = "figures")]
    pub figures: BTreeMap<String, f64>,
}

/// A name and a value.
pub type Figure = (&'static str, f64);

/// The held-out loss.
pub const VAL_LOSS: &str = "val_loss";
/// The same in bits per byte of text.
pub const BITS_PER_BYTE: &str = "bits_per_byte";
/// Share of right answers on held-out data.
pub const ACCURACY: &str = "accuracy";
/// 1 minus the mean squared error over the variance of the held-out values: 1 is perfect, 0 is as good as the mean.
pub const R2: &str = "r2";

impl Record {
    /// A further figure by its name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    /// All figures of the record but the step, by their names in the file.
    pub fn all(&self) -> impl Iterator<Item = (&str, f64)> {
        let own = [
            ("tokens", self.tokens as f64),
            ("seconds", self.seconds),
            ("loss", self.loss),
            ("lr", self.lr),
            ("grad_norm", self.grad_norm),
            ("tokens_per_second", self.tokens_per_second),
        ];
        own.into_iter().chain(self.figures.iter().map(|(name, value)| (name.as_str(), *value)))
    }
}

/// JSON has no NaN and no infinity: they are written as `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|x| x.unwrap_or(f64::NAN))
}

/// All other numeric fields; later versions may write more.
fn figures<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let fields = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
    Ok(fields.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect())
}

/// Appends records to `metrics.jsonl`.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// Opens the metrics of a run that has done `step` steps, 0 for a new one. Lines about later steps are removed. If
    /// several lines are about the same step, the last one stays.
    ///
    /// # Errors
    /// If the file cannot be read or written, or a line (other than a truncated last one) is not a record.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        if path.exists() {
            let old = files::read(path, limit::TEXT)?;
            let lines = lines(&old, path)?;
            let last: HashMap<u64, usize> = lines.iter().enumerate().map(|(i, (record, _))| (record.step, i)).collect();
            let stays =
                |i: usize, record: &Record| step > 0 && record.step <= step && last.get(&record.step) == Some(&i);
            let kept: Vec<u8> = lines
                .iter()
                .enumerate()
                .filter(|(i, (record, _))| stays(*i, record))
                .flat_map(|(_, (_, line))| line.iter().copied().chain([b'\n']))
                .collect();
            if kept != old {
                atomic_write(path, |w| w.write_all(&kept))?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("write", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Appends a record. When this returns, the whole line is in the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        fault::operation();
        let line = serde_json::to_string(record).map_err(io::Error::other);
        line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()))
            .map_err(Error::io("write", &self.path))
    }

    /// Flushes all records to disk, so that a checkpoint is never ahead of them.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// The records of a file in order of writing. A truncated last line is left out.
///
/// # Errors
/// If the file cannot be read, or another line is not a record; the error has its number.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let bytes = files::read(path, limit::TEXT)?;
    Ok(lines(&bytes, path)?.into_iter().map(|(record, _)| record).collect())
}

fn lines<'a>(bytes: &'a [u8], path: &Path) -> Result<Vec<(Record, &'a [u8])>> {
    // Only a line that ends in a newline is complete.
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    bytes[..whole]
        .split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(i, line)| match serde_json::from_slice(line) {
            Ok(record) => Ok((record, line)),
            Err(e) => Err(Error::Metrics { path: path.to_owned(), line: i + 1, what: e.to_string() }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::tempdir;

    use super::*;

    fn record(step: u64) -> Record {
        let figures = [(VAL_LOSS, 2.0)].into_iter().filter(|_| step.is_multiple_of(2));
        let figures = figures.map(|(name, value)| (name.to_owned(), value)).collect();
        Record { step, loss: 1.5, figures, ..Record::default() }
    }

    fn steps(path: &Path) -> Vec<u64> {
        read(path).unwrap().iter().map(|record| record.step).collect()
    }

    #[test]
    fn records_come_back() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        for step in 1..4 {
            writer.write(&record(step)).unwrap();
            assert_eq!(read(&path).unwrap().last(), Some(&record(step)), "at once");
        }
        assert!(!fs::read_to_string(&path).unwrap().lines().next().unwrap().contains("val_loss"));
    }

    #[test]
    fn figures_have_any_names_and_losses_that_are_not_finite_are_none() {
        let line = br#"{"step": 2, "tokens": 8, "seconds": 1.5, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 5.0, "val_loss": null, "balance": 0.5, "accuracy": 1, "note": "x", "loss": null}
"#;
        let (record, _) = &lines(line, Path::new("x")).unwrap()[0];
        assert_eq!(record.figures, [("accuracy".to_owned(), 1.0), ("balance".to_owned(), 0.5)].into());
        assert_eq!((record.step, record.figure("balance"), record.figure(VAL_LOSS)), (2, Some(0.5), None));
    }

    #[test]
    fn a_resumed_run_drops_later_steps() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        (1..=9).for_each(|step| writer.write(&record(step)).unwrap());
        // The run was killed in the middle of a line.
        writer.file.write_all(b"{\"step\": 10, \"lo").unwrap();
        assert_eq!(steps(&path).len(), 9);
        let mut writer = Writer::open(&path, 5).unwrap();
        writer.write(&record(6)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        drop(Writer::open(&path, 0).unwrap());
        assert_eq!(steps(&path), [0; 0], "a new run begins anew");
    }

    #[test]
    fn losses_that_are_not_finite_are_kept() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let all = Record { loss: nan, grad_norm: inf, seconds: inf, lr: nan, tokens_per_second: inf, ..record(1) };
        writer.write(&all).unwrap();
        let back = &read(&path).unwrap()[0];
        let numbers = [back.loss, back.grad_norm, back.seconds, back.lr, back.tokens_per_second];
        assert!(numbers.iter().all(|x| x.is_nan()), "{back:?}");
        // A resumed run overwrites it.
        Writer::open(&path, 1).unwrap().write(&record(2)).unwrap();
        assert_eq!(steps(&path), [1, 2]);
    }

    #[test]
    fn each_step_is_there_once() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).unwrap();
        [1, 2, 2, 3, 1, 4].into_iter().for_each(|step| writer.write(&record(step)).unwrap());
        drop(Writer::open(&path, 3).unwrap());
        let mut found = steps(&path);
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3]);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "\n{\"step\": 1}\n").unwrap();
        for error in [read(&path).unwrap_err(), Writer::open(&path, 3).unwrap_err()] {
            assert!(error.to_string().contains("metrics.jsonl:2: not a record"), "{error}");
        }
        assert!(read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
        assert!(Writer::open(&dir.path().join("no/such"), 0).unwrap_err().to_string().contains("no/such"));
    }
}
