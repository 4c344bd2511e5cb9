//! Mistral: Llama with a sliding window.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::format::Codec;
use super::llama::{self, NAMES, SYNONYMS};
use super::transformer::{ffn, mixer};
use crate::config::{ConfigError, ModelConfig};
use crate::settings::Count;

/// The configuration of `MistralForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let window = match fields.map.contains_key("sliding_window") {
        true => fields.optional::<1>("sliding_window")?.map_or(0, |window| window.get()),
        false => 4096,
    };
    let mlp = llama::gated_mlp(fields)?;
    llama::model(fields, Count::new(window), [false, false], [Some(1), Some(2)], mlp)
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let window = mixer(config, 0)?.window.get();
    let mut map = llama::common(config, "MistralForCausalLM", "mistral")?;
    llama::write_mlp(&ffn(config)?, &mut map);
    map.insert("sliding_window".into(), if window > 0 { json!(window) } else { Value::Null });
    Some(map)
}
