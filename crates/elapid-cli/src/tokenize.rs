//! `elapid tokenize`: text in, token ids out, and back.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use anyhow::Result;
use elapid::tokenizer::{SpecialTokens, Tokenizer};
use elapid_train::data::read_text;
use serde_json::{Value, json};

use crate::failure::wrong;
use crate::input::read_stdin;
use crate::output::Output;
use crate::trial;

const EXAMPLES: &str = "\
Examples:
  elapid tokenize --model DIR \"A text\"
      its ids, including the tokens that the tokenizer puts before a prompt
  elapid tokenize --model DIR --document --file book.txt
      the ids of a document as training and evaluation read it
  elapid tokenize --model DIR --ids 12,7,301
      the text of ids
  elapid tokenize --model DIR --lines < lines.jsonl
      one output line per input line: {\"tokens\": […]} for a JSON string, {\"text\": …, \"pieces\": […]} for a list \
      of ids: the text and the pieces in which it is streamed";

/// The text or ids to convert.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Text to convert to ids; without it, all of stdin
    #[arg(group = "input")]
    text: Option<String>,
    /// Convert the text of this file
    #[arg(long, value_name = "FILE", group = "input")]
    file: Option<PathBuf>,
    /// Ids to convert to text
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',', group = "input")]
    ids: Option<Vec<u32>>,
    /// Convert lines of JSON on stdin: strings or lists of ids
    #[arg(long, group = "input")]
    lines: bool,
    /// Directory with tokenizer.json, or that file [default: one token per byte]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Treat the text as a document: also add the tokens after it
    #[arg(long)]
    document: bool,
    /// Leave out what the tokenizer puts before a text
    #[arg(long, conflicts_with = "document")]
    no_bos: bool,
    /// Print the names of special tokens too
    #[arg(long)]
    special: bool,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<()> {
    let tokenizer = match &arguments.model {
        Some(path) => {
            trial::check(path, output)?;
            Tokenizer::open(path)?
        }
        None => Tokenizer::byte(),
    };
    if arguments.lines {
        return lines(arguments, &tokenizer);
    }
    if let Some(ids) = &arguments.ids {
        let object = arguments.text_of(ids, &tokenizer)?;
        return output.result(&object, || format!("{}\n", object["text"].as_str().unwrap_or_default()));
    }
    let text = match (&arguments.text, &arguments.file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => read_stdin()?,
    };
    let ids = arguments.ids_of(&text, &tokenizer)?;
    let object = json!({"tokens": ids});
    output.result(&object, || ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ") + "\n")
}

/// Writes one line for each line of stdin.
fn lines(arguments: &Arguments, tokenizer: &Tokenizer) -> Result<()> {
    let mut stdout = io::stdout().lock();
    for (i, line) in io::stdin().lock().lines().enumerate() {
        let line = line?;
        let wanted = || wrong(format!("line {}: wanted a JSON string or a list of token ids", i + 1));
        let object = match serde_json::from_str(&line).map_err(|_| wanted())? {
            Value::String(text) => json!({"tokens": arguments.ids_of(text.as_bytes(), tokenizer)?}),
            ids => {
                let ids: Vec<u32> = serde_json::from_value(ids).map_err(|_| wanted())?;
                arguments.text_of(&ids, tokenizer)?
            }
        };
        writeln!(stdout, "{object}")?;
    }
    Ok(stdout.flush()?)
}

impl Arguments {
    fn ids_of(&self, text: &[u8], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        Ok(match (self.document, self.no_bos) {
            (true, _) => tokenizer.encode_document(text)?,
            (false, true) => tokenizer.encode(text)?,
            (false, false) => tokenizer.encode_prompt(text)?,
        })
    }

    fn text_of(&self, ids: &[u32], tokenizer: &Tokenizer) -> Result<Value> {
        let special = if self.special { SpecialTokens::Show } else { SpecialTokens::Skip };
        let mut stream = tokenizer.stream(special);
        let mut pieces = ids.iter().map(|&id| stream.push(id)).collect::<Result<Vec<_>, _>>()?;
        pieces.push(stream.finish()?);
        Ok(json!({"text": tokenizer.decode(ids, special)?, "pieces": pieces}))
    }
}
