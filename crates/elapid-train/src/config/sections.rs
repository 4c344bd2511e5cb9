//! The sections of a config: every setting with its documentation and default. `configs/default.toml` is printed from them.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;

use elapid::config::{self as model, StackConfig};
use elapid::settings::{Auto, Field, Problem, commented, toml_value};
use elapid::tokenizer::Tokenizer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Spanned;
use toml::de::DeValue;

use super::ConfigError;
use crate::data::{HeldOut, JSONL_FIELD, Separator, Source, cache_dir};
use crate::schedule::{Decay, Schedule, Warmup};

/// How batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Shuffled windows, each from a zero state.
    #[default]
    Windows,
    /// The text in order, with the state carried over.
    Streams,
}

/// The dtype of activations in training; parameters are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16, on a GPU only.
    Bf16,
}

impl Dtype {
    /// The dtype on a device.
    pub fn on(self, device: elapid::Device) -> elapid::DType {
        match (self, device) {
            (Self::F32, _) | (Self::Auto, elapid::Device::Cpu) => elapid::DType::F32,
            _ => elapid::DType::Bf16,
        }
    }
}

/// `[model]`: the model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelConfig {
    /// Directory of a model to start from, as `--from`: the run takes its weights, vocabulary and tokenizer, and the other
    /// settings of this section. "" is a new model with random weights.
    pub from: String,
    /// The stack of layers.
    pub stack: StackConfig,
}

/// The documentation of `from`, which is not part of the stack.
const FROM: Field = Field {
    name: "from",
    doc: &[
        " Directory of a model to start from, as `--from`: the run takes its weights, vocabulary and tokenizer, and the other",
        " settings of this section. \"\" is a new model with random weights.",
    ],
    init: false,
};

impl ModelConfig {
    /// The library's configuration, with the vocabulary and the special tokens of a tokenizer.
    ///
    /// # Errors
    /// If such a model is impossible.
    pub fn resolve(&self, tokenizer: &Tokenizer) -> Result<model::ModelConfig, model::ConfigError> {
        let config = model::ModelConfig {
            vocab_size: tokenizer.vocab_size(),
            bos_token_id: tokenizer.bos(),
            eos_token_id: tokenizer.eos(),
            pad_token_id: tokenizer.pad(),
            ..self.with_any_vocabulary()
        };
        config.validate()?;
        Ok(config)
    }

    /// The library's configuration, with a vocabulary that has no special tokens.
    ///
    /// # Errors
    /// If such a model is impossible.
    pub fn resolve_for(&self, vocab_size: usize) -> Result<model::ModelConfig, model::ConfigError> {
        let config = model::ModelConfig { vocab_size, ..self.with_any_vocabulary() };
        config.validate()?;
        Ok(config)
    }

    /// The library's configuration, with a vocabulary of 256.
    pub(crate) fn with_any_vocabulary(&self) -> model::ModelConfig {
        model::ModelConfig { stack: self.stack.clone(), ..model::ModelConfig::default() }
    }

    /// Reads the section.
    pub(super) fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        let span = value.span();
        let DeValue::Table(mut table) = value.into_inner() else {
            return Err(Problem { span: Some(span), ..Problem::value("model", "a section", "a value") });
        };
        let from = match table.remove(FROM.name) {
            None => String::new(),
            Some(value) => match value.get_ref() {
                DeValue::String(from) => from.to_string(),
                _ => {
                    return Err(Problem {
                        span: Some(value.span()),
                        ..Problem::value("model.from", "a path", "no text")
                    });
                }
            },
        };
        let stack = StackConfig::read("model", Spanned::new(span, DeValue::Table(table)))?;
        Ok(Self { from, stack })
    }

    /// The section with a comment on every setting.
    pub(super) fn to_toml(&self) -> String {
        let stack = self.stack.to_toml("model");
        let rest = stack.strip_prefix("[model]\n").unwrap_or(&stack);
        format!("[model]\n{}{rest}", commented(&[FROM], &[toml_value(&self.from)]))
    }

    /// Every setting without the section, with its value.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let stack = self.stack.settings().into_iter().map(|(name, _, value)| (name, value));
        [(FROM.name.to_owned(), toml_value(&self.from))].into_iter().chain(stack).collect()
    }
}

elapid::settings! {
    /// `[data]`: the text to train on.
    pub struct DataConfig {
        /// Text to train on, one string or a list: files, directories (their *.txt, *.md and *.jsonl, also .gz and .zst of
        /// these, at any depth; hidden files are skipped, links followed), or "tinyshakespeare", the text inside the binary.
        train: Paths = Paths(vec!["tinyshakespeare".into()]),
        /// Held-out text for validation, in the same form. Empty: the last part of the training text. Files that are also in
        /// the training text are not trained on.
        val: Paths = Paths::default(),
        /// Size of that last part, as a fraction of the tokens. 0 is none.
        val_fraction: f64 = 0.1,
        /// "byte", or the path of a Hugging Face tokenizer.json or of a directory that has one.
        tokenizer: String = "byte".into(),
        /// "windows": shuffled windows, each from a zero state. "streams": the text in order, with the state carried from
        /// step to step (truncated backpropagation).
        mode: Mode = Mode::Windows,
        /// Tokens per row of a batch.
        length: usize = 256,
        /// Field of each *.jsonl line that has the text; each line is a document. Any other file is one document.
        jsonl_field: String = JSONL_FIELD.into(),
        /// Tokens around each document, and before prompts of the trained model. "tokenizer": as the tokenizer's files say.
        /// These override the files: "bos" (one before each, nothing after), "eos" (one after each, nothing before), "none".
        separator: Separator = Separator::Tokenizer,
        /// Whether there are any tokens before documents and prompts; train --no-bos sets this to false.
        bos: bool = true,
        /// Whether the state is reset where a document begins, so that documents in the same row do not see each other.
        pack: bool = false,
        /// Directory for token caches. "auto": ELAPID_CACHE, else the user's cache directory. "none": tokens stay in memory.
        cache: String = "auto".into(),
    }
}

impl DataConfig {
    /// The sources of the training text.
    pub fn train_sources(&self) -> Vec<Source> {
        self.train.iter().map(|name| Source::parse(name)).collect()
    }

    /// The held-out text.
    pub fn held_out(&self) -> HeldOut {
        match &*self.val {
            [] => HeldOut::Fraction(self.val_fraction),
            val => HeldOut::Sources(val.iter().map(|name| Source::parse(name)).collect()),
        }
    }

    /// The directory for token caches, if tokens are cached.
    pub fn cache_dir(&self) -> Option<PathBuf> {
        match self.cache.as_str() {
            "none" => None,
            "auto" => Some(cache_dir()),
            dir => Some(dir.into()),
        }
    }

    /// Opens the tokenizer, with the tokens that these settings put around documents.
    ///
    /// # Errors
    /// As [`Tokenizer::open`] and [`Separator::apply`].
    pub fn open_tokenizer(&self) -> crate::Result<Tokenizer> {
        let tokenizer = if self.tokenizer == "byte" { Tokenizer::byte() } else { Tokenizer::open(&self.tokenizer)? };
        let tokenizer = self.separator.apply(tokenizer)?;
        Ok(if self.bos { tokenizer } else { tokenizer.with_document_prefix([])? })
    }
}

elapid::settings! {
    /// `[task]`: a synthetic task instead of text.
    pub struct TaskConfig {
        /// Synthetic task to train on instead of text: "copying", "selective-copying", "induction-heads", "mqar" or
        /// "state-tracking"; `elapid train --task` has the paper's settings of each. "none" is text. With a task, only the length
        /// of [data] is used.
        name: String = "none".into(),
        /// Number of token ids of the task, special ones included.
        vocab: usize = 16,
        /// Number of tokens to copy in the copying tasks. A sequence has data.length positions and two more for each of
        /// them.
        tokens: usize = 16,
        /// Number of keys, each with a value, in mqar.
        pairs: usize = 64,
        /// How often mqar lists the pairs before it asks.
        passes: usize = 1,
        /// The a of the gaps between the pairs and the queries in mqar, p(g) ∝ a (g + 1)^(a - 1); 1 is uniform.
        gap_power: f64 = 0.01,
        /// Whether mqar has random ids, and not 0, where nothing is asked.
        random_noise: bool = false,
        /// The m of state-tracking: sums are modulo m. 2 is parity.
        modulus: usize = 2,
        /// Whether state-tracking asks after every token, and not only after the last.
        every_position: bool = false,
        /// Lengths of training sequences in state-tracking are uniform from this ...
        shortest: usize = 3,
        /// ... to a longest that grows from this to data.length ...
        first_longest: usize = 40,
        /// ... over this many sequences (train.batch of them are a step).
        curriculum: u64 = 2_560_000,
        /// Number of training sequences, which repeat after them. 0: every one is new.
        train_sequences: u64 = 0,
        /// Whether training predicts every next token and not only the answers.
        next_tokens: bool = false,
        /// Lengths of held-out sequences, with train.eval_batches batches of each: a model that is right at data.length may
        /// be wrong at longer ones. [] is data.length alone.
        eval_lengths: Vec<usize> = Vec::new(),
    }
}

impl TaskConfig {
    /// Whether there is no task, so that text is trained on.
    pub fn is_text(&self) -> bool {
        self.name == "none"
    }
}

elapid::settings! {
    /// `[train]`: the optimiser and the loop.
    pub struct TrainSettings {
        /// Optimiser steps.
        steps: u64 = 1000,
        /// Rows per batch; on several GPUs, per batch of each GPU.
        batch: usize = 8,
        /// Batches per step, whose gradients are accumulated.
        accumulate: usize = 1,
        /// Peak learning rate. The paper's: 6e-4 (130m), 3e-4 (370m), 2.5e-4 (790m), 2e-4 (1.4b), each times 5.
        lr: f64 = 2e-3,
        /// Learning rate at the last step.
        min_lr: f64 = 1e-5,
        /// Steps of linear warm-up. "auto" is a tenth of the steps, at most 100.
        warmup: Warmup = Warmup::Auto,
        /// Schedule after the warm-up: "cosine", "linear", "constant", or "wsd" (constant for 68 % of the steps, then the
        /// end of a cosine).
        schedule: Decay = Decay::Cosine,
        /// AdamW: decay rate of the mean gradient.
        beta1: f64 = 0.9,
        /// Decay rate of the mean square.
        beta2: f64 = 0.95,
        /// Added to the root of the mean square.
        eps: f64 = 1e-8,
        /// Decoupled weight decay of matrices. Norms, biases, A_log and D have none ...
        weight_decay: f64 = 0.1,
        /// ... unless this is true.
        decay_all: bool = false,
        /// Gradient clipping: gradients with a larger global norm are scaled down to it. 0 disables it.
        clip: f64 = 1.0,
        /// Parameters that are trained in a way of their own, each group under [[train.group]]: parameters = ["*.A_log"], and
        /// lr = 0.1 (a factor), decay = false, or trained = false (frozen).
        group: Vec<ParamGroup> = Vec::new(),
        /// Label smoothing: the part of every target that all tokens share alike, as 0.1. 0 is none. Losses are then those of
        /// smoothed targets, which are never 0, but for held-out text's.
        label_smoothing: f64 = 0.0,
        /// Random seed.
        seed: u64 = 1,
        /// Steps between validations. 0: only at the end.
        eval_every: u64 = 100,
        /// Batches per validation, from the beginning of the held-out text. 0 is all of it. For a task: fresh sequences each
        /// time.
        eval_batches: u64 = 0,
        /// Stop after this many validations without improvement. 0 disables it.
        patience: u64 = 0,
        /// Stop when a task reaches this share of right answers. 0 disables it.
        stop_at_accuracy: f64 = 0.0,
        /// Number of validations in a row that must reach it.
        stop_after: u64 = 3,
        /// Steps between checkpoints. 0: only at the end.
        save_every: u64 = 200,
        /// Steps between lines of metrics.jsonl, whose loss is the mean over these steps.
        log_every: u64 = 10,
        /// Whether blocks recompute their activations in the backward pass instead of storing them: less memory, a third
        /// more work.
        checkpoint_blocks: bool = false,
        /// Dtype of activations: "auto" is bf16 on a GPU and f32 on the CPU. Parameters and the optimiser are always f32.
        dtype: Dtype = Dtype::Auto,
    }
}

elapid::settings! {
    /// `[[train.group]]`: parameters that are trained in a way of their own.
    pub struct ParamGroup {
        /// Their names, in which * stands for any text.
        parameters: Vec<String> = Vec::new(),
        /// Factor of the learning rate.
        lr: f64 = 1.0,
        /// Whether weight decay applies to them; "auto": as it does without the group.
        decay: Auto<bool> = Auto::Auto,
        /// Whether they are trained.
        trained: bool = true,
    }
}

impl TrainSettings {
    /// The learning rate of each step.
    ///
    /// # Errors
    /// As [`Schedule::new`]; never after [`TrainConfig::validate`](super::TrainConfig::validate).
    pub fn lr_schedule(&self) -> crate::Result<Schedule> {
        Schedule::new(self.lr, self.min_lr, self.warmup.of(self.steps), self.steps, self.schedule)
    }
}

elapid::settings! {
    /// `[output]`: the run's directory.
    pub struct OutputConfig {
        /// The run's directory: the model, checkpoints, config.toml, metrics.jsonl, loss.png and loss.svg.
        dir: PathBuf = "runs/out/default".into(),
    }
}

/// One or several paths; in files a string or a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths(pub Vec<String>);

impl Deref for Paths {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl From<Vec<String>> for Paths {
    fn from(all: Vec<String>) -> Self {
        Self(all)
    }
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            all => all.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_or_more(deserializer).map(Self)
    }
}

fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct V;
    impl<'de> Visitor<'de> for V {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path or a list of paths")
        }

        fn visit_str<E: de::Error>(self, one: &str) -> Result<Vec<String>, E> {
            Ok(if one.is_empty() { Vec::new() } else { vec![one.to_owned()] })
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = seq.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(V)
}

impl From<model::ConfigError> for ConfigError {
    fn from(error: model::ConfigError) -> Self {
        let text = error.to_string();
        let (field, what, fix) = match error {
            model::ConfigError::Field { field, what, fix, .. } => {
                let section = if field.starts_with("model.") { "" } else { "model." };
                (format!("{section}{field}"), what, fix)
            }
            model::ConfigError::Syntax { fix, .. } => ("model".into(), text, fix),
        };
        Self { file: "config".into(), line: None, field, what, fix }
    }
}
