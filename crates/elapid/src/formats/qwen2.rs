//! Qwen2: Llama with biases of queries, keys and values, and a sliding window in some layers.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::format::Codec;
use super::llama::{self, NAMES, SYNONYMS};
use super::names::{Config, Result, Tensors};
use super::transformer::{ffn, mixer};
use crate::config::{ConfigError, ModelConfig, Named};
use crate::layers::LayerConfig;
use crate::layers::attention::Settings;
use crate::settings::{Count, Size};

/// The configuration of `Qwen2ForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

/// The name of attention with a window, where not all layers have one.
const LOCAL: &str = "local";
/// What a layer with a window is called, and one without.
const KINDS: [&str; 2] = ["sliding_attention", "full_attention"];

/// The tensors of `Qwen2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    llama::with_biases(config, true, false)
}

/// Which layers have a window, and how long it is.
pub(super) struct Windows {
    window: Count,
    sliding: Vec<bool>,
}

impl Windows {
    /// Reads them for so many layers.
    pub(super) fn read(fields: &mut Fields) -> Result<Self, ConfigError> {
        let n_layer = fields.bounded("num_hidden_layers", Size::new(32))?.get();
        let used = fields.flag("use_sliding_window", false)?;
        let first = fields.optional::<0>("max_window_layers")?.map_or(28, Count::get);
        let window = fields.optional("sliding_window")?.unwrap_or(Count::new(4096));
        let sliding = match fields.given("layer_types") {
            _ if n_layer > 1 << 16 => Vec::new(), // refused where the stack is checked
            None => (0..n_layer).map(|i| used && i >= first).collect(),
            Some(value) => {
                let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
                if list.len() != n_layer || !list.iter().all(|kind| KINDS.iter().any(|known| kind == known)) {
                    let wanted = format!("{n_layer} times \"{}\" or \"{}\"", KINDS[0], KINDS[1]);
                    return Err(fields.error("layer_types", &wanted, value, "elapid does not have this model yet"));
                }
                list.iter().map(|kind| kind == KINDS[0]).collect()
            }
        };
        Ok(Self { window, sliding })
    }

    /// The window that all layers have; 0 if not all have one.
    pub(super) fn of_all(&self) -> Count {
        let all = !self.sliding.is_empty() && self.sliding.iter().all(|sliding| *sliding);
        if all { self.window } else { Count::new(0) }
    }

    /// Gives layers a window in a model where some have one.
    pub(super) fn apply(&self, config: &mut ModelConfig) {
        if self.of_all().get() > 0 || !self.sliding.contains(&true) {
            return;
        }
        let mixer: Settings = config.stack.named["attention"].layer.settings().cloned().unwrap_or_default();
        let layer = LayerConfig::attention(Settings { window: self.window, ..mixer });
        let placement = config.stack.placement("attention");
        config.stack.named.insert(LOCAL.into(), Named { layer, placement });
        let name = |sliding: &bool| if *sliding { LOCAL.to_owned() } else { "attention".to_owned() };
        config.stack.model.layers = self.sliding.iter().map(name).collect();
    }

    /// The keys for a model.
    pub(super) fn write(config: &ModelConfig, map: &mut Map<String, Value>) -> Option<()> {
        let windows: Option<Vec<usize>> = (0..config.n_layer()).map(|i| Some(mixer(config, i)?.window.get())).collect();
        let windows = windows?;
        let widest = windows.iter().copied().max().unwrap_or_default();
        let kinds: Vec<&str> = windows.iter().map(|&window| KINDS[usize::from(window == 0)]).collect();
        map.insert("use_sliding_window".into(), json!(widest > 0));
        map.insert("sliding_window".into(), if widest > 0 { json!(widest) } else { Value::Null });
        map.insert("layer_types".into(), json!(kinds));
        Some(())
    }
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let (windows, mlp) = (Windows::read(fields)?, llama::gated_mlp(fields)?);
    let mut config = llama::model(fields, windows.of_all(), [true, false], [None, None], mlp)?;
    windows.apply(&mut config);
    Ok(config)
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let mut map = llama::common(config, "Qwen2ForCausalLM", "qwen2")?;
    llama::write_mlp(&ffn(config)?, &mut map);
    Windows::write(config, &mut map)?;
    Some(map)
}
