//! RetNet, of flash-linear-attention. Its decays are constants that no file has.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::fla::{self, expand, expanded, head_dim, heads, is_false, lacks, norm_name, nothing};
use super::format::Codec;
use super::names::{Config, Module, Result, Tensors};
use super::stored::Stored;
use crate::config::{ConfigError, ModelConfig};
use crate::layers::LayerConfig;
use crate::layers::attention::Rope;
use crate::layers::retnet::Settings;
use crate::settings::Auto;

/// The configuration of `RetNetForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: &[], names: fla::NAMES, read, write, own_names: false };

/// The tensors of `RetNetForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    fla::tensors(config, 2, mixer)
}

fn mixer(config: &Config<'_>, attn: &Module, all: &mut Tensors) -> Result<()> {
    let (key, value) = (expanded(config, "expand_k", 1.0)?, expanded(config, "expand_v", 2.0)?);
    let mut parts = vec![(key, "q_proj"), (key, "k_proj"), (value, "v_proj")];
    if !is_false(config, "use_output_gate") {
        parts.push((value, "g_proj"));
    }
    all.put(attn, "decay", Stored::Absent);
    all.rows(attn, "qkvg", &parts, false);
    all.renamed(attn, &[("out_proj.weight", "o_proj.weight")]);
    if !is_false(config, "elementwise_affine") {
        all.renamed(attn, &[("norm.weight", norm_name(config))]);
    }
    Ok(())
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fla::read(fields, 2, |fields, d_model| {
        lacks(fields, &["use_short_conv"])?;
        fields.get("conv_size"); // Of convolutions that there are not.
        nothing(fields, "feature_map")?;
        let heads = heads(fields, 8)?;
        Ok(LayerConfig::retnet(Settings {
            heads,
            key_dim: Auto::Is(head_dim(fields, "expand_k", 1.0, d_model, heads)?),
            value_dim: Auto::Is(head_dim(fields, "expand_v", 2.0, d_model, heads)?),
            rope: Rope::Halves,
            rope_to_base: false,
            gate: fields.flag("use_output_gate", true)?,
            norm_weight: fields.flag("elementwise_affine", true)?,
            ..Settings::default()
        }))
    })
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    fla::write(config, ["retnet", "RetNetForCausalLM"], |retnet: &Settings| {
        json!({
            "num_heads": retnet.heads,
            "expand_k": expand(retnet.key_dim, retnet.heads, config),
            "expand_v": expand(retnet.value_dim, retnet.heads, config),
            "use_output_gate": retnet.gate,
            "use_short_conv": false,
            "elementwise_affine": retnet.norm_weight,
        })
    })
}
