//! Values and parts of configurations that several formats have.

use serde_json::{Map, Number, Value, json};

use super::fields::Fields;
use crate::config::{ConfigError, ModelConfig, ModelSettings, Named, Placement, StackConfig};
use crate::layers::mamba1::Settings;
use crate::layers::{LayerConfig, mamba2};
use crate::settings::{Auto, Count, Size};

/// A stack of Mamba-1 blocks alone.
pub(super) fn stack(model: ModelSettings, mixer: Settings) -> StackConfig {
    StackConfig { model, named: [named(LayerConfig::mamba1(mixer))].into() }
}

/// A layer with the usual placement, under the name of its kind.
pub(super) fn named(layer: LayerConfig) -> (String, Named) {
    (layer.kind().to_owned(), Named { layer, placement: Placement::default() })
}

/// The rank of the step sizes: "auto" and the number that it stands for are the same.
pub(super) fn dt_rank(fields: &mut Fields, key: &'static str, d_model: Size) -> Result<Auto<Count>, ConfigError> {
    if fields.get(key).is_none_or(|value| value == "auto") {
        return Ok(Auto::Auto);
    }
    let rank: Count = fields.bounded(key, Count::new(0))?;
    Ok(if rank.get() == d_model.get().div_ceil(16) { Auto::Auto } else { Auto::Is(rank) })
}

/// The number with as few digits as bring the same f32 back: 1e-5, not 9.999999747378752e-6.
pub(super) fn real(x: f32) -> Value {
    let short = x.to_string().parse::<f64>().ok().filter(|short| *short as f32 == x);
    Number::from_f64(short.unwrap_or(f64::from(x))).map_or(Value::Null, Value::Number)
}

/// The model of a stack: its vocabulary and special tokens are read, these ids (first, last, padding) standing for absent ones.
pub(super) fn read_ends(
    fields: &mut Fields,
    vocab_size: usize,
    stack: StackConfig,
    [bos, eos, pad]: [Option<u32>; 3],
) -> Result<ModelConfig, ConfigError> {
    Ok(ModelConfig {
        vocab_size: fields.size("vocab_size", vocab_size)?,
        stack,
        bos_token_id: fields.id_or("bos_token_id", bos)?,
        eos_token_id: fields.id_or("eos_token_id", eos)?,
        pad_token_id: fields.id_or("pad_token_id", pad)?,
    })
}

/// The keys of a model with those at the end of every format of `transformers`: whether the head is tied, special tokens.
pub(super) fn with_ends(config: &ModelConfig, keys: Value) -> Option<Map<String, Value>> {
    let ends = json!({
        "tie_word_embeddings": config.stack.model.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    });
    let (Value::Object(mut map), Value::Object(ends)) = (keys, ends) else { return None };
    map.extend(ends);
    Some(map)
}

/// The limits of step sizes under a key; 0 for none above.
pub(super) fn limit(fields: &mut Fields, key: &'static str) -> Result<[f32; 2], ConfigError> {
    let Some(limit) = fields.given(key) else { return Ok([0.0, 0.0]) };
    // Infinity is no JSON: bare, it is null after parsing; transformers 5 writes an object.
    let high = |high: &Value| match high.is_null() || high["__float__"] == "Infinity" {
        true => Some(0.0),
        false => high.as_f64().map(|x| if x > 1e30 { 0.0 } else { x as f32 }),
    };
    let both = limit.as_array().and_then(|list| match list.as_slice() {
        [low, top] => Some([low.as_f64()? as f32, high(top)?]),
        _ => None,
    });
    both.ok_or_else(|| fields.error(key, "the least and the largest step size", limit, "remove it"))
}

/// Those limits in the file.
pub(super) fn write_limit(settings: &mamba2::Settings) -> Value {
    let high =
        if settings.dt_limit_max > 0.0 { real(settings.dt_limit_max) } else { json!({ "__float__": "Infinity" }) };
    json!([real(settings.dt_limit_min), high])
}
