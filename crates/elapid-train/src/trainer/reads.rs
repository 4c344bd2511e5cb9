//! The objectives of a config: text, or a synthetic task.

use std::sync::Arc;

use elapid::LanguageModel;
use elapid::config::ModelConfig;
use elapid::tokenizer::{Tokenizer, TokenizerError};

use crate::config::{DataConfig, Mode, TrainConfig};
use crate::data::{self, Corpus, Streams, TokenStream, Windows};
use crate::objectives::{Feed, HeldOut, Language, ObjectiveOf, SyntheticTask};
use crate::parallel::{Group, start};
use crate::resume;
use crate::tasks::{Sequences, Split, Task};
use crate::{Error, Result};

/// The objective of a run, and what belongs to it.
pub(super) struct Prepared<M> {
    pub(super) objective: Arc<ObjectiveOf<M>>,
    /// The configuration of a new model.
    pub(super) model: Result<ModelConfig>,
    /// The tokenizer of the text, if the run trains on text.
    pub(super) tokenizer: Option<Tokenizer>,
    /// 0 for data without an end.
    pub(super) train_tokens: u64,
    pub(super) held_out_tokens: u64,
    /// A fingerprint of the tokens; empty for generated data.
    pub(super) fingerprint: String,
    /// The training data, for the model's card.
    pub(super) what: String,
    pub(super) notices: Vec<String>,
}

/// Text, tokenised at its first use.
pub(super) fn text(
    config: &TrainConfig,
    ranks: Option<&Group>,
    tokenising: &mut dyn FnMut(data::Progress),
) -> Result<Prepared<LanguageModel>> {
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
    let held_out_tokens = held_out.as_ref().map_or(0, HeldOut::tokens);
    let (shape, smoothing) = ((train.batch, data.length), train.label_smoothing as f32);
    Ok(Prepared {
        objective: Arc::new(Language { feed, shape, pack: data.pack, smoothing, held_out }),
        model: config.model.resolve(&tokenizer).map_err(|error| elapid::Error::from(error).into()),
        tokenizer: Some(tokenizer),
        train_tokens,
        held_out_tokens,
        fingerprint,
        what: data.train.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        notices: corpus.notices,
    })
}

/// The tokenizer of the config. If the run started from a model that is gone, its checkpoint has the tokenizer.
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
pub(super) fn made(task: &Arc<dyn Task>, config: &TrainConfig) -> Result<Prepared<LanguageModel>> {
    let train = &config.train;
    let sequences = |length, split| Sequences::new(task.clone(), length, train.seed, split);
    let lengths = match config.task.eval_lengths.as_slice() {
        [] => &[config.data.length],
        lengths => lengths,
    };
    let objective = SyntheticTask {
        train: sequences(config.data.length, Split::Train)?
            .with_next_tokens(config.task.next_tokens)
            .repeated(config.task.train_sequences),
        rows: train.batch,
        smoothing: train.label_smoothing,
        held_out: lengths.iter().map(|&length| sequences(length, Split::HeldOut)).collect::<Result<_, _>>()?,
        count: train.eval_batches.saturating_mul(train.batch as u64),
    };
    let model = config.model.resolve_for(task.vocab_size());
    Ok(Prepared {
        objective: Arc::new(objective),
        model: model.map_err(|error| elapid::Error::from(error).into()),
        tokenizer: None,
        train_tokens: 0,
        held_out_tokens: 0,
        fingerprint: String::new(),
        what: format!("the task {}", config.task.name),
        notices: Vec::new(),
    })
}

/// The part of the held-out text that validation reads.
fn held_out(val: &TokenStream, config: &TrainConfig) -> Result<HeldOut> {
    let (b, l) = (config.train.batch, config.data.length);
    let count = match config.train.eval_batches {
        0 => val.len(),
        batches => val.len().min(batches.saturating_mul(b as u64).saturating_mul(l as u64).saturating_add(1)),
    };
    HeldOut::new(val.split(count).0, l, config.data.mode == Mode::Streams, config.data.pack)
}
