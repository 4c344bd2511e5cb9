//! RecurrentGemma (Griffin): recurrent blocks and local attention.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::names::{Config, Module, PROJ, Result, Tensors};
use super::transformer::{activation, activation_name, attention_dropout, ffn, rope_parameters, rotary, settings_of};
use super::values::{named, read_ends, real, with_ends};
use crate::config::{ConfigError, ModelConfig, ModelSettings, StackConfig};
use crate::layers::mlp::{self, Activation};
use crate::layers::{LayerConfig, attention, rg_lru};
use crate::ops::NormKind;
use crate::settings::{Auto, Count, Size};

/// The configuration of `RecurrentGemmaForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

const SYNONYMS: Synonyms = &[];

/// What settings are called in a file of Hugging Face.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("norm_eps", "rms_norm_eps"),
    ("heads", "num_attention_heads"),
    ("kv_heads", "num_key_value_heads"),
    ("width", "lru_width"),
    ("d_conv", "conv1d_width"),
    ("window", "attention_window_size"),
    ("logit_softcap", "logits_soft_cap"),
];

/// The tensors of `RecurrentGemmaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_norm.weight", "lm_head.weight"]);
    let kinds = config.words("block_types")?;
    for (i, kind) in (0..config.size("num_hidden_layers")?).zip(kinds.into_iter().cycle()) {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "temporal_pre_norm", "channel_pre_norm");
        let mixer = layer.sub("mixer", "temporal_block");
        match kind {
            "recurrent" => recurrent(config, &mixer, &mut all)?,
            _ => all.attention(&mixer, config.qkv()?, config.flag("attention_bias"), "o_proj", true),
        }
        // The configuration counts gate and up together.
        all.gated_mlp(&layer.sub("ffn", "mlp_block"), config.size("intermediate_size")? / 2, PROJ, true);
    }
    Ok(all)
}

fn recurrent(config: &Config<'_>, mixer: &Module, all: &mut Tensors) -> Result<()> {
    let heads = config.size("num_attention_heads")?;
    let width = config.size_or("lru_width", || config.size("hidden_size"))?;
    all.rows(mixer, "in_proj", &[(width, "linear_x"), (width, "linear_y")], true);
    for kind in ["weight", "bias"] {
        for (ours, theirs) in [("out_proj", "linear_out"), ("conv1d", "conv_1d")] {
            all.put(mixer, &format!("{ours}.{kind}"), mixer.file(&format!("{theirs}.{kind}")));
        }
    }
    let lru = |name: &str| mixer.file(&format!("rg_lru.{name}"));
    for (ours, theirs) in [("a_gate", "recurrent_gate"), ("input_gate", "input_gate")] {
        all.put(mixer, &format!("{ours}.weight"), lru(&format!("{theirs}_weight")).transposed());
        let bias = lru(&format!("{theirs}_bias")).shaped(&[heads, width.checked_div(heads).unwrap_or_default()]);
        all.put(mixer, &format!("{ours}.bias"), bias);
    }
    all.put(mixer, "Lambda", lru("recurrent_param"));
    Ok(())
}

/// √d, which `transformers` has in bf16.
fn embedding_scale(d_model: Size) -> f32 {
    half::bf16::from_f64((d_model.get() as f64).sqrt()).to_f32()
}

// Long: one key after another.
fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let (d_model, n_layer): (Size, Size) =
        (fields.bounded("hidden_size", Size::new(2560))?, fields.bounded("num_hidden_layers", Size::new(26))?);
    let heads: Size = fields.bounded("num_attention_heads", Size::new(10))?;
    let head_dim = fields.optional("head_dim")?.unwrap_or(Size::new((d_model.get() / heads.get()).max(1)));
    let window: Count = fields.bounded("attention_window_size", Count::new(2048))?;
    let attention = attention::Settings {
        heads,
        kv_heads: Auto::Is(fields.optional("num_key_value_heads")?.unwrap_or(heads)),
        head_dim: Auto::Is(head_dim),
        window,
        qkv_bias: fields.flag("attention_bias", false)?,
        out_bias: true,
        ..rotary(fields, 0.5)?.of(head_dim.get())
    };
    attention_dropout(fields, "attention_dropout")?;
    let recurrent = rg_lru::Settings {
        width: Auto::Is(fields.optional("lru_width")?.unwrap_or(d_model)),
        heads,
        d_conv: fields.bounded("conv1d_width", Size::new(4))?,
        ..rg_lru::Settings::default()
    };
    let inner: Size = fields.bounded("intermediate_size", Size::new(15360))?;
    let mlp = mlp::Settings {
        width: Auto::Is(Size::new((inner.get() / 2).max(1))),
        activation: gelu(fields)?,
        bias: true,
        ..mlp::Settings::default()
    };
    for initial in ["w_init_variance_scale", "final_w_init_variance_scale"] {
        fields.get(initial); // How new weights are drawn.
    }
    let model = ModelSettings {
        d_model,
        n_layer,
        layers: kinds(fields)?,
        ffn: vec!["mlp".into()],
        norm: NormKind::Rms1,
        norm_eps: fields.real("rms_norm_eps", 1e-6)?,
        embedding_scale: embedding_scale(d_model),
        logit_softcap: fields.real("logits_soft_cap", 30.0)?,
        tie_embeddings: fields.flag("tie_word_embeddings", true)?,
        pad_vocab_multiple: Size::new(1),
        rescale_prenorm_residual: false,
        ..ModelSettings::default()
    };
    let layers = [LayerConfig::attention(attention), LayerConfig::rg_lru(recurrent), LayerConfig::mlp(mlp)];
    let used = |layer: &LayerConfig| model.layers.iter().chain(&model.ffn).any(|name| name == layer.kind());
    let named = layers.into_iter().filter(used).map(named).collect();
    read_ends(fields, 256_000, StackConfig { model, named }, [Some(2), Some(1), Some(0)])
}

/// The activation of MLPs, which gates the recurrent blocks too.
fn gelu(fields: &mut Fields) -> Result<Activation, ConfigError> {
    match activation(fields, "hidden_activation", Activation::GeluTanh)? {
        Activation::GeluTanh => Ok(Activation::GeluTanh),
        other => {
            let got = Value::from(activation_name(other));
            Err(fields.error("hidden_activation", "\"gelu_pytorch_tanh\"", &got, "elapid does not have this gate"))
        }
    }
}

/// The layers of a period, by elapid's kinds.
fn kinds(fields: &mut Fields) -> Result<Vec<String>, ConfigError> {
    let Some(value) = fields.given("block_types") else {
        return Ok(["rg_lru", "rg_lru", "attention"].map(str::to_owned).into());
    };
    let kind = |value: &Value| match value.as_str()? {
        "recurrent" => Some("rg_lru".to_owned()),
        "attention" => Some("attention".to_owned()),
        _ => None,
    };
    let all = value.as_array().and_then(|list| list.iter().map(kind).collect::<Option<Vec<_>>>());
    let all = all.filter(|all| !all.is_empty());
    all.ok_or_else(|| fields.error("block_types", "a list of \"recurrent\" and \"attention\"", value, "correct it"))
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let model = &config.stack.model;
    let recurrent: rg_lru::Settings = settings_of(config, |i| Some(config.stack.layer(i).0))?;
    let attention: attention::Settings = settings_of(config, |i| Some(config.stack.layer(i).0)).unwrap_or_default();
    let mlp: mlp::Settings = ffn(config)?;
    let kind = |name: &String| match config.stack.named.get(name)?.layer.kind() {
        "rg_lru" => Some("recurrent"),
        "attention" => Some("attention"),
        _ => None,
    };
    let kinds: Vec<&str> = model.layers.iter().map(kind).collect::<Option<_>>()?;
    let head_dim = attention.head_dim.map_or(config.d_model() / recurrent.heads.get(), Size::get);
    let rotated = attention.rotary_dim.map_or(head_dim, |columns| columns.get());
    with_ends(
        config,
        json!({
            "architectures": ["RecurrentGemmaForCausalLM"],
            "model_type": "recurrent_gemma",
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": config.d_model(),
            "intermediate_size": 2 * mlp.width.map_or(1, Size::get),
            "num_hidden_layers": config.n_layer(),
            "num_attention_heads": recurrent.heads,
            "num_key_value_heads": attention.kv_heads.or(recurrent.heads),
            "head_dim": head_dim,
            "attention_window_size": attention.window,
            "attention_bias": attention.qkv_bias,
            "attention_dropout": 0.0,
            "rope_parameters": rope_parameters(&attention, Some(rotated as f32 / head_dim as f32))?,
            "lru_width": recurrent.width,
            "conv1d_width": recurrent.d_conv,
            "block_types": kinds,
            "hidden_activation": activation_name(mlp.activation),
            "logits_soft_cap": real(model.logit_softcap),
            "rms_norm_eps": real(model.norm_eps),
        }),
    )
}
