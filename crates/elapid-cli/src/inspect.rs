//! `elapid inspect`: what a model is made of.

use std::path::Path;

use anyhow::Result;
use elapid::checkpoint::Checkpoint;
use elapid::config::ModelConfig;
use elapid::settings::toml_value;
use elapid::tokenizer::Tokenizer;
use elapid::{LanguageModel, embedded};
use elapid_kernels::packed::{Form, Packed};
use serde_json::{Value, json};

use crate::model::{self, ModelArgument, Place};
use crate::output::{Output, bytes, pairs, scaled, table, thousands};
use crate::trace;

const EXAMPLES: &str = "\
Examples:
  elapid inspect
      the model inside elapid
  elapid inspect --model DIR
      a directory; reads no weights, so it is fast at any size
  elapid inspect --model-size 130m
      a published size (130m 370m 790m 1.4b 2.8b), no weights needed
  elapid inspect --model-size 256x4 --vocab 256 --json
  elapid inspect --trace delta --model DIR
      Δ of every layer over a sequence of selective copying, with a picture in delta.svg and delta.png
  elapid inspect --trace delta --prompt \"ROMEO: But soft\"
      the same over a text

Δ is the step size of a channel at a position. Near 0 the state stays unchanged and the input is skipped. A large Δ \
forgets the state and absorbs the input. A model that has learned selective copying takes large steps at the tokens to \
copy and small ones at noise; the ratio of the two measures how well it selects.";

/// Which model.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArgument,
    /// Inspect a size without a model: a published one, or `<d_model>x<layers>`
    #[arg(long, value_name = "SIZE", conflicts_with = "model")]
    model_size: Option<String>,
    /// Vocabulary size for --model-size
    #[arg(long, value_name = "N", requires = "model_size")]
    vocab: Option<usize>,
    #[command(flatten)]
    trace: trace::TraceArguments,
}

/// A tensor of the model.
struct Row {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    count: usize,
    decay: bool,
}

pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    if arguments.trace.asked() {
        return trace::run(&arguments.trace, &arguments.model, place, output);
    }
    let (name, config, checkpoint, tokenizer) = match (&arguments.model_size, &arguments.model.model) {
        (Some(size), _) => {
            let mut config = ModelConfig::mamba1(size)?;
            config.vocab_size = arguments.vocab.unwrap_or(config.vocab_size);
            (size.clone(), config, None, None)
        }
        (_, Some(dir)) => {
            let checkpoint = Checkpoint::open(dir)?;
            (dir.display().to_string(), checkpoint.config.clone(), Some(checkpoint), tokenizer(dir, output))
        }
        _ => {
            let checkpoint = embedded::checkpoint()?;
            let config = checkpoint.config.clone();
            ("the model inside elapid".to_owned(), config, Some(checkpoint), Some(describe(&embedded::tokenizer())))
        }
    };
    if let Some(checkpoint) = &checkpoint {
        checkpoint.warnings().iter().for_each(|line| output.warn(format_args!("warning: {line}")));
    }
    let model = skeleton(config, checkpoint.as_ref())?;
    let rows = rows(&model, checkpoint.as_ref());
    let config = model.config();
    let (cost, state) = (model.cost(0), 4 * model.cost(0).state);
    let parameters = model.params().count() as u64;
    let stored: u64 = rows.iter().map(Row::bytes).sum();
    // A token reads every parameter once, and reads and writes the state, all in f32.
    let traffic = 4 * (cost.params + 2 * cost.state);
    let object = json!({
        "model": name,
        "config": config.to_hf_json(),
        "parameters": parameters,
        "parameter_bytes": stored,
        "flops_per_token": cost.flops,
        "bytes_per_token": traffic,
        "state_bytes": state,
        "state_numbers": state / 4,
        "tokenizer": tokenizer,
        "tensors": rows.iter().map(Row::object).collect::<Vec<_>>(),
    });
    output.result(&object, || {
        let mut lines = vec![("model".to_owned(), name.clone())];
        lines.extend(config_lines(config));
        let mut line = |label: &str, value: String| lines.push((label.to_owned(), value));
        line("tokenizer", tokenizer.clone().unwrap_or_else(|| "none".into()));
        line("parameters", format!("{}, {}", thousands(parameters), bytes(stored)));
        line("a token costs", format!("{}, {} moved (f32)", scaled(cost.flops as f64, "FLOP"), bytes(traffic)));
        let later = 4 * model.cost(1023).state;
        let length = match later == state {
            true => "at any length of text".to_owned(),
            false => format!("after one token, {} after 1,024", bytes(later)),
        };
        line("a state holds", format!("{} values, {} {length}", thousands(state / 4), bytes(state)));
        let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
        format!("{}\n{}", pairs(&lines), table(&["tensor", ">shape", "type", ">numbers", "decay"], &cells))
    })
}

/// The model's structure, checked against the checkpoint's tensors.
fn skeleton(config: ModelConfig, checkpoint: Option<&Checkpoint>) -> Result<LanguageModel> {
    if let Some(checkpoint) = checkpoint {
        checkpoint.check_complete(&LanguageModel::outline(&config)?)?;
    }
    Ok(LanguageModel::without_values(config)?)
}

fn rows(model: &LanguageModel, checkpoint: Option<&Checkpoint>) -> Vec<Row> {
    let dtype = |name: &str| checkpoint.and_then(|checkpoint| checkpoint.dtype(name));
    let row = |param: &elapid::params::Param| Row {
        name: param.name.clone(),
        shape: param.value.shape().to_vec(),
        dtype: match checkpoint.and_then(|checkpoint| checkpoint.form_of(&param.name)) {
            Some(form) => form.name().to_owned(),
            None => dtype(&param.name).map_or("F32".to_owned(), |dtype| dtype.to_string()),
        },
        count: param.value.len(),
        decay: param.traits.decay,
    };
    model.params().iter().map(|(_, param)| row(param)).collect()
}

impl Row {
    /// Bytes of its values in the file.
    fn bytes(&self) -> u64 {
        let packed = match (self.dtype.parse::<Form>(), self.shape.as_slice()) {
            (Ok(form), &[n, k]) => Packed::size(form, (n, k)),
            _ => None,
        };
        let width = match self.dtype.as_str() {
            "F16" | "BF16" => 2,
            "F64" => 8,
            _ => 4,
        };
        packed.map_or(self.count as u64 * width, |bytes| bytes as u64)
    }

    fn object(&self) -> Value {
        json!({
            "name": self.name,
            "shape": self.shape,
            "dtype": self.dtype,
            "count": self.count,
            "decay": self.decay,
        })
    }

    fn cells(&self) -> Vec<String> {
        let shape = self.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        let decay = if self.decay { "yes" } else { "no" };
        vec![self.name.clone(), shape, self.dtype.to_lowercase(), thousands(self.count as u64), decay.into()]
    }
}

/// A description of the tokenizer in a directory.
fn tokenizer(dir: &Path, output: Output) -> Option<String> {
    match model::tokenizer(dir, output) {
        Ok(tokenizer) => tokenizer.as_ref().map(describe),
        Err(error) => Some(format!("unusable: {error}")),
    }
}

fn describe(tokenizer: &Tokenizer) -> String {
    let kind = if tokenizer.is_byte() { "bytes" } else { "Hugging Face" };
    format!("{kind}, {} ids", thousands(tokenizer.vocab_size() as u64))
}

fn config_lines(config: &ModelConfig) -> Vec<(String, String)> {
    let model = &config.stack.model;
    let padded = match config.padded_vocab_size() {
        padded if padded == config.vocab_size => String::new(),
        padded => format!(", padded to {}", thousands(padded as u64)),
    };
    let head = if model.tie_embeddings { "the embedding, transposed" } else { "its own" };
    let line = |label: &str, value: String| (label.to_owned(), value);
    let mut lines = vec![line("width", thousands(config.d_model() as u64))];
    lines.extend(config.stack.describe());
    let norm = toml_value(&model.norm);
    lines.push(line("norm", format!("{}, epsilon {:e}", norm.trim_matches('"'), model.norm_eps)));
    lines.push(line("vocabulary", format!("{}{padded}; head: {head}", thousands(config.vocab_size as u64))));
    for (name, named) in &config.stack.named {
        let settings = named.layer.fields().iter().zip(named.layer.values());
        let shown = settings.filter(|(field, _)| !field.init).map(|(field, value)| format!("{} {value}", field.name));
        lines.push((name.clone(), shown.collect::<Vec<_>>().join(", ")));
    }
    lines
}
