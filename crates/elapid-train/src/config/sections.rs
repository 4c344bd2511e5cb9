//! The sections of a config. `configs/default.toml` says more about each setting; a test keeps the two alike.

use std::fmt;
use std::path::PathBuf;

use elapid::config as model;
use elapid::tokenizer::Tokenizer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;
use crate::data::{HeldOut, JSONL_FIELD, Separator, Source, cache_dir};
use crate::schedule::{Decay, Schedule, Warmup};

/// The sequence mixer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Mamba-1.
    #[default]
    Mamba1,
}

/// How the step-size projection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// Uniform.
    #[default]
    Random,
    /// All the same.
    Constant,
}

/// How A begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AInit {
    /// -(n + 1).
    #[default]
    Arange,
    /// -1/2.
    Half,
    /// -exp of normal.
    ExpNormal,
}

/// How the continuous system becomes a recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// exp(ΔA) and ΔB.
    #[default]
    ExpEuler,
    /// Zero-order hold.
    Zoh,
    /// Bilinear.
    Bilinear,
}

/// Rank of the step-size projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DtRank {
    /// `d_model / 16`, rounded up.
    #[default]
    Auto,
    /// This.
    Rank(usize),
}

/// How batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Shuffled windows, each from a zero state.
    #[default]
    Windows,
    /// The text in order, the state carried.
    Streams,
}

/// The format of activations in training; parameters are always kept in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on a GPU, f32 on the processor.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16, on a GPU only.
    Bf16,
}

impl Dtype {
    /// The format on a device.
    pub fn on(self, device: elapid::Device) -> elapid::DType {
        match (self, device) {
            (Self::F32, _) | (Self::Auto, elapid::Device::Cpu) => elapid::DType::F32,
            _ => elapid::DType::Bf16,
        }
    }
}

/// `[model]`: what is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "configs/default.toml has a line about every field")]
pub struct ModelConfig {
    pub from: String,
    pub family: Family,
    pub d_model: usize,
    pub n_layer: usize,
    pub d_state: usize,
    pub d_conv: usize,
    pub expand: usize,
    pub dt_rank: DtRank,
    pub selective: Vec<String>,
    pub a_init: AInit,
    pub gate: bool,
    pub conv_bias: bool,
    pub proj_bias: bool,
    pub tie_embeddings: bool,
    pub pad_vocab_multiple: usize,
    pub norm_eps: f64,
    pub dt_min: f64,
    pub dt_max: f64,
    pub dt_init_floor: f64,
    pub dt_scale: f64,
    pub dt_init: Init,
    pub discretisation: Rule,
    pub initializer_range: f64,
    pub rescale_prenorm_residual: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            from: String::new(),
            family: Family::Mamba1,
            d_model: 256,
            n_layer: 4,
            d_state: 16,
            d_conv: 4,
            expand: 2,
            dt_rank: DtRank::Auto,
            selective: vec!["delta".into(), "B".into(), "C".into()],
            a_init: AInit::Arange,
            gate: true,
            conv_bias: true,
            proj_bias: false,
            tie_embeddings: true,
            pad_vocab_multiple: 8,
            norm_eps: 1e-5,
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init_floor: 1e-4,
            dt_scale: 1.0,
            dt_init: Init::Random,
            discretisation: Rule::ExpEuler,
            initializer_range: 0.02,
            rescale_prenorm_residual: true,
        }
    }
}

impl ModelConfig {
    /// The library's form, with the vocabulary and the special tokens of a tokenizer.
    ///
    /// # Errors
    /// If such a model cannot be.
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

    /// The library's form with a vocabulary that has no special tokens.
    ///
    /// # Errors
    /// If such a model cannot be.
    pub fn resolve_for(&self, vocab_size: usize) -> Result<model::ModelConfig, model::ConfigError> {
        let config = model::ModelConfig { vocab_size, ..self.with_any_vocabulary() };
        config.validate()?;
        Ok(config)
    }

    /// The library's form with a vocabulary of 256.
    pub(crate) fn with_any_vocabulary(&self) -> model::ModelConfig {
        let Family::Mamba1 = self.family;
        let mixer = model::Mamba1Config {
            d_state: self.d_state,
            d_conv: self.d_conv,
            expand: self.expand,
            d_inner: None,
            dt_rank: match self.dt_rank {
                DtRank::Auto => self.d_model.div_ceil(16),
                DtRank::Rank(rank) => rank,
            },
            // Names are checked by `TrainConfig::validate`.
            selective: model::Selective::from_names(&self.selective).unwrap_or_default(),
            a_init: match self.a_init {
                AInit::Arange => model::AInit::Arange,
                AInit::Half => model::AInit::Half,
                AInit::ExpNormal => model::AInit::ExpNormal,
            },
            gate: self.gate,
            conv_bias: self.conv_bias,
            proj_bias: self.proj_bias,
            dt_min: self.dt_min as f32,
            dt_max: self.dt_max as f32,
            dt_init_floor: self.dt_init_floor as f32,
            dt_scale: self.dt_scale as f32,
            dt_init: match self.dt_init {
                Init::Random => model::DtInit::Random,
                Init::Constant => model::DtInit::Constant,
            },
            rule: match self.discretisation {
                Rule::ExpEuler => elapid_kernels::selective_scan::Discretisation::ExpEuler,
                Rule::Zoh => elapid_kernels::selective_scan::Discretisation::Zoh,
                Rule::Bilinear => elapid_kernels::selective_scan::Discretisation::Bilinear,
            },
        };
        model::ModelConfig {
            pad_vocab_size_multiple: self.pad_vocab_multiple,
            d_model: self.d_model,
            n_layer: self.n_layer,
            mixer: model::MixerConfig::Mamba1(mixer),
            norm_eps: self.norm_eps as f32,
            tie_embeddings: self.tie_embeddings,
            initializer_range: self.initializer_range as f32,
            rescale_prenorm_residual: self.rescale_prenorm_residual,
            ..model::ModelConfig::default()
        }
    }
}

/// `[data]`: what is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "configs/default.toml has a line about every field")]
pub struct DataConfig {
    #[serde(deserialize_with = "one_or_more", serialize_with = "one_if_one")]
    pub train: Vec<String>,
    #[serde(deserialize_with = "one_or_more", serialize_with = "one_if_one")]
    pub val: Vec<String>,
    pub val_fraction: f64,
    pub tokenizer: String,
    pub mode: Mode,
    pub length: usize,
    pub jsonl_field: String,
    pub separator: Separator,
    pub bos: bool,
    pub pack: bool,
    pub cache: String,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: vec!["tinyshakespeare".into()],
            val: Vec::new(),
            val_fraction: 0.1,
            tokenizer: "byte".into(),
            mode: Mode::Windows,
            length: 256,
            jsonl_field: JSONL_FIELD.into(),
            separator: Separator::Tokenizer,
            bos: true,
            pack: false,
            cache: "auto".into(),
        }
    }
}

impl DataConfig {
    /// Where the text to train on is.
    pub fn train_sources(&self) -> Vec<Source> {
        self.train.iter().map(|name| Source::parse(name)).collect()
    }

    /// What is held out.
    pub fn held_out(&self) -> HeldOut {
        match self.val.as_slice() {
            [] => HeldOut::Fraction(self.val_fraction),
            val => HeldOut::Sources(val.iter().map(|name| Source::parse(name)).collect()),
        }
    }

    /// The directory for token caches, if there is to be one.
    pub fn cache_dir(&self) -> Option<PathBuf> {
        match self.cache.as_str() {
            "none" => None,
            "auto" => Some(cache_dir()),
            dir => Some(dir.into()),
        }
    }

    /// Opens the tokenizer, with what these settings put around documents.
    ///
    /// # Errors
    /// As [`Tokenizer::open`] and [`Separator::apply`].
    pub fn open_tokenizer(&self) -> crate::Result<Tokenizer> {
        let tokenizer = if self.tokenizer == "byte" { Tokenizer::byte() } else { Tokenizer::open(&self.tokenizer)? };
        let tokenizer = self.separator.apply(tokenizer)?;
        Ok(if self.bos { tokenizer } else { tokenizer.with_document_prefix([])? })
    }
}

/// `[task]`: what is trained on instead of text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "configs/default.toml has a line about every field")]
pub struct TaskConfig {
    pub name: String,
    pub vocab: usize,
    pub tokens: usize,
    pub next_tokens: bool,
    pub eval_lengths: Vec<usize>,
}

impl Default for TaskConfig {
    fn default() -> Self {
        Self { name: "none".into(), vocab: 16, tokens: 16, next_tokens: false, eval_lengths: Vec::new() }
    }
}

impl TaskConfig {
    /// Whether there is no task: text is trained on.
    pub fn is_text(&self) -> bool {
        self.name == "none"
    }
}

/// `[train]`: how it is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "configs/default.toml has a line about every field")]
pub struct TrainSettings {
    pub steps: u64,
    pub batch: usize,
    pub accumulate: usize,
    pub lr: f64,
    pub min_lr: f64,
    pub warmup: Warmup,
    pub schedule: Decay,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub decay_all: bool,
    pub clip: f64,
    pub label_smoothing: f64,
    pub seed: u64,
    pub eval_every: u64,
    pub eval_batches: u64,
    pub patience: u64,
    pub stop_at_accuracy: f64,
    pub stop_after: u64,
    pub save_every: u64,
    pub log_every: u64,
    pub checkpoint_blocks: bool,
    pub dtype: Dtype,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 8,
            accumulate: 1,
            lr: 2e-3,
            min_lr: 1e-5,
            warmup: Warmup::Auto,
            schedule: Decay::Cosine,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            decay_all: false,
            clip: 1.0,
            label_smoothing: 0.0,
            seed: 1,
            eval_every: 100,
            eval_batches: 0,
            patience: 0,
            stop_at_accuracy: 0.0,
            stop_after: 3,
            save_every: 200,
            log_every: 10,
            checkpoint_blocks: false,
            dtype: Dtype::Auto,
        }
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

/// `[output]`: where the results go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "configs/default.toml has a line about every field")]
pub struct OutputConfig {
    pub dir: PathBuf,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { dir: "runs/out/default".into() }
    }
}

impl Serialize for DtRank {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Rank(rank) => rank.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for DtRank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = DtRank;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, not negative, or \"auto\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DtRank, E> {
                if text == "auto" { Ok(DtRank::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_i64<E: de::Error>(self, rank: i64) -> Result<DtRank, E> {
                usize::try_from(rank)
                    .map(DtRank::Rank)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(rank), &self))
            }
        }
        deserializer.deserialize_any(V)
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

fn one_if_one<S: Serializer>(all: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    match all {
        [one] => serializer.serialize_str(one),
        all => all.serialize(serializer),
    }
}

impl From<model::ConfigError> for ConfigError {
    fn from(error: model::ConfigError) -> Self {
        let what = error.to_string();
        let (field, what, fix) = match error {
            model::ConfigError::Field { field, wanted, got, fix, .. } => {
                let field = match field.as_str() {
                    "pad_vocab_size_multiple" => "pad_vocab_multiple".to_owned(),
                    "rule" => "discretisation".to_owned(),
                    _ => field,
                };
                (format!("model.{field}"), format!("wanted {wanted}, got {got}"), fix)
            }
            model::ConfigError::Syntax { fix, .. } => ("model".into(), what, fix),
        };
        Self { file: "config".into(), line: None, field, what, fix }
    }
}
