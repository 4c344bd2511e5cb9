//! Gated linear attention, of flash-linear-attention.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::fla::{self, always, expand, expanded, head_dim, heads, is_false, lacks, norm_name, nothing};
use super::format::Codec;
use super::names::{Config, Module, Result, Tensors};
use crate::config::{ConfigError, ModelConfig};
use crate::layers::LayerConfig;
use crate::layers::gla::Settings;
use crate::settings::Auto;

/// The configuration of `GLAForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: &[], names: fla::NAMES, read, write, own_names: false };

/// The tensors of `GLAForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    fla::tensors(config, 4, mixer)
}

fn mixer(config: &Config<'_>, attn: &Module, all: &mut Tensors) -> Result<()> {
    let (key, value) = (expanded(config, "expand_k", 0.5)?, expanded(config, "expand_v", 1.0)?);
    let mut parts = vec![(key, "q_proj"), (key, "k_proj"), (value, "v_proj")];
    if !is_false(config, "use_output_gate") {
        parts.push((value, "g_proj"));
    }
    all.rows(attn, "qkvg", &parts, false);
    all.renamed(
        attn,
        &[
            ("decay.down.weight", "gk_proj.0.weight"),
            ("decay.up.weight", "gk_proj.1.weight"),
            ("decay.up.bias", "gk_proj.1.bias"),
            ("norm.weight", norm_name(config)),
            ("out_proj.weight", "o_proj.weight"),
        ],
    );
    Ok(())
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fla::read(fields, 4, |fields, d_model| {
        lacks(fields, &["use_short_conv", "use_gv"])?;
        fields.get("conv_size"); // Of convolutions that there are not.
        always(fields, "use_gk")?;
        always(fields, "elementwise_affine")?;
        nothing(fields, "clamp_min")?;
        nothing(fields, "feature_map")?;
        let heads = heads(fields, 4)?;
        Ok(LayerConfig::gla(Settings {
            heads,
            key_dim: Auto::Is(head_dim(fields, "expand_k", 0.5, d_model, heads)?),
            value_dim: Auto::Is(head_dim(fields, "expand_v", 1.0, d_model, heads)?),
            gate: fields.flag("use_output_gate", true)?,
            ..Settings::default()
        }))
    })
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    fla::write(config, ["gla", "GLAForCausalLM"], |gla: &Settings| {
        json!({
            "num_heads": gla.heads,
            "expand_k": expand(gla.key_dim, gla.heads, config),
            "expand_v": expand(gla.value_dim, gla.heads, config),
            "use_output_gate": gla.gate,
            "use_short_conv": false,
            "elementwise_affine": true,
        })
    })
}
