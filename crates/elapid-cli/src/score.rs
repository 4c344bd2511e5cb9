//! `elapid eval --task`: a model's accuracy on a synthetic task, by length.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use elapid::Device;
use elapid_kernels::os::machine;
use elapid_train::config::TrainConfig;
use elapid_train::tasks::{self, Kind, Reader, Sequences, Split};
use serde_json::json;

use crate::answers::{Answers, Line, Request};
use crate::failure::wrong;
use crate::model::Loaded;
use crate::output::Output;
use crate::report;

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

/// The settings that the model in a directory was trained with, if it was trained on this task.
pub(crate) fn trained(kind: &Kind, dir: Option<&Path>) -> Result<Option<TrainConfig>> {
    Ok(settings(dir)?.filter(|config| config.task.name == kind.name))
}

fn settings(dir: Option<&Path>) -> Result<Option<TrainConfig>> {
    let file = dir.map(|dir| dir.join("config.toml")).filter(|file| file.is_file());
    Ok(file.map(|file| TrainConfig::load(&file)).transpose()?)
}

/// Refuses a model that was trained on something else; one that tells nothing of its training passes.
pub(crate) fn check_trained(kind: &Kind, dir: Option<&Path>) -> Result<()> {
    let trained = match settings(dir)? {
        Some(config) => Some(config.task.name),
        None => dir.is_none_or(|dir| dir.join("tokenizer.json").is_file()).then(|| "none".into()),
    };
    let Some(trained) = trained.filter(|name| name != kind.name) else { return Ok(()) };
    let model = dir.map_or("the model inside elapid".into(), |dir| dir.display().to_string());
    let (on, fix) = match trained.as_str() {
        "none" => ("text", format!("train one by `elapid train --task {}`, or leave out --task", kind.name)),
        other => (other, format!("say --task {other}")),
    };
    Err(wrong(format!("--task {}: {model} was trained on {on}; {fix}", kind.name)))
}

/// Evaluates models, each with its directory if it has one.
pub(crate) fn run(
    request: &Request<'_>,
    kind: &Kind,
    models: Vec<(Loaded, Option<PathBuf>)>,
    output: Output,
) -> Result<()> {
    let models: Vec<Answers> =
        models.into_iter().map(|(loaded, dir)| answers(request, kind, loaded, dir, output)).collect::<Result<_>>()?;
    if let Some(path) = request.report {
        report::write(path, kind, request, &models)?;
    }
    let object = json!({
        "task": kind.name,
        "seed": request.seed,
        "models": models.iter().map(Answers::object).collect::<Vec<_>>(),
    });
    output.result(&object, || {
        let texts: Vec<String> = models.iter().map(|model| model.text(kind)).collect();
        texts.join("\n")
    })
}

fn answers(
    request: &Request<'_>,
    kind: &Kind,
    loaded: Loaded,
    dir: Option<PathBuf>,
    output: Output,
) -> Result<Answers> {
    let trained = trained(kind, dir.as_deref())?;
    let config = trained.clone().map_or_else(|| TrainConfig::parse(kind.settings, kind.name), Ok)?;
    let trained = dir.zip(trained);
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
        if !score.nats.is_finite() || !score.lead.is_finite() {
            bar.finish_and_clear();
            let tokens: Vec<u32> = sequences.sequence(0).map(|(token, _)| token).take(Reader::CHUNK).collect();
            return Err(loaded.not_finite(&format!("logits at length {length} are"), &tokens)?);
        }
        lines.push(Line { length, score, seconds: started.elapsed().as_secs_f64(), peak: peak(device) });
    }
    bar.finish_and_clear();
    Ok(Answers { loaded, trained, lines })
}

/// Resets the measurement of peak memory, where the system can.
fn forget_peak(device: Device) {
    if device == Device::Cpu {
        machine::forget_peak();
    }
}

/// Peak memory since then, in bytes: resident memory of the process, or memory of tensors on a GPU.
fn peak(device: Device) -> Option<u64> {
    match device.gpu() {
        Some(gpu) => Some(gpu.memory().peak as u64),
        None => machine::peak_memory(),
    }
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
