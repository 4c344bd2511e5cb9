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
mod mixtral;
pub mod names;
mod nemotron_h;
mod olmo_hybrid;
mod qwen2_moe;
mod qwen3_next;
mod read;
mod recurrent_gemma;
mod rwkv;
mod state_spaces;
pub mod stored;
mod xlstm;
mod zamba;
mod zamba2;

use names::{Config, Result, Tensors};
use serde_json::{Map, Value};

use crate::config::{ConfigError, ModelConfig};
use fields::{Fields, Synonyms};
pub(crate) use read::parse_json;

/// How a format describes a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codec {
    /// Names of other writers for its keys.
    synonyms: Synonyms,
    /// What settings of elapid are called in its files.
    names: &'static [(&'static str, &'static str)],
    /// Reads a configuration.
    read: fn(&mut Fields<'_>) -> Result<ModelConfig, ConfigError>,
    /// Writes one; none if the format cannot say this model.
    write: fn(&ModelConfig) -> Option<Map<String, Value>>,
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
    format("gpt2", gpt2::tensors),
    format("gpt_neox", gpt_neox::tensors),
    format("granitemoehybrid", granite_moe_hybrid::tensors),
    format("jamba", jamba::tensors),
    format("kimi_linear", kimi_linear::tensors),
    format("lfm2", lfm2::tensors),
    format("llama", llama::tensors),
    Format { codec: Some(mamba::CODEC), ..format("mamba", mamba::tensors) },
    format("mamba2", mamba2::tensors),
    Format { ignores: minimax::ignores, ..format("minimax", minimax::tensors) },
    format("mistral", llama::tensors),
    format("mixtral", mixtral::tensors),
    Format { ignores: nemotron_h::ignores, ..format("nemotron_h", nemotron_h::tensors) },
    format("olmo_hybrid", olmo_hybrid::tensors),
    format("qwen2_moe", qwen2_moe::tensors),
    format("qwen3_next", qwen3_next::tensors),
    format("recurrent_gemma", recurrent_gemma::tensors),
    format("rwkv", rwkv::tensors),
    format("xlstm", xlstm::tensors),
    format("zamba", zamba::tensors),
    format("zamba2", zamba2::tensors),
];

/// How a configuration is to be read: by its `model_type`, or by the class of models it names, or as the original code's.
fn codec(map: &Map<String, Value>) -> Option<&'static Codec> {
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
            FORMATS.iter().find(|format| format.model_type == model_type)?.codec.as_ref()
        }
        None if hugging_face => None,
        _ => Some(&state_spaces::CODEC),
    }
}

#[cfg(test)]
mod tests;
