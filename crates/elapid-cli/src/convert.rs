//! `elapid convert`: a model with its weights in another form.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use elapid::LanguageModel;
use elapid::checkpoint::{Checkpoint, SaveDtype, SaveOptions};
use elapid::files;
use elapid_kernels::packed::Form;
use serde_json::json;

use crate::failure::wrong;
use crate::model;
use crate::output::{Output, bytes, number, pairs, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid convert --model DIR --weights int8 --output DIR-int8
      a quarter of the size, nearly the same loss
  elapid convert --model DIR --weights int4 --output DIR-int4
      an eighth
  elapid convert --model DIR --weights int4 --calibrate book.txt --output DIR-int4
  elapid convert --model DIR --weights f32 --output DIR-f32
      numbers again, for other programs

A converted model is used like any other: `elapid generate --model DIR-int8`. It opens without being converted again, \
and takes no more memory than its file. On a GPU its weights are widened. Other programs read it after `--weights \
f32`.";

/// What to convert.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Directory with config.json and model.safetensors
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Form of the weights: f32, bf16, int8 or int4
    #[arg(long, value_name = "FORM")]
    weights: Form,
    /// A text like those that the model will read: int4 is rounded so that the model stays near on it
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// Files beside the weights that belong to a model.
const BESIDE: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

/// The most tokens of a text that are read to calibrate.
const CALIBRATION: usize = 16_384;

/// The beginning of a text, in the model's tokens.
fn tokens(model: &Path, text: &Path, output: Output) -> Result<Vec<u32>> {
    let Some(tokenizer) = model::tokenizer(model, output)? else {
        return Err(wrong(format!("{}: no tokenizer.json there, which --calibrate needs", model.display())));
    };
    let mut ids = tokenizer.encode(&files::read(text, files::limit::TEXT)?)?;
    if ids.is_empty() {
        return Err(wrong(format!("--calibrate {}: wanted text, got none", text.display())));
    }
    ids.truncate(CALIBRATION);
    Ok(ids)
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<()> {
    let Arguments { model: from, weights: form, output: to, calibrate } = arguments;
    let started = Instant::now();
    if to.exists() && to.canonicalize()? == from.canonicalize()? {
        return Err(wrong(format!("--output {}: wanted another directory than --model", to.display())));
    }
    if calibrate.is_some() && *form != Form::Int4 {
        return Err(wrong(format!(
            "--calibrate: wanted it with --weights int4, got it with {form}, which needs no text"
        )));
    }
    let checkpoint = Checkpoint::open(from)?;
    checkpoint.warnings().iter().for_each(|line| output.warn(format_args!("warning: {line}")));
    let model = match (form, calibrate) {
        // As numbers, which every program reads.
        (Form::F32, _) => LanguageModel::load(&checkpoint)?,
        (form, Some(text)) => {
            let model = LanguageModel::load(&checkpoint)?;
            let text = tokens(from, text, output)?;
            let bar = output.bar("calibrating", text.len() as u64);
            let packed = model.with_weights_for(*form, &text, |more| bar.inc(more as u64))?;
            bar.finish_and_clear();
            packed
        }
        (form, None) => LanguageModel::load_as(&checkpoint, Some(*form))?,
    };
    let options = SaveOptions { dtype: SaveDtype::F32, max_shard_bytes: u64::MAX, ..SaveOptions::default() };
    model.save(to, &options)?;
    for name in BESIDE {
        let file = from.join(name);
        if file.is_file() {
            std::fs::copy(&file, to.join(name))
                .map_err(|error| wrong(format!("cannot copy {} to {}: {error}", file.display(), to.display())))?;
        }
    }
    let (numbers, size) = (model.params().count() as u64, model.params().bytes());
    let seconds = started.elapsed().as_secs_f64();
    let object = json!({
        "model": from, "output": to, "weights": form.name(), "parameters": numbers, "bytes": size,
        "bits_per_parameter": 8.0 * size as f64 / numbers as f64, "seconds": seconds,
    });
    output.result(&object, || {
        pairs(&[
            ("model", format!("{}, {} parameters", from.display(), thousands(numbers))),
            ("weights", format!("{form}, {} bits a parameter", number(8.0 * size as f64 / numbers as f64))),
            ("written", format!("{} to {} in {} s", bytes(size), to.display(), number(seconds))),
        ])
    })
}
