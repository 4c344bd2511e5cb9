//! Bamba: Mamba-2, and attention in some layers.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::names::{Config, Module, PROJ, Result, Tensors};
use super::transformer::{activation, activation_name, attention_dropout, ffn, rope_parameters, rotary, settings_of};
use super::values::{limit, named, read_ends, real, with_ends, write_limit};
use crate::config::{ConfigError, ModelConfig, ModelSettings, StackConfig};
use crate::layers::mlp::{self, Activation};
use crate::layers::{LayerConfig, attention, mamba2};
use crate::settings::{Auto, Size};

/// The configuration of `BambaForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

const SYNONYMS: Synonyms = &[];

/// What settings are called in a file of Hugging Face.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("norm_eps", "rms_norm_eps"),
    ("heads", "num_attention_heads"),
    ("kv_heads", "num_key_value_heads"),
    ("width", "intermediate_size"),
    ("d_state", "mamba_d_state"),
    ("d_conv", "mamba_d_conv"),
    ("groups", "mamba_n_groups"),
    ("head_dim", "mamba_d_head"),
];

/// The tensors of `BambaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"]);
    let attention = config.sizes("attn_layer_indices")?;
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "pre_ff_layernorm");
        if attention.contains(&i) {
            let bias = config.flag("attention_bias");
            all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, bias, "o_proj", bias);
        } else {
            all.mamba2(config, &layer.sub("mixer", "mamba"));
        }
        let f = config.size("intermediate_size")?;
        all.gated_mlp(&layer.sub("ffn", "feed_forward"), f, PROJ, config.flag("mlp_bias"));
    }
    Ok(all)
}

// Long: one key after another.
fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let (d_model, n_layer): (Size, Size) =
        (fields.bounded("hidden_size", Size::new(4096))?, fields.bounded("num_hidden_layers", Size::new(32))?);
    let heads: Size = fields.bounded("num_attention_heads", Size::new(32))?;
    let head_dim = d_model.get() / heads.get();
    let bias = fields.flag("attention_bias", false)?;
    let attention = attention::Settings {
        heads,
        kv_heads: Auto::Is(fields.optional("num_key_value_heads")?.unwrap_or(heads)),
        qkv_bias: bias,
        out_bias: bias,
        ..rotary(fields, 0.5)?.of(head_dim)
    };
    attention_dropout(fields, "attention_dropout")?;
    let expand: Size = fields.bounded("mamba_expand", Size::new(2))?;
    let channels = expand.get().saturating_mul(d_model.get());
    let (mamba_heads, head_dim) = (fields.bounded("mamba_n_heads", Size::new(128))?, head_dim_of(fields, channels)?);
    if mamba_heads.get().checked_mul(head_dim.get()) != Some(channels) {
        let wanted = format!("mamba_expand * hidden_size / mamba_d_head, {channels} / {head_dim}");
        return Err(fields.error(
            "mamba_n_heads",
            &wanted,
            &json!(mamba_heads),
            "give the number that the weights have",
        ));
    }
    fields.get("mamba_chunk_size"); // How other programs compute.
    let [dt_limit_min, dt_limit_max] = limit(fields, "time_step_limit")?;
    let (eps, bias) = (fields.real("rms_norm_eps", 1e-5)?, fields.flag("mamba_proj_bias", false)?);
    let mamba = mamba2::Settings {
        d_state: fields.bounded("mamba_d_state", Size::new(256))?,
        d_conv: fields.bounded("mamba_d_conv", Size::new(4))?,
        expand,
        head_dim,
        groups: fields.bounded("mamba_n_groups", Size::new(1))?,
        dt_limit_min,
        dt_limit_max,
        conv_bias: fields.flag("mamba_conv_bias", true)?,
        in_bias: bias,
        out_bias: bias,
        ..mamba2::Settings::default()
    };
    let mlp = mlp::Settings {
        width: Auto::Is(fields.bounded("intermediate_size", Size::new(14336))?),
        activation: activation(fields, "hidden_act", Activation::Silu)?,
        bias: fields.flag("mlp_bias", false)?,
        ..mlp::Settings::default()
    };
    if fields.real("z_loss_coefficient", 0.0)? > 0.0 {
        let file = fields.file;
        fields.warnings.push(format!("{file}: elapid trains this model without the z loss of logits"));
    }
    fields.get("num_logits_to_keep"); // How other programs generate.
    let at = layers_at(fields, n_layer.get())?;
    let name = |i: usize| if at.contains(&i) { "attention" } else { "mamba2" };
    let model = ModelSettings {
        d_model,
        n_layer,
        layers: (0..n_layer.get()).map(|i| name(i).to_owned()).collect(),
        ffn: vec!["mlp".into()],
        norm_eps: eps,
        tie_embeddings: fields.flag("tie_word_embeddings", false)?,
        pad_vocab_multiple: Size::new(1),
        initializer_range: fields.real("initializer_range", 0.02)?,
        rescale_prenorm_residual: false,
        ..ModelSettings::default()
    };
    let layers = [LayerConfig::attention(attention), LayerConfig::mamba2(mamba), LayerConfig::mlp(mlp)];
    let used = |layer: &LayerConfig| model.layers.iter().chain(&model.ffn).any(|name| name == layer.kind());
    let named = layers.into_iter().filter(used).map(named).collect();
    read_ends(fields, 128_000, StackConfig { model, named }, [Some(1), Some(2), Some(0)])
}

/// "auto" is the number of channels divided by the number of heads.
fn head_dim_of(fields: &mut Fields, channels: usize) -> Result<Size, ConfigError> {
    if fields.get("mamba_d_head").is_none_or(|value| value == "auto") {
        let heads: Size = fields.bounded("mamba_n_heads", Size::new(128))?;
        return Ok(Size::new((channels / heads.get()).max(1)));
    }
    fields.bounded("mamba_d_head", Size::new(64))
}

/// The numbers of the layers with attention.
fn layers_at(fields: &mut Fields, n_layer: usize) -> Result<Vec<usize>, ConfigError> {
    let Some(value) = fields.given("attn_layer_indices") else { return Ok(Vec::new()) };
    let index = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|&i| i < n_layer);
    let all = value.as_array().and_then(|list| list.iter().map(index).collect::<Option<Vec<_>>>());
    all.ok_or_else(|| fields.error("attn_layer_indices", &format!("numbers below {n_layer}"), value, "correct it"))
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let model = &config.stack.model;
    let mamba: mamba2::Settings = settings_of(config, |i| Some(config.stack.layer(i).0))?;
    let attention: attention::Settings = settings_of(config, |i| Some(config.stack.layer(i).0)).unwrap_or_default();
    let mlp: mlp::Settings = ffn(config)?;
    let kind = |i: usize| Some(config.stack.named.get(config.stack.layer(i).0)?.layer.kind());
    let at: Vec<usize> = (0..config.n_layer()).filter(|&i| kind(i) == Some("attention")).collect();
    let (d, inner) = (config.d_model(), mamba.d_inner.or(Size::new(1)).get());
    let head_dim = d / attention.heads.get();
    let rotated = attention.rotary_dim.map_or(head_dim, |columns| columns.get());
    with_ends(
        config,
        json!({
            "architectures": ["BambaForCausalLM"],
            "model_type": "bamba",
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": d,
            "intermediate_size": mlp.width,
            "num_hidden_layers": config.n_layer(),
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads.or(attention.heads),
            "attention_bias": attention.qkv_bias,
            "attention_dropout": 0.0,
            "attn_layer_indices": at,
            "rope_parameters": rope_parameters(&attention, Some(rotated as f32 / head_dim as f32))?,
            "hidden_act": activation_name(mlp.activation),
            "mlp_bias": mlp.bias,
            "initializer_range": real(model.initializer_range),
            "rms_norm_eps": real(model.norm_eps),
            "mamba_d_state": mamba.d_state,
            "mamba_d_conv": mamba.d_conv,
            "mamba_expand": inner / d.max(1),
            "mamba_d_head": mamba.head_dim,
            "mamba_n_heads": inner / mamba.head_dim.get(),
            "mamba_n_groups": mamba.groups,
            "mamba_conv_bias": mamba.conv_bias,
            "mamba_proj_bias": mamba.in_bias,
            "time_step_limit": write_limit(&mamba),
        }),
    )
}
