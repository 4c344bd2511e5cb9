//! Qwen2-MoE: attention with biases of q, k and v; experts beside one that all tokens share, behind a gate.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::format::Codec;
use super::llama::{self, NAMES, SYNONYMS};
use super::mixtral::balance;
use super::names::{Config, Module, PROJ, Result, Tensors};
use super::qwen2::Windows;
use super::transformer::{activation, activation_name, ffn, mixer};
use crate::config::{ConfigError, ModelConfig, Named, Placement};
use crate::layers::LayerConfig;
use crate::layers::mlp::{self, Activation};
use crate::layers::moe::{Over, Settings};
use crate::settings::{Auto, Count, Size};

/// The configuration of `Qwen2MoeForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

/// The tensors of `Qwen2MoeForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        let bias = config.0.get("qkv_bias").and_then(serde_json::Value::as_bool).unwrap_or(true);
        all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, bias, "o_proj", false);
        feed_forward(config, i, &layer.sub("ffn", "mlp"), &mut all)?;
    }
    Ok(all)
}

/// The MLP or the experts of layer i, as Qwen3-Next has them too.
pub(super) fn feed_forward(config: &Config<'_>, i: usize, ffn: &Module, all: &mut Tensors) -> Result<()> {
    let dense = config.sizes("mlp_only_layers")?.contains(&i);
    if dense || !(i + 1).is_multiple_of(config.size_or("decoder_sparse_step", || Ok(1))?.max(1)) {
        all.gated_mlp(ffn, config.size("intermediate_size")?, PROJ, false);
        return Ok(());
    }
    all.renamed(ffn, &[("router.weight", "gate.weight"), ("shared_gate.weight", "shared_expert_gate.weight")]);
    all.experts(ffn, config.size("num_experts")?, config.size("moe_intermediate_size")?, PROJ);
    let shared = config.size("shared_expert_intermediate_size")?;
    all.gated_mlp(&ffn.sub("shared", "shared_expert"), shared, PROJ, false);
    Ok(())
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let windows = Windows::read(fields)?;
    let bias = fields.flag("qkv_bias", true)?;
    let hidden_act = activation(fields, "hidden_act", Activation::Silu)?;
    let experts = Settings {
        experts: fields.bounded("num_experts", Size::new(60))?,
        top_k: fields.bounded("num_experts_per_tok", Size::new(4))?,
        width: Auto::Is(fields.bounded("moe_intermediate_size", Size::new(1408))?),
        activation: hidden_act,
        renormalise: fields.flag("norm_topk_prob", false)?,
        shared_width: fields.bounded("shared_expert_intermediate_size", Count::new(5632))?,
        shared_gate: true,
        balance: balance(fields)?,
        balance_over: Over::Model,
        ..Settings::default()
    };
    let mlp = mlp::Settings {
        width: Auto::Is(fields.bounded("intermediate_size", Size::new(5632))?),
        activation: hidden_act,
        ..mlp::Settings::default()
    };
    let step = fields.optional::<1>("decoder_sparse_step")?.map_or(1, Size::get);
    let dense = dense_layers(fields)?;
    let mut config = llama::model(fields, windows.of_all(), [bias, false], [None, None], LayerConfig::moe(experts))?;
    windows.apply(&mut config);
    let kinds: Vec<&str> = (0..config.n_layer().min(1 << 16))
        .map(|i| if dense.contains(&i) || !(i + 1).is_multiple_of(step) { "mlp" } else { "moe" })
        .collect();
    if kinds.contains(&"mlp") {
        let named = Named { layer: LayerConfig::mlp(mlp), placement: Placement::default() };
        config.stack.named.insert("mlp".to_owned(), named);
        config.stack.model.ffn = kinds.into_iter().map(str::to_owned).collect();
    }
    Ok(config)
}

/// The layers that have a plain MLP.
fn dense_layers(fields: &mut Fields) -> Result<Vec<usize>, ConfigError> {
    let Some(value) = fields.given("mlp_only_layers") else { return Ok(Vec::new()) };
    let size = |size: &Value| usize::try_from(size.as_u64()?).ok();
    let layers = value.as_array().and_then(|list| list.iter().map(size).collect());
    layers.ok_or_else(|| fields.error("mlp_only_layers", "a list of layers' numbers", value, "correct it"))
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let moe: Settings = ffn(config)?;
    let dense: Option<mlp::Settings> = ffn(config);
    let kind = |i: usize| config.stack.layer(i).1.and_then(|name| Some(config.stack.named.get(name)?.layer.kind()));
    let only: Vec<usize> = (0..config.n_layer()).filter(|&i| kind(i) == Some("mlp")).collect();
    let mut map = llama::common(config, "Qwen2MoeForCausalLM", "qwen2_moe")?;
    Windows::write(config, &mut map)?;
    let Value::Object(more) = json!({
        "intermediate_size": dense.map_or(5632, |mlp| mlp.width.or(Size::new(1)).get()),
        "hidden_act": activation_name(moe.activation),
        "qkv_bias": mixer(config, 0)?.qkv_bias,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.width,
        "norm_topk_prob": moe.renormalise,
        "shared_expert_intermediate_size": moe.shared_width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": only,
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
