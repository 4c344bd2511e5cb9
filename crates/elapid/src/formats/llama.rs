//! Llama, and what its relatives share with it: pre-norm attention with rotary positions, and a gated MLP.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::names::{Config, Module, PROJ, Result, Tensors};
use super::transformer::{activation, activation_name, attention_dropout, ffn, mixer, rope_parameters, rotary, stack};
use super::values::{read_ends, real, with_ends};
use crate::config::{ConfigError, ModelConfig, ModelSettings};
use crate::layers::LayerConfig;
use crate::layers::attention::{Rope, Settings};
use crate::layers::mlp::{self, Activation};
use crate::settings::{Auto, Count, Size};

/// The configuration of `LlamaForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

/// Older names of keys.
pub(super) const SYNONYMS: Synonyms = &[("rms_norm_eps", &["norm_eps"])];

/// What settings are called in a file of Hugging Face.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("norm_eps", "rms_norm_eps"),
    ("heads", "num_attention_heads"),
    ("kv_heads", "num_key_value_heads"),
    ("width", "intermediate_size"),
];

/// The tensors of `LlamaForCausalLM` and `MistralForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let bias = config.flag("attention_bias");
    with_biases(config, bias, bias)
}

/// Those of a relative, with biases of queries, keys and values, and of the output projection, or without.
pub(super) fn with_biases(config: &Config<'_>, qkv: bool, out: bool) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, qkv, "o_proj", out);
        all.gated_mlp(&layer.sub("ffn", "mlp"), config.size("intermediate_size")?, PROJ, config.flag("mlp_bias"));
    }
    Ok(all)
}

/// Buffers of the rotary positions that older writers stored.
pub(super) fn ignores(name: &str) -> bool {
    name.ends_with(".self_attn.rotary_emb.inv_freq")
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let bias = fields.flag("attention_bias", false)?;
    fields.get("pretraining_tp"); // how products were cut while it was trained
    let mlp = gated_mlp(fields)?;
    model(fields, Count::new(0), [bias, bias], [Some(1), Some(2)], mlp)
}

/// Reads the gated MLP.
pub(super) fn gated_mlp(fields: &mut Fields) -> Result<LayerConfig, ConfigError> {
    Ok(LayerConfig::mlp(mlp::Settings {
        width: Auto::Is(fields.bounded("intermediate_size", Size::new(11008))?),
        activation: activation(fields, "hidden_act", Activation::Silu)?,
        gate: true,
        bias: fields.flag("mlp_bias", false)?,
        ..mlp::Settings::default()
    }))
}

/// Writes the gated MLP.
pub(super) fn write_mlp(mlp: &mlp::Settings, map: &mut Map<String, Value>) {
    map.insert("intermediate_size".into(), json!(mlp.width));
    map.insert("hidden_act".into(), activation_name(mlp.activation).into());
}

/// Reads what the relatives have in common beside the feed-forward.
pub(super) fn model(
    fields: &mut Fields,
    window: Count,
    [qkv_bias, out_bias]: [bool; 2],
    [bos, eos]: [Option<u32>; 2],
    ffn: LayerConfig,
) -> Result<ModelConfig, ConfigError> {
    let (d_model, heads): (Size, Size) =
        (fields.bounded("hidden_size", Size::new(4096))?, fields.bounded("num_attention_heads", Size::new(32))?);
    let head_dim = fields.optional("head_dim")?.unwrap_or(Size::new(d_model.get() / heads.get()));
    let rotary = rotary(fields, 1.0)?;
    let attention = Settings {
        heads,
        kv_heads: Auto::Is(fields.optional("num_key_value_heads")?.unwrap_or(heads)),
        head_dim: Auto::Is(head_dim),
        window,
        rope: Rope::Halves,
        qkv_bias,
        out_bias,
        ..rotary.of(head_dim.get())
    };
    attention_dropout(fields, "attention_dropout")?;
    let model = ModelSettings {
        d_model,
        n_layer: fields.bounded("num_hidden_layers", Size::new(32))?,
        norm_eps: fields.real("rms_norm_eps", 1e-6)?,
        tie_embeddings: fields.flag("tie_word_embeddings", false)?,
        initializer_range: fields.real("initializer_range", 0.02)?,
        ..ModelSettings::default()
    };
    read_ends(fields, 32000, stack(model, attention, ffn), [bos, eos, None])
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let mut map = common(config, "LlamaForCausalLM", "llama")?;
    map.insert("attention_bias".into(), mixer(config, 0)?.qkv_bias.into());
    let mlp: mlp::Settings = ffn(config)?;
    write_mlp(&mlp, &mut map);
    map.insert("mlp_bias".into(), mlp.bias.into());
    Some(map)
}

/// The keys that the relatives have in common beside the feed-forward; none if the model is not of their kind.
pub(super) fn common(config: &ModelConfig, class: &str, model_type: &str) -> Option<Map<String, Value>> {
    let (model, attention) = (&config.stack.model, mixer(config, 0)?);
    with_ends(
        config,
        json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": config.d_model(),
            "num_hidden_layers": config.n_layer(),
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "rope_parameters": rope_parameters(&attention, None)?,
            "rms_norm_eps": real(model.norm_eps),
            "initializer_range": real(model.initializer_range),
            "attention_dropout": 0.0,
        }),
    )
}
