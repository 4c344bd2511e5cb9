//! The configuration of a model: the sizes and choices in `config.json` and in `[model]` of a training config.
//!
//! The schema is that of a [stack](StackConfig) and of the layers in it, independent of any family. How other programs
//! describe the same is in [`formats`](crate::formats).

mod error;
mod stack;

pub use stack::{ModelSettings, Named, Place, Placement, PositionKind, StackConfig, Wiring};

use std::fmt;

use crate::settings::Size;

pub use error::ConfigError;
use error::IN_CODE;

/// The vocabulary of the GPT-NeoX tokenizer, with which the published models were trained.
pub(crate) const NEOX_VOCAB: usize = 50277;

/// A language model: its stack, its vocabulary and special tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Number of token ids in use. The embedding may have more rows: see [`ModelConfig::padded_vocab_size`].
    pub vocab_size: usize,
    /// The layers, and the embedding, norms and head around them.
    pub stack: StackConfig,
    /// The token that begins a document.
    pub bos_token_id: Option<u32>,
    /// The token that ends a document.
    pub eos_token_id: Option<u32>,
    /// The token that pads a batch.
    pub pad_token_id: Option<u32>,
}

impl Default for ModelConfig {
    /// A byte-level model, small enough to train on a laptop: 4 layers of Mamba-1 of width 128.
    fn default() -> Self {
        let (d_model, n_layer) = (Size::new(128), Size::new(4));
        let model = ModelSettings { d_model, n_layer, pad_vocab_multiple: Size::new(1), ..ModelSettings::default() };
        let stack = StackConfig { model, ..StackConfig::default() };
        Self { vocab_size: 256, stack, bos_token_id: None, eos_token_id: None, pad_token_id: None }
    }
}

impl ModelConfig {
    /// A Mamba-1 model by name: a published size (`130m`, `370m`, `790m`, `1.4b`, `2.8b`, with or without `mamba-`
    /// before it), or `<d_model>x<n_layer>` (`256x8`), which has a vocabulary of 256 bytes until that is set.
    ///
    /// # Errors
    /// If the name is neither, or the size is impossible.
    pub fn mamba1(name: &str) -> Result<Self, ConfigError> {
        const SIZES: [(&str, usize, usize); 5] =
            [("130m", 768, 24), ("370m", 1024, 48), ("790m", 1536, 48), ("1.4b", 2048, 48), ("2.8b", 2560, 64)];
        let lower = name.to_ascii_lowercase();
        let short = lower.strip_prefix("mamba-").unwrap_or(&lower);
        let published = SIZES.iter().find(|size| size.0 == short);
        let custom = || {
            let (d_model, n_layer) = short.split_once('x')?;
            Some((d_model.parse().ok()?, n_layer.parse().ok()?))
        };
        let sizes = published.map(|&(_, d_model, n_layer)| (d_model, n_layer)).or_else(custom);
        let sizes = sizes.and_then(|(d_model, n_layer)| Some((Size::checked(d_model)?, Size::checked(n_layer)?)));
        let Some((d_model, n_layer)) = sizes else {
            return Err(ConfigError::field(
                IN_CODE,
                "size",
                "130m, 370m, 790m, 1.4b, 2.8b or <d_model>x<n_layer>",
                format_args!("`{name}`"),
                "give a published size, or a width and a number of layers such as 256x8",
            ));
        };
        let mut config = Self::default();
        (config.stack.model.d_model, config.stack.model.n_layer) = (d_model, n_layer);
        if published.is_some() {
            (config.vocab_size, config.stack.model.pad_vocab_multiple) = (NEOX_VOCAB, Size::new(8));
            (config.bos_token_id, config.eos_token_id, config.pad_token_id) = (Some(0), Some(0), Some(0));
        }
        config.validate()?;
        Ok(config)
    }

    /// Width of the residual stream.
    pub fn d_model(&self) -> usize {
        self.stack.model.d_model.get()
    }

    /// Number of layers.
    pub fn n_layer(&self) -> usize {
        self.stack.model.n_layer.get()
    }

    /// Rows of the embedding: the vocabulary rounded up.
    pub fn padded_vocab_size(&self) -> usize {
        self.vocab_size.checked_next_multiple_of(self.stack.model.pad_vocab_multiple.get()).unwrap_or(self.vocab_size)
    }

    /// Checks that such a model is possible; whether it fits into memory is checked when it is built.
    ///
    /// # Errors
    /// The first field with an impossible value: a reversed range, a value that is not finite, an id beyond the vocabulary.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |field: &str, wanted: &dyn fmt::Display, got: &dyn fmt::Display, fix: &str| {
            Err(ConfigError::field(IN_CODE, field, wanted, got, fix))
        };
        if Size::checked(self.vocab_size).is_none() {
            let wanted = format!("1 to {}", Size::MAX);
            return error("vocab_size", &wanted, &self.vocab_size, "give the number of token ids");
        }
        let ids = [
            ("bos_token_id", self.bos_token_id),
            ("eos_token_id", self.eos_token_id),
            ("pad_token_id", self.pad_token_id),
        ];
        for (field, id) in ids {
            let Some(id) = id.filter(|&id| id as usize >= self.padded_vocab_size()) else { continue };
            let wanted = format!("an id below {}", self.padded_vocab_size());
            return error(field, &wanted, &id, "give the token's id, or null if the model has no such token");
        }
        self.stack.check("model").map_err(|problem| ConfigError::of(problem, IN_CODE))
    }
}

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;
