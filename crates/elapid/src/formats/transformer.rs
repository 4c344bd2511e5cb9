//! What formats of Transformers share: a stack of attention and feed-forward layers, its rotary positions and activations.

use serde_json::Value;

use super::fields::Fields;
use crate::config::{ConfigError, ModelConfig, ModelSettings, Named, Placement, StackConfig};
use crate::layers::mlp::Activation;
use crate::layers::{LayerConfig, attention, mlp};
use crate::settings::Size;

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// Attention and a feed-forward in every layer.
pub(super) fn stack(model: ModelSettings, mixer: attention::Settings, ffn: mlp::Settings) -> StackConfig {
    let named = |layer| Named { layer, placement: Placement::default() };
    let layers = [("attention", LayerConfig::attention(mixer)), ("mlp", LayerConfig::mlp(ffn))];
    let model = ModelSettings {
        layers: vec!["attention".into()],
        ffn: vec!["mlp".into()],
        pad_vocab_multiple: Size::new(1),
        rescale_prenorm_residual: false,
        ..model
    };
    StackConfig { model, named: layers.map(|(name, layer)| (name.to_owned(), named(layer))).into() }
}

/// The attention of a layer, "auto" replaced by what it stands for; none if the layer has another mixer.
pub(super) fn mixer(config: &ModelConfig, index: usize) -> Option<attention::Settings> {
    let layer = &config.stack.named.get(config.stack.layer(index).0)?.layer;
    layer.resolved(&config.stack.at(index)).settings().cloned()
}

/// The feed-forward of the first layer, in the same way.
pub(super) fn ffn(config: &ModelConfig) -> Option<mlp::Settings> {
    let layer = &config.stack.named.get(config.stack.layer(0).1?)?.layer;
    layer.resolved(&config.stack.at(0)).settings().cloned()
}

/// The names that `transformers` has for activations.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu2", Activation::SquaredRelu),
];

/// The activation under a key.
pub(super) fn activation(fields: &mut Fields, key: &'static str, default: Activation) -> Result<Activation> {
    let Some(value) = fields.get(key) else { return Ok(default) };
    match ACTIVATIONS.iter().find(|(name, _)| value == name) {
        Some((_, activation)) => Ok(*activation),
        None => {
            let known: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            Err(fields.error(
                key,
                &format!("one of {}", known.join(", ")),
                value,
                "elapid does not have this activation",
            ))
        }
    }
}

/// The name that `transformers` has for an activation.
pub(super) fn activation_name(activation: Activation) -> &'static str {
    ACTIVATIONS.iter().find(|(_, one)| *one == activation).map_or("", |(name, _)| name)
}

/// Rotary positions: their base, and the share of a head's columns that are rotated.
pub(super) struct Rotary {
    pub(super) base: f32,
    share: f32,
}

impl Rotary {
    fn check(self, fields: &Fields) -> Result<Self> {
        let got = Value::from(self.share);
        match (0.0..=1.0).contains(&self.share) {
            true => Ok(self),
            false => Err(fields.error("partial_rotary_factor", "0 to 1", &got, "give the share of a head's columns")),
        }
    }

    /// Columns that are rotated, of so many.
    pub(super) fn columns(&self, head_dim: usize) -> usize {
        // As the file has it: 0.7 of 10 are 7, and the nearest f32 to 0.7 is less.
        let share: f64 = self.share.to_string().parse().unwrap_or_default();
        (share * head_dim as f64) as usize
    }
}

/// Reads rotary positions: `rope_parameters`, or as before transformers 5 `rope_theta`, `partial_rotary_factor` and
/// `rope_scaling`.
pub(super) fn rotary(fields: &mut Fields, share: f32) -> Result<Rotary> {
    let mut rotary =
        Rotary { base: fields.real("rope_theta", 10000.0)?, share: fields.real("partial_rotary_factor", share)? };
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.given(key) else { continue };
        let Value::Object(map) = value else { return Err(fields.error(key, "an object", value, "remove it")) };
        let within = if key == "rope_scaling" { "rope_scaling." } else { "rope_parameters." };
        let mut inner = Fields::new(fields.file, within, map, &[("rope_type", &["type"])])?;
        inner.only("rope_type", &["default"], "elapid does not scale rotary positions yet")?;
        rotary.base = inner.real("rope_theta", rotary.base)?;
        rotary.share = inner.real("partial_rotary_factor", rotary.share)?;
        inner.no_unknown("elapid does not have this kind of rotary positions")?;
        rotary = rotary.check(&inner)?;
    }
    rotary.check(fields)
}

/// Rates of dropout change training alone, and elapid has none.
pub(super) fn dropouts(fields: &mut Fields, keys: &[&'static str]) -> Result<()> {
    for key in keys {
        let rate = fields.real(key, 0.0)?;
        if rate > 0.0 {
            let file = fields.file;
            fields.warnings.push(format!("{file}: `{key}` is {rate}: elapid trains this model without dropout"));
        }
    }
    Ok(())
}
