//! GPT-2: learned positions; matrices are stored input by output.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::names::{Config, Module, Result, Tensors};
use super::transformer::{activation, activation_name, attention_dropout, ffn, mixer, stack};
use super::values::{read_ends, real, with_ends};
use crate::config::{ConfigError, ModelConfig, ModelSettings, PositionKind};
use crate::layers::LayerConfig;
use crate::layers::attention::{Rope, Settings};
use crate::layers::mlp::{self, Activation};
use crate::ops::NormKind;
use crate::settings::{Auto, Count, Size};

/// The configuration of `GPT2LMHeadModel`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

/// The names by which `transformers` knows these keys too.
const SYNONYMS: Synonyms = &[
    ("n_embd", &["hidden_size"]),
    ("n_layer", &["num_hidden_layers"]),
    ("n_head", &["num_attention_heads"]),
    ("n_positions", &["max_position_embeddings"]),
];

/// What settings are called in such a file.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "n_embd"),
    ("norm_eps", "layer_norm_epsilon"),
    ("heads", "n_head"),
    ("width", "n_inner"),
    ("max_positions", "n_positions"),
    ("dropout", "resid_pdrop"),
    ("embedding_dropout", "embd_pdrop"),
];

/// The tensors of `GPT2LMHeadModel`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["transformer.wte.weight", "transformer.ln_f.weight", "lm_head.weight"]);
    all.one("backbone.norm_f.bias", "transformer.ln_f.bias");
    all.one("backbone.positions.weight", "transformer.wpe.weight");
    for i in 0..config.size("n_layer")? {
        let layer = Module::layer(i, "transformer.h");
        all.renamed(
            &layer,
            &[
                ("norm.weight", "ln_1.weight"),
                ("norm.bias", "ln_1.bias"),
                ("ffn_norm.weight", "ln_2.weight"),
                ("ffn_norm.bias", "ln_2.bias"),
            ],
        );
        for (ours, theirs) in [
            ("mixer.qkv", "attn.c_attn"),
            ("mixer.out_proj", "attn.c_proj"),
            ("ffn.up", "mlp.c_fc"),
            ("ffn.down", "mlp.c_proj"),
        ] {
            all.put(&layer, &format!("{ours}.weight"), layer.file(&format!("{theirs}.weight")).transposed());
            all.put(&layer, &format!("{ours}.bias"), layer.file(&format!("{theirs}.bias")));
        }
    }
    Ok(all)
}

/// Buffers of the causal mask that older writers stored.
pub(super) fn ignores(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let (d_model, heads): (Size, Size) =
        (fields.bounded("n_embd", Size::new(768))?, fields.bounded("n_head", Size::new(12))?);
    fields.never("scale_attn_by_inverse_layer_idx", "elapid does not scale attention by layer")?;
    fields.get("reorder_and_upcast_attn"); // the order in which the same is computed
    for key in
        ["summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"]
    {
        fields.get(key); // of heads that classify
    }
    let head_dim = d_model.get() / heads.get();
    let scale = if fields.flag("scale_attn_weights", true)? { (head_dim as f32).powf(-0.5) } else { 1.0 };
    let attention = Settings {
        heads,
        kv_heads: Auto::Is(heads),
        head_dim: Auto::Is(Size::new(head_dim)),
        rope: Rope::None,
        softmax_scale: Auto::Is(scale),
        qkv_bias: true,
        out_bias: true,
        ..Settings::default()
    };
    let mlp = mlp::Settings {
        width: Auto::Is(fields.optional("n_inner")?.unwrap_or(Size::new(d_model.get().saturating_mul(4)))),
        activation: activation(fields, "activation_function", Activation::GeluTanh)?,
        gate: false,
        bias: true,
        ..mlp::Settings::default()
    };
    attention_dropout(fields, "attn_pdrop")?;
    let model = ModelSettings {
        d_model,
        n_layer: fields.bounded("n_layer", Size::new(12))?,
        norm: NormKind::Layer,
        norm_eps: fields.real("layer_norm_epsilon", 1e-5)?,
        dropout: fields.real("resid_pdrop", 0.1)?,
        embedding_dropout: fields.real("embd_pdrop", 0.1)?,
        positions: PositionKind::Learned,
        max_positions: fields.bounded("n_positions", Count::new(1024))?,
        tie_embeddings: fields.flag("tie_word_embeddings", true)?,
        initializer_range: fields.real("initializer_range", 0.02)?,
        ..ModelSettings::default()
    };
    let end = Some(50256);
    read_ends(fields, 50257, stack(model, attention, LayerConfig::mlp(mlp)), [end, end, None])
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (model, attention, mlp) = (&config.stack.model, mixer(config, 0)?, ffn::<mlp::Settings>(config)?);
    let scaled = attention.softmax_scale != Auto::Is(1.0);
    with_ends(
        config,
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": config.padded_vocab_size(),
            "n_embd": config.d_model(),
            "n_layer": config.n_layer(),
            "n_head": attention.heads,
            "n_inner": mlp.width,
            "n_positions": model.max_positions,
            "activation_function": match mlp.activation {
                Activation::GeluTanh => "gelu_new",
                other => activation_name(other),
            },
            "scale_attn_weights": scaled,
            "layer_norm_epsilon": real(model.norm_eps),
            "initializer_range": real(model.initializer_range),
            "attn_pdrop": 0.0,
            "embd_pdrop": real(model.embedding_dropout),
            "resid_pdrop": real(model.dropout),
        }),
    )
}
