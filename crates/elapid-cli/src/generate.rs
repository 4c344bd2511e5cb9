//! `elapid generate`: reads a prompt, draws tokens, streams their text.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::builder::RangedU64ValueParser;
use elapid::files;
use elapid::generate::{Generator, PREFILL_CHUNK, Sampling};
use elapid::text::StopStrings;
use elapid::tokenizer::{SpecialTokens, TextStream, Tokenizer};
use elapid::{DType, State};
use elapid_train::data::read_text;
use serde_json::json;

use crate::failure::wrong;
use crate::input::read_stdin;
use crate::model::{Loaded, ModelArgument, Place};
use crate::output::{Output, number, thousands};
use crate::terminal::Shown;

const EXAMPLES: &str = "\
Examples:
  elapid generate \"ROMEO:\"
      continue a text by 256 tokens
  elapid generate --model DIR --temperature 0.6 --stop $'\\n\\n' --prompt-file question.txt
      use the model in a directory; stop at the first empty line
  cat book.txt | elapid generate --max-tokens 0 --save-state book.state
  elapid generate --load-state book.state \"CHAPTER XII\"
      read a long text once, then continue from it as often as you like
  elapid generate --model DIR --prompt-tokens 1,2,3 --max-tokens 32 --greedy --json
      token ids in and out: no tokenizer needed

Continuing from a saved state, with or without more prompt, gives the same tokens as one uninterrupted --greedy run.";

/// The prompt, the model and the sampling.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Text to continue; `-` reads all of stdin, and so does leaving it out if stdin is not a terminal
    #[arg(group = "input")]
    prompt: Option<String>,
    /// Continue the text of this file or pipe; decompresses gzip and zstd and decodes UTF-16, as `eval` does
    #[arg(long, value_name = "FILE", group = "input")]
    prompt_file: Option<PathBuf>,
    /// Continue these token ids
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',', group = "input")]
    prompt_tokens: Option<Vec<u32>>,
    #[command(flatten)]
    model: ModelArgument,
    /// Maximum number of tokens to generate; 0 only reads the prompt
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Leave out what the tokenizer puts before a prompt, such as <s>
    #[arg(long)]
    no_bos: bool,
    /// Print the prompt before its continuation
    #[arg(long)]
    echo: bool,
    /// Print the names of special tokens too
    #[arg(long)]
    special: bool,
    /// Stop before this text or special token, and do not print it; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Do not stop at end-of-text tokens: eos_token_id of generation_config.json, else of config.json, and the tokenizer's
    /// own
    #[arg(long)]
    ignore_eos: bool,
    /// Save the state at the end
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Start from a saved state instead of a zero state
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
    /// Prompt tokens per forward pass; bounds the memory, does not change results
    #[arg(long, value_name = "N", default_value_t = PREFILL_CHUNK,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    chunk: usize,
    /// Dtype in which a GPU stores the states of heads of Mamba-2; bf16 halves them and rounds them after every token
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    state_dtype: DType,
    /// On a CPU, guess up to N tokens at a time from what the text repeats; the tokens are the same, sooner
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(0..=64))]
    guess: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArguments {
    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Sampling temperature: below 1 sharper, above 1 more varied; 0 is --greedy
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = at_least_0)]
    temperature: f32,
    /// Sample from this many of the most likely tokens; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Sample from the most likely tokens that together reach this probability
    #[arg(long, value_name = "SHARE", default_value_t = 0.95, value_parser = above_0_to_1)]
    top_p: f32,
    /// Sample from tokens with at least this share of the most likely token's probability
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = from_0_to_1)]
    min_p: f32,
    /// Repetition penalty: above 1 discourages tokens seen recently
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = above_0)]
    repetition_penalty: f32,
    /// Random seed: the same seed draws the same tokens from the same logits, on a CPU and on a GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArguments {
    fn parameters(&self) -> Sampling {
        Sampling {
            temperature: if self.greedy { 0.0 } else { self.temperature },
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            ..Sampling::default()
        }
    }
}

fn in_range(text: &str, holds: impl Fn(f32) -> bool, wanted: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|&x: &f32| x.is_finite() && holds(x));
    number.ok_or_else(|| format!("wanted a number {wanted}"))
}

fn at_least_0(text: &str) -> Result<f32, String> {
    in_range(text, |x| x >= 0.0, "of at least 0")
}

fn above_0(text: &str) -> Result<f32, String> {
    in_range(text, |x| x > 0.0, "above 0")
}

fn from_0_to_1(text: &str) -> Result<f32, String> {
    in_range(text, |x| (0.0..=1.0).contains(&x), "from 0 to 1")
}

fn above_0_to_1(text: &str) -> Result<f32, String> {
    in_range(text, |x| x > 0.0 && x <= 1.0, "above 0 and at most 1")
}

// Long: the whole command from arguments to output, each step once.
pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    arguments.save_state.as_deref().map_or(Ok(()), files::check_output)?;
    let loaded = arguments.model.load_on(place, output)?;
    let loaded = loaded.with_states_in(arguments.state_dtype);
    let loaded = if arguments.no_bos { loaded.without_bos()? } else { loaded };
    let tokenizer = loaded.tokenizer.as_ref();
    if !arguments.stop.is_empty() {
        loaded.need_tokenizer("--stop")?;
    }
    let ends = Ends::new(arguments, &loaded)?;
    let resumed = arguments.load_state.as_deref().map(|path| Resumed::load(path, &loaded)).transpose()?;
    let prompt = arguments.prompt(&loaded, resumed.is_some())?;
    let pending = resumed.as_ref().and_then(|resumed| resumed.pending);
    let input: Vec<u32> = pending.into_iter().chain(prompt.ids.iter().copied()).collect();
    loaded.check_ids(&input)?;
    let Some((&last, head)) = input.split_last() else {
        return Err(wrong("nothing to continue: give a prompt of at least one token"));
    };
    if let Some(error) = &loaded.unusable {
        output.warn(format_args!("warning: {error}; printing token ids"));
    }

    let model = &loaded.model;
    let Resumed { state, recent, .. } = resumed.map_or_else(|| Resumed::nothing(&loaded), Ok)?;
    let sampling = &arguments.sampling;
    let mut sequence = Generator::from_state(model, state, sampling.parameters(), sampling.seed)
        .with_chunk(arguments.chunk)
        .with_guesses(arguments.guess)
        .with_recent(&recent);

    // The last token of the prompt is read only to draw the next one, and a saved state ends before it.
    let reads = if arguments.max_tokens == 0 { head } else { input.as_slice() };
    model.needs_of_pass(1, arguments.chunk.min(reads.len()), "--chunk").check_on(model.device())?;
    let started = Instant::now();
    read(&mut sequence, reads, arguments.chunk, output)?;
    let prompt_seconds = started.elapsed().as_secs_f64();

    let mut writer = Writer::new(tokenizer, &input, arguments, output)?;
    if arguments.echo {
        writer.write(&prompt.shown(&loaded, arguments.special())?)?;
    }
    let started = Instant::now();
    let (generated, last_drawn, reason) = draw(&mut sequence, arguments.max_tokens, &ends, &mut writer)?;
    let (seconds, passes) = (started.elapsed().as_secs_f64(), sequence.passes());
    let Written { tokens, text } = writer.finish()?;

    if let Some(path) = &arguments.save_state {
        let suspended = sequence.suspend()?;
        let pending = last_drawn.unwrap_or(last);
        save(path, &loaded, &suspended.state, &suspended.recent, pending)?;
    }

    let rate = |count: usize, seconds: f64| if count > 0 { count as f64 / seconds } else { 0.0 };
    let (prompt_rate, rate) = (rate(reads.len(), prompt_seconds), rate(generated, seconds));
    if output.json {
        let object = json!({
            "tokens": tokens,
            "text": tokenizer.map(|_| String::from_utf8_lossy(&text)),
            "stop_reason": reason,
            "tokens_per_second": rate,
            "passes": if passes > 0 { passes } else { generated as u64 },
            "prompt_tokens": prompt.ids.len(),
            "prompt_tokens_per_second": prompt_rate,
        });
        return output.result(&object, String::new);
    }
    let count = |count: usize, rate: f64| format!("{} tokens, {} tokens/s", thousands(count as u64), number(rate));
    output.note(format_args!("prompt: {}", count(reads.len(), prompt_rate)));
    if generated > 0 {
        let guessed = if passes > 0 { format!(", in {} passes", thousands(passes)) } else { String::new() };
        output.note(format_args!(
            "generated: {}{guessed}, ended by {}",
            count(generated, rate),
            reason.replace('_', " ")
        ));
    }
    Ok(())
}

/// Reads tokens into a sequence, with a progress bar if it takes several chunks.
fn read(sequence: &mut Generator, tokens: &[u32], chunk: usize, output: Output) -> Result<()> {
    let long = tokens.len() > 4 * chunk.max(256);
    let bar = long.then(|| output.bar("reading", tokens.len() as u64));
    for part in tokens.chunks(chunk) {
        sequence.read(part)?;
        bar.iter().for_each(|bar| bar.inc(part.len() as u64));
    }
    bar.iter().for_each(|bar| bar.finish_and_clear());
    Ok(())
}

/// The tokens that end a text.
struct Ends {
    of_text: Vec<u32>,
    /// Special tokens that `--stop` names: they may have no text.
    of_stop: Vec<u32>,
}

impl Ends {
    fn new(arguments: &Arguments, loaded: &Loaded) -> Result<Self> {
        let special = |name: &String| {
            let tokenizer = loaded.tokenizer.as_ref()?;
            tokenizer.token_id(name).filter(|&id| tokenizer.is_special(id))
        };
        let of_stop = arguments.stop.iter().filter_map(special).collect();
        let of_text = if arguments.ignore_eos { Vec::new() } else { loaded.end_ids()? };
        Ok(Self { of_text, of_stop })
    }

    fn reason(&self, id: u32) -> Option<&'static str> {
        match id {
            id if self.of_text.contains(&id) => Some("end_of_text"),
            id if self.of_stop.contains(&id) => Some("stop_string"),
            _ => None,
        }
    }
}

/// Draws tokens until a stop condition. Returns how many, the last one, and the reason.
fn draw(
    sequence: &mut Generator,
    max_tokens: usize,
    ends: &Ends,
    writer: &mut Writer<'_>,
) -> Result<(usize, Option<u32>, &'static str)> {
    let mut last = None;
    for done in 0..max_tokens {
        let id = sequence.next_token()?;
        last = Some(id);
        let end = ends.reason(id);
        let stopped = writer.token(id, end.is_some())?;
        if let Some(reason) = end.or(stopped.then_some("stop_string")) {
            return Ok((done + 1, last, reason));
        }
    }
    Ok((max_tokens, last, "max_tokens"))
}

/// The text to continue.
struct Prompt {
    ids: Vec<u32>,
    /// The text from the command line; none if it gave ids.
    text: Option<Vec<u8>>,
}

impl Prompt {
    fn of_ids(ids: Vec<u32>) -> Self {
        Self { ids, text: None }
    }

    /// What `--echo` prints.
    fn shown(&self, loaded: &Loaded, special: SpecialTokens) -> Result<Vec<u8>> {
        match (&self.text, &loaded.tokenizer) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(tokenizer)) => Ok(tokenizer.decode(&self.ids, special)?.into_bytes()),
            (None, None) => Ok(self.ids.iter().flat_map(|id| format!("{id} ").into_bytes()).collect()),
        }
    }
}

impl Arguments {
    fn special(&self) -> SpecialTokens {
        if self.special { SpecialTokens::Show } else { SpecialTokens::Skip }
    }

    /// The prompt from the command line. After a loaded state it may be empty.
    fn prompt(&self, loaded: &Loaded, resumed: bool) -> Result<Prompt> {
        if let Some(ids) = &self.prompt_tokens {
            return Ok(Prompt::of_ids(ids.clone()));
        }
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) if prompt == "-" => read_stdin()?,
            (Some(prompt), _) => prompt.clone().into_bytes(),
            (_, Some(path)) => read_text(path)?,
            _ if !resumed && !io::stdin().is_terminal() => read_stdin()?,
            _ => Vec::new(),
        };
        if !text.is_empty() {
            let tokenizer = loaded.need_tokenizer("a prompt of text")?;
            // After a loaded state a text continues: nothing is put before it.
            let ids = if resumed { tokenizer.encode(&text)? } else { tokenizer.encode_prompt(&text)? };
            return Ok(Prompt { ids, text: Some(text) });
        }
        if resumed {
            return Ok(Prompt::of_ids(Vec::new()));
        }
        Ok(Prompt::of_ids(match &loaded.tokenizer {
            Some(tokenizer) if !tokenizer.document_prefix().is_empty() => tokenizer.document_prefix().to_vec(),
            // Byte-level text starts after a newline; other models were trained with a beginning token.
            Some(tokenizer) if tokenizer.is_byte() => vec![u32::from(b'\n')],
            _ if self.no_bos => Vec::new(),
            tokenizer => {
                let bos = tokenizer.as_ref().and_then(Tokenizer::bos).or(loaded.model.config().bos_token_id);
                bos.into_iter().collect()
            }
        }))
    }
}

/// The contents of a state file.
struct Resumed {
    state: State,
    /// Recent tokens, for the repetition penalty.
    recent: Vec<u32>,
    /// The token after the state.
    pending: Option<u32>,
}

const PENDING: &str = "pending";
const RECENT: &str = "recent";

impl Resumed {
    fn nothing(loaded: &Loaded) -> Result<Self> {
        Ok(Self { state: loaded.model.zero_state(1)?, recent: Vec::new(), pending: None })
    }

    fn load(path: &Path, loaded: &Loaded) -> Result<Self> {
        let (state, notes) = loaded.model.load_state(path)?;
        let damaged = |reason: String| wrong(format!("state {}: {reason}", path.display()));
        if state.rows() != 1 {
            let rows = state.rows();
            return Err(damaged(format!(
                "it holds {rows} sequences, and generate continues one; save a single one (State::select)"
            )));
        }
        let ids = |key: &str| -> Result<Vec<u32>> {
            let ids = notes.get(key).map_or("", String::as_str).split(',').filter(|id| !id.is_empty());
            let ids = ids.map(str::parse).collect::<Result<Vec<u32>, _>>();
            let ids =
                ids.map_err(|_| damaged(format!("note `{key}` is not a list of token ids; save the state again")))?;
            loaded.check_ids(&ids).map_err(|error| damaged(format!("note `{key}`: {error}")))?;
            Ok(ids)
        };
        Ok(Self { recent: ids(RECENT)?, pending: ids(PENDING)?.last().copied(), state })
    }
}

fn save(path: &Path, loaded: &Loaded, state: &State, recent: &[u32], pending: u32) -> Result<()> {
    let recent = recent.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let notes = [(PENDING, pending.to_string()), (RECENT, recent)];
    Ok(state.save(path, loaded.model.fingerprint()?, &notes)?)
}

/// Turns tokens into text and streams it. Keeps tokens and text only if they are printed at the end.
struct Writer<'t> {
    /// None without a tokenizer: then ids are written.
    stream: Option<TextStream<'t>>,
    json: bool,
    stops: StopStrings,
    stopped: bool,
    written: Written,
    last: Option<u8>,
    /// Escapes what a terminal would obey; none for a pipe or a file.
    shown: Option<Shown>,
}

#[derive(Default)]
struct Written {
    tokens: Vec<u32>,
    text: Vec<u8>,
}

impl<'t> Writer<'t> {
    /// Writes the text after the tokens `before`.
    fn new(tokenizer: Option<&'t Tokenizer>, before: &[u32], arguments: &Arguments, output: Output) -> Result<Self> {
        let stream = tokenizer.map(|tokenizer| tokenizer.stream(arguments.special()).after(before)).transpose()?;
        let stops = StopStrings::new(arguments.stop.iter().cloned());
        let written = Written::default();
        let shown = io::stdout().is_terminal().then(Shown::default);
        Ok(Self { stream, json: output.json, stops, stopped: false, written, last: None, shown })
    }

    /// Adds a token; returns true if a stop string is complete. A `silent` token has no text.
    fn token(&mut self, id: u32, silent: bool) -> Result<bool> {
        if self.json {
            self.written.tokens.push(id);
        }
        let Some(stream) = &mut self.stream else {
            if !self.json {
                self.write(format!("{id} ").as_bytes())?;
            }
            return Ok(false);
        };
        if silent {
            return Ok(false);
        }
        let released = self.stops.push(&stream.push(id)?);
        self.stopped = released.stop.is_some();
        self.write(released.text.as_bytes())?;
        Ok(self.stopped)
    }

    fn write(&mut self, text: &[u8]) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.json {
            self.written.text.extend_from_slice(text);
            return Ok(());
        }
        self.last = text.last().copied();
        let mut stdout = io::stdout().lock();
        match &mut self.shown {
            Some(shown) => stdout.write_all(shown.push(&String::from_utf8_lossy(text)).as_bytes())?,
            None => stdout.write_all(text)?,
        }
        Ok(stdout.flush()?)
    }

    /// Writes what was held back, and ends the line.
    fn finish(mut self) -> Result<Written> {
        if let Some(stream) = self.stream.take().filter(|_| !self.stopped) {
            let rest = stream.finish()?;
            let released = self.stops.push(&rest);
            let held = self.stops.finish();
            self.write((released.text + &held.text).as_bytes())?;
        }
        if let Some(shown) = self.shown.take() {
            self.write(shown.finish().as_bytes())?;
        }
        if self.last.is_some_and(|last| last != b'\n') {
            self.write(b"\n")?;
        }
        Ok(self.written)
    }
}
