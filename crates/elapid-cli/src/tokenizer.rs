//! `elapid tokenizer`: a vocabulary from the user's text.

use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

use anyhow::Result;
use elapid::files::{self, atomic_write};
use elapid::tokenizer::{Tokenizer, train};
use elapid_train::data::{self, JSONL_FIELD, Source};
use serde_json::json;

use crate::output::{Output, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid tokenizer train --data books/
      8,192 ids from the text in a folder, as tokenizer.json
  elapid tokenizer train --data books/ --data letters.jsonl.gz --vocab 32000 --output runs/tokenizer.json
  elapid train --data books/ --set data.tokenizer=runs/tokenizer.json
      train a model with it";

/// What to do with tokenizers.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Learn a vocabulary from text: byte-level BPE, as GPT-NeoX has it
    Train(Arguments),
}

/// The text and the size.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Text to learn from: a file, a directory, or `tinyshakespeare`; may be repeated
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<String>,
    /// Field of each *.jsonl line that has the text
    #[arg(long, value_name = "NAME", default_value = JSONL_FIELD)]
    jsonl_field: String,
    /// Ids: 256 bytes, the end of a text, and the pairs that are most frequent
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(train::LEAST as i64..1 << 20))]
    vocab: u32,
    /// File to write
    #[arg(long, value_name = "FILE", default_value = "tokenizer.json")]
    output: PathBuf,
}

/// Bytes of the text that are encoded to tell how long tokens are.
const SAMPLE: usize = 1 << 20;
/// Pieces of text that wait to be counted.
const AHEAD: usize = 16;

pub(crate) fn run(command: &Command, output: Output) -> Result<()> {
    let Command::Train(arguments) = command;
    files::check_output(&arguments.output)?;
    let sources: Vec<Source> = arguments.data.iter().map(|name| Source::parse(name)).collect();
    let bar = output.bytes("reading");
    let (to, pieces) = sync_channel::<String>(AHEAD);
    let mut sample = String::new();
    let (read, learned) = std::thread::scope(|scope| {
        let learning = scope.spawn(|| train::train(pieces.into_iter(), arguments.vocab as usize));
        let mut progress = |progress: data::Progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.bytes);
        };
        let mut take = |text: String| {
            if sample.len() < SAMPLE {
                sample += &text;
            }
            // Where nobody listens, the error of the other side is told.
            to.send(text).unwrap_or_default();
            Ok(())
        };
        let read = data::each_text(&sources, &arguments.jsonl_field, &mut progress, &mut take);
        bar.set_message("joining pairs");
        drop(to);
        (read, learning.join())
    });
    bar.finish_and_clear();
    read?.iter().for_each(|notice| output.warn(notice));
    let definition = learned.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    atomic_write(&arguments.output, |to| to.write_all(definition.as_bytes()))?;
    let tokenizer = Tokenizer::open(&arguments.output)?;
    let per_token = sample.len() as f64 / tokenizer.encode(&sample)?.len().max(1) as f64;
    let ids = tokenizer.vocab_size();
    let object = json!({ "output": arguments.output, "vocab_size": ids, "bytes_per_token": per_token });
    output.result(&object, || {
        format!(
            "{}: {} ids, {per_token:.2} bytes a token of the text it learned from\n",
            arguments.output.display(),
            thousands(ids as u64)
        )
    })
}
