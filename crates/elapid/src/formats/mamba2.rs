//! Mamba-2, whose names are elapid's own.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::mamba;
use super::names::{Config, MAMBA2, Result, Tensors};
use super::transformer::settings_of;
use super::values::{limit, named, read_ends, real, with_ends, write_limit};
use crate::config::{ConfigError, ModelConfig, ModelSettings, StackConfig};
use crate::layers::LayerConfig;
use crate::layers::mamba2::Settings;
use crate::settings::Size;

/// The configuration of `Mamba2ForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: true };

/// Names of other writers.
const SYNONYMS: Synonyms = &[
    ("hidden_size", &["d_model"]),
    ("num_hidden_layers", &["n_layer", "n_layers", "num_layers"]),
    ("state_size", &["d_state", "ssm_state_size"]),
    ("conv_kernel", &["d_conv", "conv_kernel_size"]),
    ("head_dim", &["headdim"]),
    ("n_groups", &["ngroups"]),
    ("layer_norm_epsilon", &["norm_epsilon", "rms_norm_eps"]),
    ("tie_word_embeddings", &["tie_embeddings"]),
];

/// What settings are called in a file of Hugging Face.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("norm_eps", "layer_norm_epsilon"),
    ("d_state", "state_size"),
    ("d_conv", "conv_kernel"),
    ("groups", "n_groups"),
    ("dt_min", "time_step_min"),
    ("dt_max", "time_step_max"),
    ("dt_init_floor", "time_step_floor"),
];

/// The tensors of `Mamba2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    mamba::layers(config, MAMBA2)
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fields.only("hidden_act", &["silu", "swish"], "elapid does not have this activation")?;
    // How other programs compute; ranks and widths that follow from other keys; what only Mamba-1 has. The class does not read
    // norm_before_gate, which the published Mamba-Codestral-7B has as true: its weights are of a block that gates first.
    for unread in ["chunk_size", "residual_in_fp32", "layer_types", "intermediate_size", "norm_before_gate"] {
        fields.get(unread);
    }
    for mamba1 in ["time_step_rank", "time_step_init_scheme", "time_step_scale"] {
        fields.get(mamba1);
    }
    fields.rms_norm()?;
    let d_model: Size = fields.bounded("hidden_size", Size::new(4096))?;
    let (expand, head_dim): (Size, Size) =
        (fields.bounded("expand", Size::new(2))?, fields.bounded("head_dim", Size::new(64))?);
    heads(fields, expand, d_model, head_dim)?;
    let [dt_limit_min, dt_limit_max] = limit(fields, "time_step_limit")?;
    let (eps, bias) = (fields.real("layer_norm_epsilon", 1e-5)?, fields.flag("use_bias", false)?);
    let mixer = Settings {
        d_state: fields.bounded("state_size", Size::new(128))?,
        d_conv: fields.bounded("conv_kernel", Size::new(4))?,
        expand,
        head_dim,
        groups: fields.bounded("n_groups", Size::new(8))?,
        dt_limit_min,
        dt_limit_max,
        conv_bias: fields.flag("use_conv_bias", true)?,
        in_bias: bias,
        out_bias: bias,
        dt_min: fields.real("time_step_min", 1e-3)?,
        dt_max: fields.real("time_step_max", 0.1)?,
        dt_init_floor: fields.real("time_step_floor", 1e-4)?,
        ..Settings::default()
    };
    let layer = LayerConfig::mamba2(mixer);
    let model = ModelSettings {
        d_model,
        n_layer: fields.bounded("num_hidden_layers", Size::new(64))?,
        layers: vec![layer.kind().into()],
        norm_eps: eps,
        tie_embeddings: fields.flag("tie_word_embeddings", false)?,
        pad_vocab_multiple: Size::new(1),
        initializer_range: fields.real("initializer_range", 0.1)?,
        rescale_prenorm_residual: fields.flag("rescale_prenorm_residual", false)?,
        ..ModelSettings::default()
    };
    let stack = StackConfig { model, named: [named(layer)].into() };
    read_ends(fields, 32768, stack, [Some(0), Some(2), Some(1)])
}

/// The number of heads, which must be as many as the channels have.
pub(super) fn heads(fields: &mut Fields, expand: Size, d_model: Size, head_dim: Size) -> Result<(), ConfigError> {
    let heads: Size = fields.bounded("num_heads", Size::new(128))?;
    let (channels, said) = (heads.get().checked_mul(head_dim.get()), expand.get().checked_mul(d_model.get()));
    if channels == said {
        return Ok(());
    }
    let wanted = format!("expand * hidden_size / head_dim, {} / {head_dim}", said.unwrap_or_default());
    Err(fields.error("num_heads", &wanted, &json!(heads), "give the number that the weights have"))
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
            "time_step_limit": write_limit(&mixer),
            "time_step_min": real(mixer.dt_min),
            "time_step_max": real(mixer.dt_max),
            "time_step_floor": real(mixer.dt_init_floor),
            "use_conv_bias": mixer.conv_bias,
            "use_bias": mixer.in_bias,
            "hidden_act": "silu",
            "layer_norm_epsilon": real(model.norm_eps),
            "initializer_range": real(model.initializer_range),
            // As with Mamba-1: transformers would divide out_proj whenever it loads weights.
            "rescale_prenorm_residual": false,
            "residual_in_fp32": true,
        }),
    )
}
