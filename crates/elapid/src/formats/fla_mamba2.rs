//! Mamba-2 of flash-linear-attention. Its `model_type` is that of `transformers`, its keys and defaults are its own, and it has more
//! variants of the block. A configuration with `norm_eps` is of this library; that of `transformers` says `layer_norm_epsilon`.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::mamba;
use super::mamba2::heads;
use super::names::{Config, MAMBA2, Result, Tensors};
use super::transformer::settings_of;
use super::values::{limit, named, read_ends, real, with_ends, write_limit};
use crate::config::{ConfigError, ModelConfig, ModelSettings, StackConfig};
use crate::layers::LayerConfig;
use crate::layers::mamba2::{GatedNorm, Settings};
use crate::settings::Size;

/// The configuration of the library's `Mamba2ForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: true };

/// Names that older versions have.
const SYNONYMS: Synonyms = &[
    ("dt_min", &["time_step_min"]),
    ("dt_max", &["time_step_max"]),
    ("dt_init_floor", &["time_step_floor"]),
    ("dt_limit", &["time_step_limit"]),
];

/// What settings are called in such a file.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("d_state", "state_size"),
    ("d_conv", "conv_kernel"),
    ("groups", "n_groups"),
];

/// Whether a configuration with this `model_type` is of this library.
pub(super) fn is(map: &Map<String, Value>) -> bool {
    map.contains_key("norm_eps") && !map.contains_key("layer_norm_epsilon")
}

/// The tensors of the library's `Mamba2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let off = |key: &str| config.0.get(key).is_some_and(|value| *value == false);
    let there = |name: &&&str| match **name {
        "norm.weight" => !off("rmsnorm"),
        "conv1d.bias" => !off("use_conv_bias"),
        _ => true,
    };
    let names: Vec<&str> = MAMBA2.iter().filter(there).copied().collect();
    mamba::layers(config, &names)
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fields.only("hidden_act", &["silu", "swish"], "elapid does not have this activation")?;
    for unread in ["chunk_size", "residual_in_fp32", "time_step_rank", "conv_init"] {
        fields.get(unread); // How the library computes; ranks that there are not; how new weights are drawn.
    }
    fields.rms_norm()?; // What older versions call the norm of the stream.
    let d_model: Size = fields.bounded("hidden_size", Size::new(2048))?;
    let head_dim: Size = fields.bounded("head_dim", Size::new(64))?;
    let expand: Size = fields.bounded("expand", Size::new(2))?;
    if fields.given("num_heads").is_some() {
        heads(fields, expand, d_model, head_dim)?;
    }
    let [dt_limit_min, dt_limit_max] = limit(fields, "dt_limit")?;
    let [a_min, a_max] = range(fields)?;
    let gated_norm = match (fields.flag("rmsnorm", true)?, fields.flag("norm_before_gate", false)?) {
        (false, _) => GatedNorm::None,
        (true, false) => GatedNorm::GateFirst,
        (true, true) => GatedNorm::NormFirst,
    };
    let (eps, bias) = (fields.real("norm_eps", 1e-5)?, fields.flag("use_bias", false)?);
    let mixer = Settings {
        d_state: fields.bounded("state_size", Size::new(128))?,
        d_conv: fields.bounded("conv_kernel", Size::new(4))?,
        expand,
        head_dim,
        groups: fields.bounded("n_groups", Size::new(1))?,
        skip_per_channel: fields.flag("D_has_hdim", false)?,
        gated_norm,
        dt_limit_min,
        dt_limit_max,
        conv_bias: fields.flag("use_conv_bias", true)?,
        in_bias: bias,
        out_bias: bias,
        a_min,
        a_max,
        dt_min: fields.real("dt_min", 1e-3)?,
        dt_max: fields.real("dt_max", 0.1)?,
        dt_init_floor: fields.real("dt_init_floor", 1e-4)?,
        ..Settings::default()
    };
    let layer = LayerConfig::mamba2(mixer);
    let model = ModelSettings {
        d_model,
        n_layer: fields.bounded("num_hidden_layers", Size::new(48))?,
        layers: vec![layer.kind().into()],
        norm_eps: eps,
        tie_embeddings: fields.flag("tie_word_embeddings", false)?,
        pad_vocab_multiple: Size::new(1),
        initializer_range: fields.real("initializer_range", 0.02)?,
        rescale_prenorm_residual: fields.flag("rescale_prenorm_residual", true)?,
        ..ModelSettings::default()
    };
    let stack = StackConfig { model, named: [named(layer)].into() };
    read_ends(fields, 32000, stack, [Some(1), Some(2), Some(0)])
}

/// What new A are drawn from.
fn range(fields: &mut Fields) -> Result<[f32; 2], ConfigError> {
    let Some(value) = fields.given("A_init_range") else { return Ok([1.0, 16.0]) };
    let both = value.as_array().and_then(|list| match list.as_slice() {
        [low, high] => Some([low.as_f64()? as f32, high.as_f64()? as f32]),
        _ => None,
    });
    both.ok_or_else(|| fields.error("A_init_range", "the least and the largest A", value, "remove it"))
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let model = &config.stack.model;
    let mixer: Settings = settings_of(config, |i| Some(config.stack.layer(i).0))?;
    let (d, inner) = (config.d_model(), mixer.d_inner.or(Size::new(1)).get());
    if !inner.is_multiple_of(d) {
        return None;
    }
    with_ends(
        config,
        json!({
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": "mamba2",
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": d,
            "num_hidden_layers": config.n_layer(),
            "state_size": mixer.d_state,
            "conv_kernel": mixer.d_conv,
            "expand": inner / d,
            "head_dim": mixer.head_dim,
            "num_heads": inner / mixer.head_dim.get(),
            "n_groups": mixer.groups,
            "dt_limit": write_limit(&mixer),
            "dt_min": real(mixer.dt_min),
            "dt_max": real(mixer.dt_max),
            "dt_init_floor": real(mixer.dt_init_floor),
            "A_init_range": [real(mixer.a_min), real(mixer.a_max)],
            "D_has_hdim": mixer.skip_per_channel,
            "rmsnorm": mixer.gated_norm != GatedNorm::None,
            "norm_before_gate": mixer.gated_norm == GatedNorm::NormFirst,
            "use_conv_bias": mixer.conv_bias,
            "use_bias": mixer.in_bias,
            "hidden_act": "silu",
            "norm_eps": real(model.norm_eps),
            "initializer_range": real(model.initializer_range),
            "rescale_prenorm_residual": model.rescale_prenorm_residual,
            "residual_in_fp32": true,
        }),
    )
}
