//! The contents of a run's checkpoint besides the model.

use elapid::params::Params;
use elapid::tokenizer::Tokenizer;
use elapid::{LanguageModel, State};

use crate::Result;
use crate::optim::AdamW;

/// The progress of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Position {
    /// Optimiser steps done.
    pub(crate) step: u64,
    /// Tokens trained on.
    pub(crate) tokens: u64,
    /// Seconds of training, over all sessions.
    pub(crate) seconds: f64,
    /// Lowest validation loss so far.
    pub(crate) best: Option<f64>,
    /// Validations since then.
    pub(crate) stale: u64,
    /// Number of consecutive validations, up to the last one, that reached `train.stop_at_accuracy`.
    pub(crate) accurate: u64,
    /// Sum of the losses of steps since the last record of `metrics.jsonl`, and their number.
    pub(crate) unlogged: (f64, u64),
}

/// What must be equal in a run and its checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// A fingerprint of the tokens and the tokenizer; empty for a task.
    pub(crate) data: String,
    /// How held-out losses are measured. Losses measured in another way cannot be compared.
    pub(crate) measure: String,
}

/// What is saved.
pub(crate) struct Saved<'a> {
    pub(crate) position: Position,
    pub(crate) identity: &'a Identity,
    pub(crate) model: &'a LanguageModel,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    pub(crate) optimiser: &'a AdamW,
    /// The state of streams.
    pub(crate) carried: Option<&'a State>,
}

/// A digest of named tensors, which must be ordered by name.
#[derive(Default)]
pub(super) struct Digest(pub(super) blake3::Hasher);

impl Digest {
    pub(super) fn tensor(&mut self, name: &str, elements: &[f32]) {
        self.text(name);
        self.0.update(&(elements.len() as u64).to_le_bytes());
        let mut bytes = Vec::with_capacity(1 << 16);
        for part in elements.chunks(1 << 14) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|x| x.to_le_bytes()));
            self.0.update(&bytes);
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    pub(super) fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }

    /// Of a model's weights.
    pub(super) fn of(params: &Params) -> Result<String> {
        let mut all: Vec<_> = params.iter().map(|(_, param)| param).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let mut digest = Self::default();
        for param in all {
            digest.tensor(&param.name, &param.value.to_vec()?);
        }
        Ok(digest.finish())
    }
}
