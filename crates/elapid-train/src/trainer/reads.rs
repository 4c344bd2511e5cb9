//! What a run reads: what it is trained on, and what is held out.

use std::sync::Arc;

use elapid::evaluate;
use elapid::tokenizer::{Tokenizer, TokenizerError};

use crate::config::{DataConfig, Mode, TrainConfig};
use crate::data::{self, Batch, Corpus, Sequential, Streams, TokenStream, Windows};
use crate::parallel::{Group, start};
use crate::resume;
use crate::tasks::{Sequences, Split, Task};
use crate::{Error, Result};

/// Positions of held-out text that are read at a time: what bounds the memory of a validation.
const POSITIONS: usize = 4096;

/// What is trained on and what is held out.
pub(super) struct Data {
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) feed: Feed,
    /// 0 of a task, which has no end.
    pub(super) train_tokens: u64,
    pub(super) held_out: Option<HeldOut>,
    /// Which tokens these are; empty of a task.
    pub(super) fingerprint: String,
    pub(super) notices: Vec<String>,
}

/// Where batches come from.
pub(super) enum Feed {
    Windows(Windows),
    Streams(Streams),
    /// Made on the fly, this many rows a batch.
    Task(Sequences, usize),
}

impl Feed {
    pub(super) fn batch(&self, index: u64) -> Result<Batch> {
        match self {
            Feed::Task(sequences, b) => Ok(sequences.batch(index, *b)),
            Feed::Windows(windows) => windows.batch(index),
            Feed::Streams(streams) => streams.batch(index),
        }
    }
}

/// What training never sees.
pub(super) enum HeldOut {
    Text {
        batches: Sequential,
        /// Whether the state goes on from batch to batch.
        carries: bool,
        /// Bytes of the text that is read, over the tokens of it that are predicted.
        bytes_per_token: f64,
    },
    /// Fresh sequences at every validation, this many of each length.
    Task(Vec<Sequences>, u64),
}

impl HeldOut {
    /// How losses are measured, in words: those of two ways cannot be compared.
    pub(super) fn measure(&self, config: &TrainConfig) -> String {
        match self {
            Self::Text { batches, .. } => format!("{} tokens of held-out text", batches.tokens()),
            Self::Task(..) => format!("train.label_smoothing = {}", config.train.label_smoothing),
        }
    }

    pub(super) fn bits_per_byte(&self, nats_per_token: f64) -> Option<f64> {
        let Self::Text { bytes_per_token, .. } = self else { return None };
        Some(nats_per_token / bytes_per_token / std::f64::consts::LN_2)
    }
}

/// Text, tokenised at its first use.
pub(super) fn text(
    config: &TrainConfig,
    ranks: Option<&Group>,
    tokenising: &mut dyn FnMut(data::Progress),
) -> Result<Data> {
    let tokenizer = open_tokenizer(config)?;
    let mut prepare = || {
        let options = data::Options {
            cache: config.data.cache_dir(),
            jsonl_field: config.data.jsonl_field.clone(),
            progress: Some(&mut *tokenising),
        };
        Corpus::prepare(&config.data.train_sources(), &config.data.held_out(), &tokenizer, options)
    };
    let corpus = match ranks {
        None => prepare()?,
        Some(ranks) => start::in_turn(ranks, prepare)?,
    };
    let (train, data) = (&config.train, &config.data);
    let train_tokens = corpus.train.len();
    let fingerprint = corpus.fingerprint(&tokenizer, data.pack)?;
    let feed = match data.mode {
        Mode::Windows => Feed::Windows(Windows::new(corpus.train, train.batch, data.length, train.seed, data.pack)?),
        Mode::Streams => Feed::Streams(Streams::new(corpus.train, train.batch, data.length, data.pack)?),
    };
    let held_out = corpus.val.map(|val| held_out(&val, config)).transpose()?;
    Ok(Data { tokenizer: Some(tokenizer), feed, train_tokens, held_out, fingerprint, notices: corpus.notices })
}

/// The tokenizer of the config. A run that began from a model which is gone has its tokenizer in its checkpoint.
fn open_tokenizer(config: &TrainConfig) -> Result<Tokenizer> {
    match (config.data.open_tokenizer(), resume::latest(&config.output.dir)) {
        (Err(Error::Tokenizer(TokenizerError::Missing { .. })), Some((_, step)))
            if config.data.tokenizer == config.model.from =>
        {
            DataConfig { tokenizer: step.display().to_string(), ..config.data.clone() }.open_tokenizer()
        }
        (opened, _) => opened,
    }
}

/// The sequences of a task.
pub(super) fn made(task: &Arc<dyn Task>, config: &TrainConfig) -> Result<Data> {
    let train = &config.train;
    let sequences = |length, split| Sequences::new(task.clone(), length, train.seed, split);
    let feed = sequences(config.data.length, Split::Train)?.with_next_tokens(config.task.next_tokens);
    let feed = Feed::Task(feed, train.batch);
    let lengths = match config.task.eval_lengths.as_slice() {
        [] => &[config.data.length],
        lengths => lengths,
    };
    let held_out = lengths.iter().map(|&length| sequences(length, Split::HeldOut)).collect::<Result<_, _>>()?;
    let held_out = HeldOut::Task(held_out, train.eval_batches.saturating_mul(train.batch as u64));
    let fingerprint = String::new();
    Ok(Data { tokenizer: None, feed, train_tokens: 0, held_out: Some(held_out), fingerprint, notices: Vec::new() })
}

/// What validation reads: windows as training has them, or in order with the state carried; packed as training is.
fn held_out(val: &TokenStream, config: &TrainConfig) -> Result<HeldOut> {
    let (b, l) = (config.train.batch, config.data.length);
    let count = match config.train.eval_batches {
        0 => val.len(),
        batches => val.len().min(batches.saturating_mul(b as u64).saturating_mul(l as u64).saturating_add(1)),
    };
    let (val, _) = val.split(count);
    // Of packed text, the first token of a document is not predicted.
    let given = if config.data.pack { val.documents(1..val.len()).count() as u64 } else { 0 };
    let predicted = val.len().saturating_sub(1 + given).max(1);
    let bytes_per_token = val.text_bytes()?.unwrap_or(0) as f64 / predicted as f64;
    let carries = config.data.mode == Mode::Streams;
    let (b, l) = if carries { (1, l.min(evaluate::CHUNK)) } else { ((POSITIONS / l).max(1), l) };
    Ok(HeldOut::Text { batches: Sequential::new(val, b, l, config.data.pack)?, carries, bytes_per_token })
}
