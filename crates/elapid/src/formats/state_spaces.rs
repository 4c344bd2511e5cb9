//! The layout of the original code, `state-spaces/mamba`, whose `config.json` has no `model_type`.

use serde_json::{Map, Value};

use super::fields::{Fields, Synonyms};
use super::format::{Codec, Format};
use super::names::Tensors;
use super::values::{dt_rank, stack};
use crate::config::{ConfigError, ModelConfig, ModelSettings, NEOX_VOCAB};
use crate::layers::mamba1::Settings;
use crate::settings::{Auto, Size};

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// The configuration of `MambaLMHeadModel`.
pub(super) const CODEC: Codec =
    Codec { synonyms: SYNONYMS, names: NAMES, read: original, write: |_| None, own_names: true };

/// The layout, which no `model_type` names.
pub(super) static FORMAT: Format =
    Format { model_type: "", tensors: |_| Ok(Tensors::default()), ignores: |_| false, codec: Some(CODEC) };

/// Names of other writers.
const SYNONYMS: Synonyms = &[
    ("n_layer", &["num_hidden_layers", "n_layers", "num_layers"]),
    ("norm_epsilon", &["norm_eps", "rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"]),
    ("tie_embeddings", &["tie_word_embeddings"]),
];

/// What settings are called in such a file, where that is something else.
const NAMES: &[(&str, &str)] = &[
    ("norm_eps", "norm_epsilon"),
    ("d_state", "ssm_cfg.d_state"),
    ("d_conv", "ssm_cfg.d_conv"),
    ("expand", "ssm_cfg.expand"),
    ("dt_rank", "ssm_cfg.dt_rank"),
    ("dt_min", "ssm_cfg.dt_min"),
    ("dt_max", "ssm_cfg.dt_max"),
    ("dt_init_floor", "ssm_cfg.dt_init_floor"),
    ("dt_scale", "ssm_cfg.dt_scale"),
];

fn original(fields: &mut Fields) -> Result<ModelConfig> {
    fields.only("model_type", &["mamba"], NOT_YET)?;
    fields.rms_norm()?;
    if let Some(other) = fields.get("d_intermediate").filter(|value| value.as_u64() != Some(0)) {
        return Err(fields.error("d_intermediate", "0, blocks without an MLP", other, NOT_YET));
    }
    if let Some(other) =
        fields.get("attn_layer_idx").filter(|value| value.as_array().is_none_or(|list| !list.is_empty()))
    {
        return Err(fields.error("attn_layer_idx", "[], no attention layers", other, NOT_YET));
    }
    fields.get("attn_cfg"); // says how attention layers are, and there are none
    let d_model: Size = fields.required("d_model")?;
    let vocab_size = fields.required::<1>("vocab_size")?.get();
    let neox = vocab_size == NEOX_VOCAB || vocab_size == NEOX_VOCAB.next_multiple_of(8);
    // The layout itself does not record them. The published models have the GPT-NeoX tokenizer, <|endoftext|> its token 0.
    let id = |fields: &mut Fields, key| match fields.get(key) {
        Some(_) => fields.id(key),
        None => Ok(neox.then_some(0)),
    };
    let empty = Map::new();
    let map = match fields.get("ssm_cfg") {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.error("ssm_cfg", "an object", other, "write {} for the defaults")),
    };
    let mut ssm = Fields::new(fields.file, "ssm_cfg.", map, &[])?;
    let mixer = ssm_cfg(&mut ssm, d_model, &Settings::default())?;
    fields.get("residual_in_fp32"); // How other programs keep the stream; elapid's is in the dtype of activations.
    let model = ModelSettings {
        d_model,
        n_layer: fields.required("n_layer")?,
        norm_eps: fields.real("norm_epsilon", 1e-5)?,
        tie_embeddings: fields.flag("tie_embeddings", true)?,
        pad_vocab_multiple: fields.bounded("pad_vocab_size_multiple", Size::new(8))?,
        initializer_range: fields.real("initializer_range", 0.02)?,
        ..ModelSettings::default()
    };
    Ok(ModelConfig {
        vocab_size,
        stack: stack(model, mixer),
        bos_token_id: id(fields, "bos_token_id")?,
        eos_token_id: id(fields, "eos_token_id")?,
        pad_token_id: id(fields, "pad_token_id")?,
    })
}

const NOT_YET: &str = "not supported yet: give a model of Mamba-1 blocks only";

/// The mixer that `ssm_cfg` describes; what it leaves out is as in `default`.
pub(super) fn ssm_cfg(ssm: &mut Fields, d_model: Size, default: &Settings) -> Result<Settings> {
    ssm.only("layer", &["Mamba1"], NOT_YET)?;
    ssm.get("use_fast_path"); // chooses a kernel, not a function
    let mixer = Settings {
        d_state: ssm.bounded("d_state", default.d_state)?,
        d_conv: ssm.bounded("d_conv", default.d_conv)?,
        expand: ssm.bounded("expand", default.expand)?,
        d_inner: if ssm.map.contains_key("expand") { Auto::Auto } else { default.d_inner },
        dt_rank: match ssm.get("dt_rank") {
            None => default.dt_rank,
            Some(_) => dt_rank(ssm, "dt_rank", d_model)?,
        },
        conv_bias: ssm.flag("conv_bias", default.conv_bias)?,
        proj_bias: ssm.flag("bias", default.proj_bias)?,
        dt_min: ssm.real("dt_min", default.dt_min)?,
        dt_max: ssm.real("dt_max", default.dt_max)?,
        dt_init_floor: ssm.real("dt_init_floor", default.dt_init_floor)?,
        dt_scale: ssm.real("dt_scale", default.dt_scale)?,
        dt_init: ssm.dt_init("dt_init")?,
        ..default.clone()
    };
    ssm.no_unknown("elapid does not know what it means; remove it if the default is right")?;
    Ok(mixer)
}
