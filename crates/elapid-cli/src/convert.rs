//! `elapid convert`: a model with its weights in another form.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use elapid::LanguageModel;
use elapid::checkpoint::{Checkpoint, SaveDtype, SaveOptions};
use elapid_kernels::packed::Form;
use serde_json::json;

use crate::failure::wrong;
use crate::output::{Output, bytes, number, pairs, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid convert --model DIR --weights int8 --output DIR-int8      a quarter of the size, nearly the same loss
  elapid convert --model DIR --weights int4 --output DIR-int4      an eighth
  elapid convert --model DIR --weights f32 --output DIR-f32        numbers again, for other programs

A converted model is used like any other: `elapid generate --model DIR-int8`. It opens without being converted again, and
takes no more memory than its file. On a GPU its weights are widened. Other programs read it after `--weights f32`.";

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

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<()> {
    let Arguments { model: from, weights: form, output: to } = arguments;
    let started = Instant::now();
    if to.exists() && to.canonicalize()? == from.canonicalize()? {
        return Err(wrong(format!("--output {}: wanted another directory than --model", to.display())));
    }
    let checkpoint = Checkpoint::open(from)?;
    checkpoint.warnings().iter().for_each(|line| output.warn(format_args!("warning: {line}")));
    let model = match form {
        // As numbers, which every program reads.
        Form::F32 => LanguageModel::load(&checkpoint)?,
        form => LanguageModel::load_as(&checkpoint, Some(*form))?,
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
