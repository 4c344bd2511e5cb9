//! GPT-NeoX (Pythia): q, k and v stand together head by head; a layer and its feed-forward read the same stream.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::names::{Config, Module, Result, Tensors};
use super::transformer::{activation, activation_name, attention_dropout, ffn, mixer, rope_parameters, rotary, stack};
use super::values::{read_ends, real, with_ends};
use crate::config::{ConfigError, ModelConfig, ModelSettings, Wiring};
use crate::layers::LayerConfig;
use crate::layers::attention::{Rope, Settings};
use crate::layers::mlp::{self, Activation};
use crate::ops::NormKind;
use crate::settings::{Auto, Count, Size};

/// The configuration of `GPTNeoXForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

/// The names before transformers 5.
const SYNONYMS: Synonyms = &[("rope_theta", &["rotary_emb_base"]), ("partial_rotary_factor", &["rotary_pct"])];

/// What settings are called in such a file.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("norm_eps", "layer_norm_eps"),
    ("heads", "num_attention_heads"),
    ("width", "intermediate_size"),
];

/// The tensors of `GPTNeoXForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight", "embed_out.weight"]);
    all.one("backbone.norm_f.bias", "gpt_neox.final_layer_norm.bias");
    let heads = config.size("num_attention_heads")?;
    let dim = config.size("hidden_size")?.checked_div(heads).unwrap_or_default();
    let bias = config.0.get("attention_bias").and_then(Value::as_bool).unwrap_or(true);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "gpt_neox.layers");
        for kind in ["weight", "bias"] {
            for (ours, theirs) in [
                ("norm", "input_layernorm"),
                ("ffn_norm", "post_attention_layernorm"),
                ("ffn.up", "mlp.dense_h_to_4h"),
                ("ffn.down", "mlp.dense_4h_to_h"),
            ] {
                all.put(&layer, &format!("{ours}.{kind}"), layer.file(&format!("{theirs}.{kind}")));
            }
            if kind == "weight" || bias {
                let qkv = layer.file(&format!("attention.query_key_value.{kind}")).grouped(heads, &[dim, dim, dim]);
                all.put(&layer, &format!("mixer.qkv.{kind}"), qkv);
                all.put(&layer, &format!("mixer.out_proj.{kind}"), layer.file(&format!("attention.dense.{kind}")));
            }
        }
    }
    Ok(all)
}

/// Buffers of the causal mask and of the rotary positions that older writers stored.
pub(super) fn ignores(name: &str) -> bool {
    [".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"]
        .iter()
        .any(|end| name.ends_with(end))
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let (d_model, heads): (Size, Size) =
        (fields.bounded("hidden_size", Size::new(6144))?, fields.bounded("num_attention_heads", Size::new(64))?);
    let head_dim = Size::new(d_model.get() / heads.get());
    let (rotary, bias) = (rotary(fields, 0.25)?, fields.flag("attention_bias", true)?);
    let attention = Settings {
        heads,
        kv_heads: Auto::Is(heads),
        head_dim: Auto::Is(head_dim),
        rope: Rope::Halves,
        qkv_bias: bias,
        out_bias: bias,
        ..rotary.of(head_dim.get())
    };
    let mlp = mlp::Settings {
        width: Auto::Is(fields.bounded("intermediate_size", Size::new(24576))?),
        activation: activation(fields, "hidden_act", Activation::Gelu)?,
        gate: false,
        bias: true,
        ..mlp::Settings::default()
    };
    attention_dropout(fields, "attention_dropout")?;
    let dropout = fields.real("hidden_dropout", 0.0)?;
    fields.get("classifier_dropout"); // of a head that classifies
    let parallel = fields.flag("use_parallel_residual", true)?;
    let model = ModelSettings {
        d_model,
        n_layer: fields.bounded("num_hidden_layers", Size::new(44))?,
        norm: NormKind::Layer,
        norm_eps: fields.real("layer_norm_eps", 1e-5)?,
        dropout,
        embedding_dropout: dropout,
        wiring: if parallel { Wiring::Parallel } else { Wiring::Serial },
        tie_embeddings: fields.flag("tie_word_embeddings", false)?,
        initializer_range: fields.real("initializer_range", 0.02)?,
        ..ModelSettings::default()
    };
    read_ends(fields, 50432, stack(model, attention, LayerConfig::mlp(mlp)), [Some(0), Some(2), None])
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (model, attention, mlp) = (&config.stack.model, mixer(config, 0)?, ffn::<mlp::Settings>(config)?);
    let share = attention.rotary_dim.or(Count::new(0)).get() as f32 / attention.head_dim.or(Size::new(1)).get() as f32;
    with_ends(
        config,
        json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": config.d_model(),
            "num_hidden_layers": config.n_layer(),
            "num_attention_heads": attention.heads,
            "intermediate_size": mlp.width,
            "hidden_act": activation_name(mlp.activation),
            "attention_bias": attention.qkv_bias,
            "use_parallel_residual": model.wiring == Wiring::Parallel,
            "rope_parameters": rope_parameters(&attention, Some(share))?,
            "layer_norm_eps": real(model.norm_eps),
            "initializer_range": real(model.initializer_range),
            "attention_dropout": 0.0,
            "hidden_dropout": real(model.dropout),
        }),
    )
}
