//! `elapid eval`: how well a model predicts a text, or lists of tokens.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use elapid::DType;
use elapid::evaluate::{self, Reader, Summary};
use elapid::files::{self, limit};
use elapid_train::data::{Corpus, HeldOut, JSONL_FIELD, Options, Source, TokenStream};
use elapid_train::tasks::Kind;
use serde_json::{Value, json};

use crate::answers::Request;
use crate::failure::wrong;

use crate::model::{Loaded, ModelArgument, Place, WeightsArgument};
use crate::output::{Output, number, pairs, thousands};
use crate::score;

const EXAMPLES: &str = "\
Examples:
  elapid eval
      the model inside elapid on the held-out tenth of tiny Shakespeare
  elapid eval --model DIR --data book.txt
      a whole text as one stream, with the state carried from the beginning
  elapid eval --model DIR --data book.txt --val-fraction 0.1 --length 1024 --batch 8
      its last tenth, in windows of 1024 tokens, each from a zero state
  elapid eval --model DIR --tokens lists.json --per-token --json
      lists of token ids, [[1,2,3],[4,5]]: the loss of every token but the first of each list
  elapid eval --task induction-heads --model DIR --lengths 64..1048576
      accuracy on a synthetic task at lengths 64, 128, 256, ...; memory does not grow with the length
  elapid eval --task induction-heads --model runs/out/a --model runs/out/b --report page.md
      several models side by side on one page, with the paper's figures, how they were trained, and pictures

The loss is the mean negative log-likelihood per token, in nats. Bits per byte count all bytes of the text that was \
read, after decompression and as UTF-8, whatever the tokenizer; its first token is given, not predicted. For the last \
part of a text, its bytes count from the end of the token before it.";

/// The share of the built-in text that training did not see.
const HELD_OUT: f64 = 0.1;

/// Rows that are read together token by token.
const STEPPED: usize = 32;

/// What to evaluate, and how.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Directory with config.json, model.safetensors and, for text, tokenizer.json; with --task, may be repeated to evaluate
    /// several [default: the model inside elapid]
    #[arg(long = "model", value_name = "DIR")]
    models: Vec<PathBuf>,
    #[command(flatten)]
    weights: WeightsArgument,
    /// A JSON file with a list of lists of token ids
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "val_fraction", "length"])]
    tokens: Option<PathBuf>,
    /// Also report the loss of every token
    #[arg(long, requires = "tokens")]
    per_token: bool,
    /// Text: a file, a pipe, a directory of *.txt, *.md and *.jsonl (.gz and .zst too), or `tinyshakespeare` [default: the
    /// held-out tenth of tinyshakespeare]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Field of each *.jsonl line that has the text
    #[arg(long, value_name = "NAME", default_value = JSONL_FIELD)]
    jsonl_field: String,
    /// Leave out what the tokenizer puts before each document, such as <s>
    #[arg(long, conflicts_with_all = ["tokens", "task"])]
    no_bos: bool,
    /// Evaluate only the last part of the text: 0.1 is the last tenth
    #[arg(long, value_name = "SHARE", value_parser = share)]
    val_fraction: Option<f64>,
    /// Split the text into windows of this many predicted tokens, each from a zero state [default: one stream]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    length: Option<usize>,
    /// Sequences per batch; does not change results [default: as many as fit into a fixed amount of memory]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch: Option<usize>,
    /// Positions per forward pass, with the state carried over; does not change results [default: 512; 4096 for a task]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    chunk: Option<usize>,
    /// Read token by token, as `generate` does, with the states of heads of Mamba-2 stored in this dtype: what bf16 costs on a
    /// GPU [default: read in chunks, states in f32]
    #[arg(long, value_name = "DTYPE", conflicts_with_all = ["task", "chunk"])]
    state_dtype: Option<DType>,
    /// Evaluate a synthetic task instead of text: copying, selective-copying, induction-heads, mqar or state-tracking, in the
    /// sizes that the model was trained with
    #[arg(long, value_name = "NAME",
          conflicts_with_all = ["tokens", "per_token", "data", "val_fraction", "length", "batch"])]
    task: Option<String>,
    /// Sequence lengths: FROM..TO, doubled each time, or a list such as 64,100 [default: the training length]
    #[arg(long, value_name = "LENGTHS", requires = "task", value_parser = parse_lengths)]
    lengths: Option<Lengths>,
    /// Sequences per length
    #[arg(long, value_name = "N", requires = "task", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    sequences: u64,
    /// Random seed of the sequences
    #[arg(long, value_name = "N", requires = "task", default_value_t = 1)]
    seed: u64,
    /// Write a Markdown page to FILE with the results of all models, the paper's for comparison, and pictures beside it
    #[arg(long, value_name = "FILE", requires = "task")]
    report: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Lengths(Vec<usize>);

fn parse_lengths(text: &str) -> Result<Lengths, String> {
    score::lengths(text).map(Lengths)
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|x: &f64| *x > 0.0 && *x <= 1.0);
    share.ok_or_else(|| "wanted a number above 0 and at most 1".into())
}

pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    if let Some(report) = &arguments.report {
        // The report's folder is created first, so that a path that cannot be written fails before the work.
        let folder = report.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        files::check_output(report)?;
    }
    let load = |model: Option<PathBuf>| ModelArgument { model, weights: arguments.weights }.load_on(place, output);
    if let Some(task) = &arguments.task {
        let request = Request {
            lengths: arguments.lengths.as_ref().map(|lengths| lengths.0.as_slice()),
            sequences: arguments.sequences,
            seed: arguments.seed,
            chunk: arguments.chunk,
            report: arguments.report.as_deref(),
        };
        let mut dirs: Vec<Option<PathBuf>> = arguments.models.iter().cloned().map(Some).collect();
        if dirs.is_empty() {
            dirs.push(None);
        }
        let kind = Kind::find(task)?;
        for dir in &dirs {
            score::check_trained(kind, dir.as_deref())?;
        }
        let models = dirs.into_iter().map(|dir| Ok((load(dir.clone())?, dir))).collect::<Result<_>>()?;
        return score::run(&request, kind, models, output);
    }
    let model = match arguments.models.as_slice() {
        [] => None,
        [dir] => Some(dir.clone()),
        _ => return Err(wrong("--model: wanted one without --task, got several")),
    };
    let loaded = load(model)?;
    match &arguments.tokens {
        Some(path) => lists(arguments, &loaded, path, output),
        None if arguments.no_bos => text(arguments, &loaded.without_bos()?, output),
        None => text(arguments, &loaded, output),
    }
}

/// The result of evaluating some rows.
struct Done {
    nll: Vec<Vec<f32>>,
    summary: Summary,
    seconds: f64,
}

impl Arguments {
    fn evaluate<R: AsRef<[u32]>>(&self, loaded: &Loaded, rows: &[R], output: Output) -> Result<Done> {
        let mut reader = Reader::new(self.chunk.unwrap_or(evaluate::CHUNK));
        reader.batch = self.batch.unwrap_or(reader.batch);
        let total: usize = rows.iter().map(|row| row.as_ref().len().saturating_sub(1)).sum();
        let bar = output.bar("evaluating", total as u64);
        let started = Instant::now();
        let nll = match self.state_dtype {
            None => reader.nll(&loaded.model, rows, |more| bar.inc(more as u64))?,
            Some(dtype) => {
                let (model, batch) = (loaded.model.clone().with_states_in(dtype), self.batch.unwrap_or(STEPPED));
                evaluate::nll_by_steps(&model, rows, batch, |more| bar.inc(more as u64))?
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let summary = Summary::of(&nll);
        if !summary.nats.is_finite() {
            let found = nll.iter().flatten().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(elapid::Error::NonFinite { what: "the loss of a token".into(), place: found }.into());
        }
        Ok(Done { nll, summary, seconds })
    }
}

/// The output lines common to all evaluations.
fn common(loaded: &Loaded, done: &Done) -> Vec<(&'static str, String)> {
    let Summary { tokens, .. } = done.summary;
    vec![
        ("model", loaded.name.clone()),
        (
            "predicted",
            format!("{} tokens, {} tokens/s", thousands(tokens as u64), number(tokens as f64 / done.seconds)),
        ),
        ("loss", format!("{:.4} nats per token", done.summary.loss())),
        ("perplexity", format!("{:.3}", done.summary.perplexity())),
    ]
}

fn lists(arguments: &Arguments, loaded: &Loaded, path: &Path, output: Output) -> Result<()> {
    let bytes = files::read_file_or_pipe(path, limit::TEXT)?;
    let rows: Vec<Vec<u32>> = serde_json::from_slice(&bytes).map_err(|error| {
        wrong(format!("{}: wanted a list of lists of token ids, such as [[1,2,3],[4,5]]: {error}", path.display()))
    })?;
    let done = arguments.evaluate(loaded, &rows, output)?;
    if done.summary.tokens == 0 {
        return Err(wrong(format!("{}: no list has two tokens: there is nothing to predict", path.display())));
    }
    let mut object = json!({
        "loss": done.summary.loss(),
        "perplexity": done.summary.perplexity(),
        "tokens": done.summary.tokens,
        "lists": rows.len(),
        "tokens_per_second": done.summary.tokens as f64 / done.seconds,
    });
    if arguments.per_token {
        object["nll"] = Value::from(done.nll.iter().map(|row| Value::from(row.as_slice())).collect::<Vec<_>>());
    }
    output.result(&object, || {
        let mut lines = common(loaded, &done);
        lines.insert(1, ("text", format!("{}, {} lists", path.display(), thousands(rows.len() as u64))));
        let mut text = pairs(&lines);
        if arguments.per_token {
            for row in &done.nll {
                text += &format!("\n{}", row.iter().map(|x| format!("{x:.4}")).collect::<Vec<_>>().join(" "));
            }
            text.push('\n');
        }
        text
    })
}

fn text(arguments: &Arguments, loaded: &Loaded, output: Output) -> Result<()> {
    let tokenizer = loaded.need_tokenizer("evaluation on text")?;
    let source = arguments.data.as_deref().map_or(Source::TinyShakespeare, Source::parse);
    let fraction = arguments.val_fraction.or(arguments.data.is_none().then_some(HELD_OUT)).filter(|&share| share < 1.0);
    let held_out = HeldOut::Fraction(fraction.unwrap_or(0.0));
    let options = Options { jsonl_field: arguments.jsonl_field.clone(), ..Options::default() };
    let corpus = Corpus::prepare(std::slice::from_ref(&source), &held_out, tokenizer, options)?;
    corpus.notices.iter().for_each(|line| output.note(line));
    let stream = match fraction {
        Some(_) => corpus.val.as_ref().unwrap_or(&corpus.train),
        None => &corpus.train,
    };
    let name = match (&source, fraction) {
        (Source::TinyShakespeare, _) => "tiny Shakespeare".to_owned(),
        (Source::Path(path), _) => path.display().to_string(),
    };
    let name = fraction.map_or(name.clone(), |share| format!("the last {:.0} % of {name}", 100.0 * share));
    if stream.len() < 2 {
        return Err(wrong(format!("{name} has {} tokens: there is nothing to predict", stream.len())));
    }
    let bytes = stream.text_bytes()?.unwrap_or(0) as usize;
    let tokens = all(stream)?;
    let rows = match arguments.length {
        Some(length) => evaluate::windows(&tokens, length),
        None => vec![tokens.as_slice()],
    };
    let done = arguments.evaluate(loaded, &rows, output)?;
    let bits_per_byte = done.summary.bits_per_byte(bytes);
    let object = json!({
        "loss": done.summary.loss(),
        "perplexity": done.summary.perplexity(),
        "bits_per_byte": bits_per_byte,
        "tokens": done.summary.tokens,
        "bytes": bytes,
        "tokens_per_second": done.summary.tokens as f64 / done.seconds,
    });
    output.result(&object, || {
        let mut lines = common(loaded, &done);
        let windows = match arguments.length {
            Some(length) => format!("{} windows of {} tokens", thousands(rows.len() as u64), thousands(length as u64)),
            None => "one stream".into(),
        };
        lines.insert(1, ("text", format!("{name}, {} bytes, {windows}", thousands(bytes as u64))));
        lines.push(("bits per byte", format!("{bits_per_byte:.4}")));
        pairs(&lines)
    })
}

fn all(stream: &TokenStream) -> Result<Vec<u32>> {
    let mut tokens = vec![0; stream.len() as usize];
    stream.copy(0, &mut tokens)?;
    Ok(tokens)
}
