//! Mixtral: Mistral with experts.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::format::Codec;
use super::llama::{self, NAMES, SYNONYMS};
use super::names::{Config, Module, Result, Tensors, W};
use super::transformer::{activation, activation_name, ffn, mixer};
use crate::config::{ConfigError, ModelConfig};
use crate::layers::LayerConfig;
use crate::layers::mlp::Activation;
use crate::layers::moe::{Over, Settings};
use crate::settings::{Auto, Count, Size};

/// The configuration of `MixtralForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

/// The tensors of `MixtralForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    let (experts, f) = (config.size("num_local_experts")?, config.size("intermediate_size")?);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, false, "o_proj", false);
        let moe = layer.sub("ffn", "block_sparse_moe");
        all.renamed(&moe, &[("router.weight", "gate.weight")]);
        all.experts(&moe, experts, f, W);
    }
    Ok(all)
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let experts = Settings {
        experts: fields.bounded("num_local_experts", Size::new(8))?,
        top_k: fields.bounded("num_experts_per_tok", Size::new(2))?,
        width: Auto::Is(fields.bounded("intermediate_size", Size::new(14336))?),
        activation: activation(fields, "hidden_act", Activation::Silu)?,
        balance: balance(fields)?,
        balance_over: Over::Model,
        ..Settings::default()
    };
    let window = fields.optional::<1>("sliding_window")?.map_or(0, |window| window.get());
    llama::model(fields, Count::new(window), [false, false], [Some(1), Some(2)], LayerConfig::moe(experts))
}

/// The weight of the load-balancing loss: `transformers` adds it only where logits of routers are asked for.
pub(super) fn balance(fields: &mut Fields) -> Result<f32, ConfigError> {
    let weight = fields.real("router_aux_loss_coef", 0.001)?;
    fields.get("router_jitter_noise"); // noise in training alone
    Ok(if fields.flag("output_router_logits", false)? { weight } else { 0.0 })
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (moe, window): (Settings, _) = (ffn(config)?, mixer(config, 0)?.window.get());
    let mut map = llama::common(config, "MixtralForCausalLM", "mixtral")?;
    let Value::Object(more) = json!({
        "intermediate_size": moe.width,
        "hidden_act": activation_name(moe.activation),
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "sliding_window": if window > 0 { json!(window) } else { Value::Null },
        "output_router_logits": moe.balance > 0.0,
    }) else {
        return None;
    };
    map.extend(more);
    if moe.balance > 0.0 {
        map.insert("router_aux_loss_coef".into(), super::values::real(moe.balance));
    }
    Some(map)
}
