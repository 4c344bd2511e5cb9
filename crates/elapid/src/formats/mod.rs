//! Formats of checkpoints: how other programs describe a model, and how its tensors lie in their files.
//!
//! A file for each format, chosen by `model_type`: its configuration read and written (`Codec`), and a map from elapid's
//! names of tensors to expressions over those of the file ([`stored`]), which reading evaluates and writing inverts.

mod bamba;
mod falcon_h1;
mod fields;
mod gpt2;
mod gpt_neox;
mod granite_moe_hybrid;
mod jamba;
mod kimi_linear;
mod lfm2;
mod llama;
mod mamba;
mod mamba2;
mod minimax;
mod mistral;
mod mixtral;
pub mod names;
mod nemotron_h;
mod olmo_hybrid;
pub(crate) mod places;
mod qwen2;
mod qwen2_moe;
mod qwen3_next;
mod read;
mod recurrent_gemma;
mod rwkv;
mod state_spaces;
pub mod stored;
mod transformer;
mod xlstm;
mod zamba;
mod zamba2;

use names::{Config, Result, Tensors};
use serde_json::{Map, Value};

use crate::config::{ConfigError, ModelConfig};
use fields::{Fields, Synonyms};
pub use places::Places;
pub(crate) use read::{Described, describe, parse_json};

/// How a format describes a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codec {
    /// Names of other writers for its keys.
    synonyms: Synonyms,
    /// What settings of elapid are called in its files.
    names: &'static [(&'static str, &'static str)],
    /// Reads a configuration.
    read: fn(&mut Fields<'_>) -> Result<ModelConfig, ConfigError>,
    /// Writes the keys for a model; none if it is of another kind. Reading them back says whether they are this very model.
    write: fn(&ModelConfig) -> Option<Map<String, Value>>,
    /// Whether its tensors have elapid's names, perhaps with the prefixes of other writers.
    own_names: bool,
}

/// A format of a model's files.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// The `model_type` of its configuration.
    pub model_type: &'static str,
    /// elapid's tensors for a configuration, each with its place in the file.
    pub tensors: fn(&Config<'_>) -> Result<Tensors>,
    /// Tensors of the file that are no parameters.
    pub ignores: fn(&str) -> bool,
    /// Its configuration, if elapid has all layers of such models.
    pub(crate) codec: Option<Codec>,
}

const fn format(model_type: &'static str, tensors: fn(&Config<'_>) -> Result<Tensors>) -> Format {
    Format { model_type, tensors, ignores: |_| false, codec: None }
}

/// All that are known, by `model_type`.
pub static FORMATS: &[Format] = &[
    format("bamba", bamba::tensors),
    format("falcon_h1", falcon_h1::tensors),
    format("falcon_mamba", mamba::tensors),
    Format { ignores: gpt2::ignores, codec: Some(gpt2::CODEC), ..format("gpt2", gpt2::tensors) },
    Format { ignores: gpt_neox::ignores, codec: Some(gpt_neox::CODEC), ..format("gpt_neox", gpt_neox::tensors) },
    format("granitemoehybrid", granite_moe_hybrid::tensors),
    format("jamba", jamba::tensors),
    format("kimi_linear", kimi_linear::tensors),
    format("lfm2", lfm2::tensors),
    Format { ignores: llama::ignores, codec: Some(llama::CODEC), ..format("llama", llama::tensors) },
    Format { codec: Some(mamba::CODEC), ..format("mamba", mamba::tensors) },
    format("mamba2", mamba2::tensors),
    Format { ignores: minimax::ignores, ..format("minimax", minimax::tensors) },
    Format { codec: Some(mistral::CODEC), ..format("mistral", llama::tensors) },
    format("mixtral", mixtral::tensors),
    Format { ignores: nemotron_h::ignores, ..format("nemotron_h", nemotron_h::tensors) },
    format("olmo_hybrid", olmo_hybrid::tensors),
    Format { codec: Some(qwen2::CODEC), ..format("qwen2", qwen2::tensors) },
    format("qwen2_moe", qwen2_moe::tensors),
    format("qwen3_next", qwen3_next::tensors),
    format("recurrent_gemma", recurrent_gemma::tensors),
    format("rwkv", rwkv::tensors),
    format("xlstm", xlstm::tensors),
    format("zamba", zamba::tensors),
    format("zamba2", zamba2::tensors),
];

impl Format {
    /// Where the tensors of a model lie, whose configuration has these keys.
    fn places(&self, map: &Map<String, Value>) -> Result<Places> {
        if self.codec.as_ref().is_none_or(|codec| codec.own_names) {
            return Ok(Places::default());
        }
        let listed = (self.tensors)(&Config(map))?.0.into_iter().collect();
        let mut untied = map.clone();
        untied.insert("tie_word_embeddings".into(), Value::Bool(false));
        let head = (self.tensors)(&Config(&untied))?.0.into_iter().find(|(name, _)| name == places::HEAD);
        let head = head.and_then(|(_, place)| place.names().first().map(|name| (*name).to_owned()));
        Ok(Places { listed, head: head.unwrap_or_else(|| places::HEAD.to_owned()), ignores: self.ignores })
    }
}

/// The format of a configuration that can be read: by its `model_type`, or by the class of models it names, or the
/// original code's.
fn readable(map: &Map<String, Value>) -> Option<&'static Format> {
    let architectures = map.get("architectures").and_then(Value::as_array);
    let is_mamba = |name: &Value| name == "MambaForCausalLM" || name == "MambaModel";
    let named = match map.get("model_type").and_then(Value::as_str) {
        Some(model_type) => Some(model_type),
        None if architectures.is_some_and(|list| list.iter().any(is_mamba)) => Some("mamba"),
        None => None,
    };
    let hugging_face = map.contains_key("hidden_size") || !map.contains_key("d_model");
    match named {
        Some(model_type) if hugging_face => {
            FORMATS.iter().find(|format| format.model_type == model_type && format.codec.is_some())
        }
        None if hugging_face => None,
        _ => Some(&state_spaces::FORMAT),
    }
}

#[cfg(test)]
mod tests;
