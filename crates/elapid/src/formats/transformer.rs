//! What formats of Transformers share: a stack of attention and feed-forward layers, its rotary positions and activations.

use std::any::Any;

use serde_json::{Value, json};

use super::fields::Fields;
use super::values::{named, real};
use crate::config::{ConfigError, ModelConfig, ModelSettings, StackConfig};
use crate::layers::attention::RopeScaling;
use crate::layers::mlp::Activation;
use crate::layers::{LayerConfig, attention};
use crate::settings::{Auto, Count, Size};

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// Attention and a feed-forward in every layer, under the names of their kinds.
pub(super) fn stack(model: ModelSettings, mixer: attention::Settings, ffn: LayerConfig) -> StackConfig {
    let kind = ffn.kind();
    let layers = [LayerConfig::attention(mixer), ffn];
    let model = ModelSettings {
        layers: vec!["attention".into()],
        ffn: vec![kind.into()],
        pad_vocab_multiple: Size::new(1),
        rescale_prenorm_residual: false,
        ..model
    };
    StackConfig { model, named: layers.map(named).into() }
}

/// The attention of a layer, "auto" replaced by what it stands for; none if the layer has another mixer.
pub(super) fn mixer(config: &ModelConfig, index: usize) -> Option<attention::Settings> {
    let layer = &config.stack.named.get(config.stack.layer(index).0)?.layer;
    layer.resolved(&config.stack.at(index)).settings().cloned()
}

/// The feed-forward of the first layer that has one of this kind, in the same way.
pub(super) fn ffn<S: Any + Clone>(config: &ModelConfig) -> Option<S> {
    settings_of(config, |i| config.stack.layer(i).1)
}

/// The settings of this type of the first layer that has such, among those which `name` names by their number.
pub(super) fn settings_of<'a, S: Any + Clone>(
    config: &'a ModelConfig,
    name: impl Fn(usize) -> Option<&'a str>,
) -> Option<S> {
    (0..config.n_layer()).find_map(|i| {
        let layer = &config.stack.named.get(name(i)?)?.layer;
        layer.resolved(&config.stack.at(i)).settings().cloned()
    })
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

/// Rotary positions.
pub(super) struct Rotary {
    /// Base and scaling of the frequencies, for an attention that has the rest.
    settings: attention::Settings,
    /// Share of a head's columns that are rotated.
    share: f32,
}

/// The names that `transformers` has for scalings. Its "dynamic" depends on the length of a text, and is none of these.
const SCALINGS: [(&str, RopeScaling); 4] = [
    ("default", RopeScaling::None),
    ("linear", RopeScaling::Linear),
    ("llama3", RopeScaling::Llama3),
    ("yarn", RopeScaling::Yarn),
];

impl Rotary {
    fn check(self, fields: &Fields) -> Result<Self> {
        let got = Value::from(self.share);
        match (0.0..=1.0).contains(&self.share) {
            true => Ok(self),
            false => Err(fields.error("partial_rotary_factor", "0 to 1", &got, "give the share of a head's columns")),
        }
    }

    /// These positions in heads of so many columns.
    pub(super) fn of(self, head_dim: usize) -> attention::Settings {
        let columns = self.columns(head_dim);
        attention::Settings { rotary_dim: Auto::Is(Count::new(columns)), ..self.settings }
    }

    /// Columns that are rotated, of so many.
    fn columns(&self, head_dim: usize) -> usize {
        // As the file has it: 0.7 of 10 are 7, and the nearest f32 to 0.7 is less.
        let share: f64 = self.share.to_string().parse().unwrap_or_default();
        (share * head_dim as f64) as usize
    }
}

/// Reads rotary positions: `rope_parameters`, or as before transformers 5 `rope_theta`, `partial_rotary_factor` and
/// `rope_scaling`.
pub(super) fn rotary(fields: &mut Fields, share: f32) -> Result<Rotary> {
    let settings =
        attention::Settings { rope_base: fields.real("rope_theta", 10000.0)?, ..attention::Settings::default() };
    let mut rotary = Rotary { settings, share: fields.real("partial_rotary_factor", share)? };
    let trained: Count = fields.optional("max_position_embeddings")?.unwrap_or(Count::new(2048));
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.given(key) else { continue };
        let Value::Object(map) = value else { return Err(fields.error(key, "an object", value, "remove it")) };
        let within = if key == "rope_scaling" { "rope_scaling." } else { "rope_parameters." };
        let mut inner = Fields::new(fields.file, within, map, &[("rope_type", &["type"])])?;
        rotary.share = inner.real("partial_rotary_factor", rotary.share)?;
        scaling(&mut inner, &mut rotary.settings, trained)?;
        inner.no_unknown("elapid does not have this kind of rotary positions")?;
        rotary = rotary.check(&inner)?;
    }
    rotary.check(fields)
}

/// Reads base and scaling of the frequencies.
fn scaling(fields: &mut Fields, to: &mut attention::Settings, trained: Count) -> Result<()> {
    to.rope_base = fields.real("rope_theta", to.rope_base)?;
    let names = SCALINGS.map(|(name, _)| name);
    fields.only("rope_type", &names, "elapid does not have this scaling of rotary positions")?;
    let kind = fields.get("rope_type").and_then(Value::as_str).unwrap_or("default");
    to.rope_scaling =
        SCALINGS.iter().find(|(name, _)| *name == kind).map_or(RopeScaling::None, |(_, scaling)| *scaling);
    if to.rope_scaling == RopeScaling::None {
        fields.get("factor"); // of nothing
        return Ok(());
    }
    to.rope_factor = fields.real("factor", 1.0)?;
    let [slow, fast] = match to.rope_scaling {
        RopeScaling::Linear => return Ok(()),
        RopeScaling::Llama3 => ["low_freq_factor", "high_freq_factor"],
        _ => ["beta_slow", "beta_fast"],
    };
    to.rope_original = fields.optional("original_max_position_embeddings")?.unwrap_or(trained);
    to.rope_slow = fields.optional_real(slow)?.unwrap_or(1.0);
    to.rope_fast = fields.optional_real(fast)?.map_or(Auto::Auto, Auto::Is);
    if to.rope_scaling == RopeScaling::Yarn {
        to.rope_truncate = fields.flag("truncate", true)?;
        to.rope_attention_factor = fields.optional_real("attention_factor")?.map_or(Auto::Auto, Auto::Is);
    }
    Ok(())
}

/// The keys for the positions of an attention whose "auto" are resolved; none if `transformers` does not have them.
pub(super) fn rope_parameters(settings: &attention::Settings, partial: Option<f32>) -> Option<Value> {
    let (kind, _) = SCALINGS.iter().find(|(_, scaling)| *scaling == settings.rope_scaling)?;
    let mut map = json!({ "rope_type": kind, "rope_theta": real(settings.rope_base) });
    let fast = real(settings.rope_fast.or(1.0));
    let more = match settings.rope_scaling {
        RopeScaling::None | RopeScaling::Ntk => json!({}),
        RopeScaling::Linear => json!({ "factor": real(settings.rope_factor) }),
        RopeScaling::Llama3 => json!({
            "factor": real(settings.rope_factor),
            "low_freq_factor": real(settings.rope_slow),
            "high_freq_factor": fast,
            "original_max_position_embeddings": settings.rope_original,
        }),
        RopeScaling::Yarn => json!({
            "factor": real(settings.rope_factor),
            "beta_slow": real(settings.rope_slow),
            "beta_fast": fast,
            "original_max_position_embeddings": settings.rope_original,
            "attention_factor": real(settings.rope_attention_factor.or(1.0)),
            "truncate": settings.rope_truncate,
        }),
    };
    let (to, more) = (map.as_object_mut()?, more.as_object()?.clone());
    to.extend(more);
    if let Some(share) = partial {
        to.insert("partial_rotary_factor".into(), real(share));
    }
    Some(map)
}

/// Dropout of probabilities changes training alone, and elapid does not have it.
pub(super) fn attention_dropout(fields: &mut Fields, key: &'static str) -> Result<()> {
    let rate = fields.real(key, 0.0)?;
    if rate > 0.0 {
        let file = fields.file;
        let warning = format!("{file}: `{key}` is {rate}: elapid trains this model without dropout of probabilities");
        fields.warnings.push(warning);
    }
    Ok(())
}
