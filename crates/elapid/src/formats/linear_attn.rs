//! Linear attention, of flash-linear-attention.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::fla::{self, always, expand, expanded, head_dim, heads, lacks};
use super::format::Codec;
use super::names::{Config, Module, Result, Tensors};
use crate::config::{ConfigError, ModelConfig};
use crate::layers::LayerConfig;
use crate::layers::linear_attention::{FeatureMap, OutputNorm, Settings};
use crate::settings::Auto;

/// The configuration of `LinearAttentionForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: &[], names: fla::NAMES, read, write, own_names: false };

/// The names of feature maps.
const MAPS: &[(&str, FeatureMap)] = &[
    ("elementwise_product", FeatureMap::Product),
    ("elu", FeatureMap::Elu),
    ("relu", FeatureMap::Relu),
    ("identity", FeatureMap::Identity),
];

/// What the sum of the products is raised by.
const EPS: f32 = 1e-10;

/// The tensors of `LinearAttentionForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    fla::tensors(config, 4, mixer)
}

fn mixer(config: &Config<'_>, attn: &Module, all: &mut Tensors) -> Result<()> {
    let (key, value) = (expanded(config, "expand_k", 1.0)?, expanded(config, "expand_v", 1.0)?);
    all.rows(attn, "qkv", &[(key, "q_proj"), (key, "k_proj"), (value, "v_proj")], false);
    all.same(attn, &["norm.weight"]);
    all.renamed(attn, &[("out_proj.weight", "o_proj.weight")]);
    if config.0.get("feature_map").is_none_or(|map| map == MAPS[0].0) {
        let learned = ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"];
        all.same_in(attn, [("q_map", "feature_map_q"), ("k_map", "feature_map_k")], &learned);
    }
    Ok(())
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fla::read(fields, 4, |fields, d_model| {
        lacks(fields, &["norm_q", "norm_k"])?;
        always(fields, "elementwise_affine")?;
        let names: Vec<&str> = MAPS.iter().map(|(name, _)| *name).collect();
        fields.only("feature_map", &names, "elapid does not have this feature map")?;
        let said = fields.get("feature_map").cloned();
        let map = MAPS.iter().find(|(name, _)| said.as_ref().is_none_or(|said| said == name)).map(|(_, map)| *map);
        let feature_map = map.unwrap_or(FeatureMap::Product);
        // Maps without parameters are the same in any case.
        match feature_map {
            FeatureMap::Product => lacks(fields, &["tie_feature_map_qk"])?,
            _ => _ = fields.get("tie_feature_map_qk"),
        }
        let normalise = fields.flag("norm_feature_map", false)?;
        let heads = heads(fields, 4)?;
        Ok(LayerConfig::linear_attention(Settings {
            heads,
            key_dim: Auto::Is(head_dim(fields, "expand_k", 1.0, d_model, heads)?),
            value_dim: Auto::Is(head_dim(fields, "expand_v", 1.0, d_model, heads)?),
            feature_map,
            normalise,
            eps: if normalise { EPS } else { Settings::default().eps },
            output_norm: OutputNorm::Rms,
            ..Settings::default()
        }))
    })
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    fla::write(config, ["linear_attn", "LinearAttentionForCausalLM"], |linear: &Settings| {
        json!({
            "num_heads": linear.heads,
            "expand_k": expand(linear.key_dim, linear.heads, config),
            "expand_v": expand(linear.value_dim, linear.heads, config),
            "feature_map": MAPS.iter().find(|(_, map)| *map == linear.feature_map).map(|(name, _)| name),
            "tie_feature_map_qk": false,
            "norm_feature_map": linear.normalise,
            "norm_q": false,
            "norm_k": false,
            "elementwise_affine": true,
        })
    })
}
