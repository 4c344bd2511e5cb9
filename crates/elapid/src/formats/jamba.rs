//! Jamba: Mamba-1 with norms of Δ, B and C, attention in one layer of a period, experts in some.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::mixtral::balance;
use super::names::{Config, MAMBA1, Module, PROJ, Result, Tensors};
use super::transformer::{activation, activation_name, attention_dropout, ffn, settings_of};
use super::values::{dt_rank, named, read_ends, real, with_ends};
use crate::config::{ConfigError, ModelConfig, ModelSettings, StackConfig};
use crate::layers::mamba1::InnerNorm;
use crate::layers::mlp::{self, Activation};
use crate::layers::{LayerConfig, attention, mamba1, moe};
use crate::settings::{Auto, Count, Size};

/// The configuration of `JambaForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: false };

const SYNONYMS: Synonyms = &[];

/// What the fields of a configuration are called in a file of Hugging Face.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("norm_eps", "rms_norm_eps"),
    ("heads", "num_attention_heads"),
    ("kv_heads", "num_key_value_heads"),
    ("width", "intermediate_size"),
    ("experts", "num_experts"),
    ("top_k", "num_experts_per_tok"),
    ("d_state", "mamba_d_state"),
    ("d_conv", "mamba_d_conv"),
    ("expand", "mamba_expand"),
    ("dt_rank", "mamba_dt_rank"),
];

/// The tensors of `JambaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"]);
    let (experts, f) = (config.size("num_experts")?, config.size("intermediate_size")?);
    let periodic = |kind: &str, i: usize| -> Result<bool> {
        let period = config.size(&format!("{kind}_layer_period"))?.max(1);
        Ok(i % period == config.size(&format!("{kind}_layer_offset"))?)
    };
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "pre_ff_layernorm");
        if periodic("attn", i)? {
            all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, false, "o_proj", false);
        } else {
            let mixer = layer.sub("mixer", "mamba");
            all.same(&mixer, MAMBA1);
            all.renamed(
                &mixer,
                &[
                    ("dt_norm.weight", "dt_layernorm.weight"),
                    ("b_norm.weight", "b_layernorm.weight"),
                    ("c_norm.weight", "c_layernorm.weight"),
                ],
            );
            if config.flag("mamba_proj_bias") {
                all.same(&mixer, &["in_proj.bias", "out_proj.bias"]);
            }
        }
        let ffn = layer.sub("ffn", "feed_forward");
        if experts > 1 && periodic("expert", i)? {
            all.same(&ffn, &["router.weight"]);
            all.experts(&ffn, experts, f, PROJ);
        } else {
            all.gated_mlp(&ffn, f, PROJ, false);
        }
    }
    Ok(all)
}

// Long: one key after another.
fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let (d_model, n_layer) =
        (fields.bounded("hidden_size", Size::new(4096))?, fields.bounded("num_hidden_layers", Size::new(32))?);
    let heads: Size = fields.bounded("num_attention_heads", Size::new(32))?;
    let attention = attention::Settings {
        heads,
        kv_heads: Auto::Is(fields.optional("num_key_value_heads")?.unwrap_or(heads)),
        rope: attention::Rope::None,
        ..attention::Settings::default()
    };
    let eps = fields.real("rms_norm_eps", 1e-6)?;
    let mamba = mamba1::Settings {
        d_state: fields.bounded("mamba_d_state", Size::new(16))?,
        d_conv: fields.bounded("mamba_d_conv", Size::new(4))?,
        expand: fields.bounded("mamba_expand", Size::new(2))?,
        dt_rank: dt_rank(fields, "mamba_dt_rank", d_model)?,
        conv_bias: fields.flag("mamba_conv_bias", true)?,
        proj_bias: fields.flag("mamba_proj_bias", false)?,
        inner_norm: InnerNorm::Rms,
        inner_norm_eps: eps,
        ..mamba1::Settings::default()
    };
    let (width, hidden_act) =
        (fields.bounded("intermediate_size", Size::new(14336))?, activation(fields, "hidden_act", Activation::Silu)?);
    let mlp = mlp::Settings { width: Auto::Is(width), activation: hidden_act, ..mlp::Settings::default() };
    let experts = moe::Settings {
        experts: fields.bounded("num_experts", Size::new(16))?,
        top_k: fields.bounded("num_experts_per_tok", Size::new(2))?,
        width: Auto::Is(width),
        activation: hidden_act,
        renormalise: false,
        balance: balance(fields)?,
        balance_over: moe::Over::Model,
        ..moe::Settings::default()
    };
    attention_dropout(fields, "attention_dropout")?;
    let (mixers, mut ffns) = (Period::read(fields, "attn", [8, 4])?, Period::read(fields, "expert", [2, 1])?);
    if experts.experts.get() == 1 {
        ffns.offset = usize::MAX; // a single expert is an MLP
    }
    let model = ModelSettings {
        d_model,
        n_layer,
        layers: mixers.names("attention", "mamba1", n_layer),
        ffn: ffns.names("moe", "mlp", n_layer),
        norm_eps: eps,
        tie_embeddings: fields.flag("tie_word_embeddings", false)?,
        pad_vocab_multiple: Size::new(1),
        initializer_range: fields.real("initializer_range", 0.02)?,
        rescale_prenorm_residual: false,
        ..ModelSettings::default()
    };
    let layers = [
        LayerConfig::attention(attention),
        LayerConfig::mamba1(mamba),
        LayerConfig::mlp(mlp),
        LayerConfig::moe(experts),
    ];
    let used = |layer: &LayerConfig| model.layers.iter().chain(&model.ffn).any(|name| name == layer.kind());
    let named = layers.into_iter().filter(used).map(named).collect();
    read_ends(fields, 65536, StackConfig { model, named }, [Some(1), Some(2), Some(0)])
}

/// Layers at the same place of every period.
struct Period {
    period: usize,
    offset: usize,
}

impl Period {
    fn read(fields: &mut Fields, kind: &str, [period, offset]: [usize; 2]) -> Result<Self, ConfigError> {
        let keys = match kind {
            "attn" => ["attn_layer_period", "attn_layer_offset"],
            _ => ["expert_layer_period", "expert_layer_offset"],
        };
        let period = fields.bounded(keys[0], Size::new(period))?.get();
        Ok(Self { period, offset: fields.bounded(keys[1], Count::new(offset))?.get() })
    }

    /// The pattern of names: one at these places, the other elsewhere.
    fn names(&self, at: &str, elsewhere: &str, n_layer: Size) -> Vec<String> {
        let period = self.period.min(n_layer.get());
        match self.offset < period {
            false => vec![elsewhere.to_owned()],
            true => (0..period).map(|i| if i == self.offset { at } else { elsewhere }.to_owned()).collect(),
        }
    }

    /// The period of the layers for which this holds; none if they have none. A single one may stand anywhere.
    fn of(holds: &[bool]) -> Option<Self> {
        let mut places = (0..holds.len()).filter(|&i| holds[i]);
        let n = holds.len().max(1);
        let Some(offset) = places.next() else { return Some(Self { period: n, offset: n }) };
        let period = places.next().map_or(n, |second| second - offset);
        let regular = holds.iter().enumerate().all(|(i, &holds)| holds == (i % period == offset));
        regular.then_some(Self { period, offset })
    }
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let n_layer = config.n_layer();
    if n_layer > 1 << 16 {
        return None;
    }
    let model = &config.stack.model;
    let mamba: mamba1::Settings = settings_of(config, |i| Some(config.stack.layer(i).0))?;
    let attention: attention::Settings = settings_of(config, |i| Some(config.stack.layer(i).0)).unwrap_or_default();
    let (mlp, moe): (Option<mlp::Settings>, Option<moe::Settings>) = (ffn(config), ffn(config));
    let (width, activation) = match (&mlp, &moe) {
        (Some(mlp), _) => (mlp.width, mlp.activation),
        (None, Some(moe)) => (moe.width, moe.activation),
        (None, None) => return None,
    };
    let kind = |name: &str| Some(config.stack.named.get(name)?.layer.kind());
    let is = |kinds: [&str; 2], name: &str| match kind(name)? {
        found if found == kinds[0] => Some(true),
        found if found == kinds[1] => Some(false),
        _ => None,
    };
    let mixers: Option<Vec<bool>> =
        (0..n_layer).map(|i| is(["attention", "mamba1"], config.stack.layer(i).0)).collect();
    let ffns: Option<Vec<bool>> = (0..n_layer).map(|i| is(["moe", "mlp"], config.stack.layer(i).1?)).collect();
    let (mixers, ffns) = (Period::of(&mixers?)?, Period::of(&ffns?)?);
    let balance = moe.as_ref().map_or(0.0, |moe| moe.balance);
    let mut map = with_ends(
        config,
        json!({
            "architectures": ["JambaForCausalLM"],
            "model_type": "jamba",
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": config.d_model(),
            "intermediate_size": width,
            "num_hidden_layers": n_layer,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads.or(attention.heads),
            "hidden_act": activation_name(activation),
            "initializer_range": real(model.initializer_range),
            "rms_norm_eps": real(model.norm_eps),
            "attention_dropout": 0.0,
            "num_experts": moe.as_ref().map_or(1, |moe| moe.experts.get()),
            "num_experts_per_tok": moe.as_ref().map_or(1, |moe| moe.top_k.get()),
            "expert_layer_period": ffns.period,
            "expert_layer_offset": ffns.offset,
            "attn_layer_period": mixers.period,
            "attn_layer_offset": mixers.offset,
            "mamba_d_state": mamba.d_state,
            "mamba_d_conv": mamba.d_conv,
            "mamba_expand": mamba.d_inner(config.d_model()) / config.d_model(),
            "mamba_dt_rank": mamba.dt_rank(config.d_model()),
            "mamba_conv_bias": mamba.conv_bias,
            "mamba_proj_bias": mamba.proj_bias,
            "output_router_logits": balance > 0.0,
        }),
    )?;
    if balance > 0.0 {
        map.insert("router_aux_loss_coef".into(), real(balance));
    }
    Some(map)
}
