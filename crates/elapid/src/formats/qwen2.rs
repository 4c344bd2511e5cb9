//! Qwen2: Llama with biases of queries, keys and values, and a sliding window in some layers.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::format::Codec;
use super::llama::{self, NAMES, SYNONYMS};
use super::names::{Config, Result, Tensors};
use super::transformer::mixer;
use crate::config::{ConfigError, ModelConfig, Named};
use crate::layers::LayerConfig;
use crate::layers::attention::Settings;
use crate::settings::{Count, Size};

/// The configuration of `Qwen2ForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

/// The name of attention with a window, where not all layers have one.
const LOCAL: &str = "local";
/// What a layer with a window is called, and one without.
const SLIDING: [&str; 2] = ["sliding_attention", "full_attention"];

/// The tensors of `Qwen2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    llama::with_biases(config, true, false)
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let n_layer = fields.bounded("num_hidden_layers", Size::new(32))?.get();
    let used = fields.flag("use_sliding_window", false)?;
    let first = fields.optional::<0>("max_window_layers")?.map_or(28, Count::get);
    let window = fields.optional::<1>("sliding_window")?.map_or(4096, |window| window.get());
    let sliding: Vec<bool> = match fields.given("layer_types") {
        _ if n_layer > 1 << 16 => Vec::new(), // refused below
        None => (0..n_layer).map(|i| used && i >= first).collect(),
        Some(value) => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if list.len() != n_layer || !list.iter().all(|kind| SLIDING.iter().any(|known| kind == known)) {
                let wanted = format!("{n_layer} times \"{}\" or \"{}\"", SLIDING[0], SLIDING[1]);
                return Err(fields.error("layer_types", &wanted, value, "elapid does not have this model yet"));
            }
            list.iter().map(|kind| kind == SLIDING[0]).collect()
        }
    };
    let all = !sliding.is_empty() && sliding.iter().all(|sliding| *sliding);
    let whole = Count::new(if all { window } else { 0 });
    let mut config = llama::model(fields, whole, [true, false], [None, None])?;
    if !all && sliding.contains(&true) {
        let mixer: Settings = config.stack.named["attention"].layer.settings().cloned().unwrap_or_default();
        let layer = LayerConfig::attention(Settings { window: Count::new(window), ..mixer });
        let placement = config.stack.placement("attention");
        config.stack.named.insert(LOCAL.into(), Named { layer, placement });
        let name = |sliding: &bool| if *sliding { LOCAL.to_owned() } else { "attention".to_owned() };
        config.stack.model.layers = sliding.iter().map(name).collect();
    }
    Ok(config)
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let windows: Option<Vec<usize>> = (0..config.n_layer()).map(|i| Some(mixer(config, i)?.window.get())).collect();
    let windows = windows?;
    let widest = windows.iter().copied().max().unwrap_or_default();
    let kinds: Vec<&str> = windows.iter().map(|&window| SLIDING[usize::from(window == 0)]).collect();
    let mut map = llama::common(config, "Qwen2ForCausalLM", "qwen2")?;
    map.insert("use_sliding_window".into(), json!(widest > 0));
    map.insert("sliding_window".into(), if widest > 0 { json!(widest) } else { Value::Null });
    map.insert("layer_types".into(), json!(kinds));
    Some(map)
}
