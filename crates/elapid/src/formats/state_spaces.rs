//! The layout of the original code, `state-spaces/mamba`, whose `config.json` has no `model_type`: Mamba-1 or Mamba-2, perhaps with
//! attention in some layers, and a gated MLP after each.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::{Codec, Format};
use super::names::{Config, MAMBA1, MAMBA2, Module, Result as Mapped, Tensors};
use super::places::{EMBEDDING, HEAD};
use super::transformer::{self, settings_of};
use super::values::{dt_rank, limit, named, real, write_limit};
use crate::config::{ConfigError, ModelConfig, ModelSettings, NEOX_VOCAB, StackConfig};
use crate::layers::attention::Rope;
use crate::layers::mamba1::Settings;
use crate::layers::mamba2::GatedNorm;
use crate::layers::mlp::{self, Activation};
use crate::layers::{LayerConfig, attention, mamba2};
use crate::settings::{Auto, Count, Size};

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// The configuration of `MambaLMHeadModel`. Its class takes no key that it does not know: not those that elapid writes beside its own.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read: original, write, own_names: false };

/// The layout, which no `model_type` names.
pub(super) static FORMAT: Format =
    Format { model_type: "", tensors, ignores: |_| false, is: |_| true, naming: &[], codec: Some(CODEC) };

/// Names of other writers.
const SYNONYMS: Synonyms = &[
    ("n_layer", &["num_hidden_layers", "n_layers", "num_layers"]),
    ("norm_epsilon", &["norm_eps", "rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"]),
    ("tie_embeddings", &["tie_word_embeddings"]),
];

/// What settings are called in such a file, where that is something else.
const NAMES: &[(&str, &str)] = &[
    ("norm_eps", "norm_epsilon"),
    ("d_state", "ssm_cfg.d_state"),
    ("d_conv", "ssm_cfg.d_conv"),
    ("expand", "ssm_cfg.expand"),
    ("dt_rank", "ssm_cfg.dt_rank"),
    ("dt_min", "ssm_cfg.dt_min"),
    ("dt_max", "ssm_cfg.dt_max"),
    ("dt_init_floor", "ssm_cfg.dt_init_floor"),
    ("dt_scale", "ssm_cfg.dt_scale"),
];

/// The epsilon of the norm in a Mamba-2 block, whatever that of the model is.
const GATED_NORM_EPS: f32 = 1e-5;

fn original(fields: &mut Fields) -> Result<ModelConfig> {
    fields.only("model_type", &["mamba"], NOT_YET)?;
    fields.rms_norm()?;
    let (d_model, n_layer): (Size, Size) = (fields.required("d_model")?, fields.required("n_layer")?);
    let vocab_size = fields.required::<1>("vocab_size")?.get();
    let neox = is_neox(vocab_size);
    // The layout itself does not record them. The published models have the GPT-NeoX tokenizer, <|endoftext|> its token 0.
    let id = |fields: &mut Fields, key| match fields.get(key) {
        Some(_) => fields.id(key),
        None => Ok(neox.then_some(0)),
    };
    let empty = Map::new();
    let mut ssm = Fields::new(fields.file, "ssm_cfg.", object(fields, "ssm_cfg")?.unwrap_or(&empty), &[])?;
    let mixer = match ssm.map.get("layer").is_some_and(|layer| layer == "Mamba2") {
        true => LayerConfig::mamba2(mamba2_cfg(&mut ssm)?),
        false => LayerConfig::mamba1(ssm_cfg(&mut ssm, d_model, &Settings::default())?),
    };
    let mut layers = vec![mixer.kind().to_owned(); n_layer.get()];
    let mut all = vec![named(mixer)];
    let at = attention_at(fields, n_layer.get())?;
    at.iter().for_each(|&i| layers[i] = "attention".into());
    let attn = object(fields, "attn_cfg")?.unwrap_or(&empty);
    if !at.is_empty() {
        let mut attn = Fields::new(fields.file, "attn_cfg.", attn, &[])?;
        all.push(named(LayerConfig::attention(attn_cfg(&mut attn, d_model)?)));
    }
    let mut ffn = Vec::new();
    if let width @ 1.. = fields.size("d_intermediate", 0)? {
        let width = Auto::Is(Size::checked(width.next_multiple_of(128)).unwrap_or(Size::new(128)));
        let mlp = mlp::Settings { width, activation: Activation::Silu, ..mlp::Settings::default() };
        all.push(named(LayerConfig::mlp(mlp)));
        ffn.push("mlp".to_owned());
    }
    let used = |name: &String| layers.iter().chain(&ffn).any(|one| one == name);
    let named = all.into_iter().filter(|(name, _)| used(name)).collect();
    if at.is_empty() {
        layers.truncate(1);
    }
    // How other programs keep and add to the stream; elapid's is in the dtype of activations.
    fields.get("residual_in_fp32");
    fields.get("fused_add_norm");
    let model = ModelSettings {
        d_model,
        n_layer,
        layers,
        ffn,
        norm_eps: fields.real("norm_epsilon", 1e-5)?,
        tie_embeddings: fields.flag("tie_embeddings", true)?,
        pad_vocab_multiple: fields.bounded("pad_vocab_size_multiple", Size::new(8))?,
        initializer_range: fields.real("initializer_range", 0.02)?,
        ..ModelSettings::default()
    };
    Ok(ModelConfig {
        vocab_size,
        stack: StackConfig { model, named },
        bos_token_id: id(fields, "bos_token_id")?,
        eos_token_id: id(fields, "eos_token_id")?,
        pad_token_id: id(fields, "pad_token_id")?,
    })
}

fn is_neox(vocab_size: usize) -> bool {
    [1, 8, 16].iter().any(|&multiple| vocab_size == NEOX_VOCAB.next_multiple_of(multiple))
}

const NOT_YET: &str = "not supported yet: give a model of Mamba-1 or Mamba-2 blocks";

/// An object, if it is there.
fn object<'a>(fields: &mut Fields<'a>, key: &'static str) -> Result<Option<&'a Map<String, Value>>> {
    match fields.given(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(fields.error(key, "an object", other, "write {} for the defaults")),
    }
}

/// The numbers of the layers with attention.
fn attention_at(fields: &mut Fields, n_layer: usize) -> Result<Vec<usize>> {
    let Some(value) = fields.given("attn_layer_idx") else { return Ok(Vec::new()) };
    let index = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|&i| i < n_layer);
    let all = value.as_array().and_then(|list| list.iter().map(index).collect::<Option<Vec<_>>>());
    all.ok_or_else(|| fields.error("attn_layer_idx", &format!("numbers below {n_layer}"), value, "correct it"))
}

/// The attention that `attn_cfg` describes.
fn attn_cfg(attn: &mut Fields, d_model: Size) -> Result<attention::Settings> {
    if !attn.flag("causal", false)? {
        let fix = "the default of the original code sees later positions; give a causal model";
        return Err(attn.error("causal", "true", attn.map.get("causal").unwrap_or(&Value::Null), fix));
    }
    if let Some(other) = attn.given("mlp_dim").filter(|dim| dim.as_u64() != Some(0)) {
        return Err(attn.error("mlp_dim", "0", other, "elapid has no MLP inside attention"));
    }
    let heads: Size = attn.required("num_heads")?;
    let head_dim = attn.optional("head_dim")?.unwrap_or(Size::new((d_model.get() / heads.get()).max(1)));
    let rotated: Count = attn.optional("rotary_emb_dim")?.unwrap_or(Count::new(0));
    let rope = match (rotated.get(), attn.flag("rotary_emb_interleaved", false)?) {
        (0, _) => Rope::None,
        (_, false) => Rope::Halves,
        (_, true) => Rope::Pairs,
    };
    let settings = attention::Settings {
        heads,
        kv_heads: Auto::Is(attn.optional("num_heads_kv")?.unwrap_or(heads)),
        head_dim: Auto::Is(head_dim),
        d_conv: attn.optional("d_conv")?.unwrap_or(Count::new(0)),
        rope,
        rope_base: attn.real("rotary_emb_base", 10000.0)?,
        rotary_dim: Auto::Is(rotated),
        softmax_scale: attn.optional_real("softmax_scale")?.map_or(Auto::Auto, Auto::Is),
        qkv_bias: attn.flag("qkv_proj_bias", true)?,
        out_bias: attn.flag("out_proj_bias", true)?,
        ..attention::Settings::default()
    };
    attn.no_unknown("elapid does not know what it means; remove it if the default is right")?;
    Ok(settings)
}

/// The Mamba-2 block that `ssm_cfg` describes.
fn mamba2_cfg(ssm: &mut Fields) -> Result<mamba2::Settings> {
    for unread in ["layer", "chunk_size", "use_mem_eff_path", "conv_init", "sequence_parallel"] {
        ssm.get(unread); // How the original code computes; how new weights are drawn.
    }
    let default = mamba2::Settings::default();
    let [dt_limit_min, dt_limit_max] = limit(ssm, "dt_limit")?;
    let range = ssm.given("A_init_range").cloned().unwrap_or_else(|| json!([default.a_min, default.a_max]));
    let a = |i: usize| range.get(i).and_then(Value::as_f64).map(|a| a as f32);
    let (Some(a_min), Some(a_max)) = (a(0), a(1)) else {
        return Err(ssm.error("A_init_range", "the least and the largest A", &range, "remove it"));
    };
    let bias = ssm.flag("bias", false)?;
    let settings = mamba2::Settings {
        d_state: ssm.bounded("d_state", default.d_state)?,
        d_conv: ssm.bounded("d_conv", default.d_conv)?,
        expand: ssm.bounded("expand", default.expand)?,
        d_ssm: ssm.optional("d_ssm")?.map_or(Auto::Auto, Auto::Is),
        head_dim: ssm.bounded("headdim", default.head_dim)?,
        groups: ssm.bounded("ngroups", default.groups)?,
        skip_per_channel: ssm.flag("D_has_hdim", false)?,
        gated_norm: match (ssm.flag("rmsnorm", true)?, ssm.flag("norm_before_gate", false)?) {
            (false, _) => GatedNorm::None,
            (true, false) => GatedNorm::GateFirst,
            (true, true) => GatedNorm::NormFirst,
        },
        norm_eps: Auto::Is(GATED_NORM_EPS),
        dt_limit_min,
        dt_limit_max,
        conv_bias: ssm.flag("conv_bias", true)?,
        in_bias: bias,
        out_bias: bias,
        a_min,
        a_max,
        dt_min: ssm.real("dt_min", default.dt_min)?,
        dt_max: ssm.real("dt_max", default.dt_max)?,
        dt_init_floor: ssm.real("dt_init_floor", default.dt_init_floor)?,
        ..default
    };
    ssm.no_unknown("elapid does not know what it means; remove it if the default is right")?;
    Ok(settings)
}

/// A model with attention or MLPs, or of Mamba-2; Mamba-1 alone has the format of `transformers`.
fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (stack, model) = (&config.stack, &config.stack.model);
    let mixers = |i: usize| Some(stack.layer(i).0);
    let attention: Option<attention::Settings> = settings_of(config, mixers);
    let mlp: Option<mlp::Settings> = transformer::ffn(config);
    let ssm = match (settings_of(config, mixers), settings_of(config, mixers)) {
        (Some(mamba2), _) => write_mamba2(config, &mamba2),
        (None, Some(mamba1)) if attention.is_some() || mlp.is_some() => write_mamba1(config, &mamba1),
        _ => return None,
    };
    let at: Vec<usize> = (0..config.n_layer()).filter(|&i| transformer::mixer(config, i).is_some()).collect();
    let attn = attention.map_or_else(
        || json!({}),
        |attention| {
            json!({
                "causal": attention.causal,
                "num_heads": attention.heads,
                "num_heads_kv": attention.kv_heads,
                "head_dim": attention.head_dim,
                "d_conv": attention.d_conv,
                "rotary_emb_dim": attention.rotary_dim,
                "rotary_emb_base": real(if attention.rope == Rope::None { 10000.0 } else { attention.rope_base }),
                "rotary_emb_interleaved": attention.rope == Rope::Pairs,
                "softmax_scale": scale_beside(&attention),
                "qkv_proj_bias": attention.qkv_bias,
                "out_proj_bias": attention.out_bias,
            })
        },
    );
    let keys = json!({
        "d_model": config.d_model(),
        "d_intermediate": mlp.map_or(0, |mlp| mlp.width.map_or(0, Size::get)),
        "n_layer": config.n_layer(),
        "vocab_size": config.vocab_size,
        "ssm_cfg": ssm,
        "attn_layer_idx": at,
        "attn_cfg": attn,
        "rms_norm": true,
        "residual_in_fp32": true,
        "fused_add_norm": true,
        "pad_vocab_size_multiple": model.pad_vocab_multiple,
        "tie_embeddings": model.tie_embeddings,
    });
    let Value::Object(mut map) = keys else { return None };
    // Keys that the class does not have, where they are not what is read without them.
    if model.norm_eps != 1e-5 {
        map.insert("norm_epsilon".into(), real(model.norm_eps));
    }
    let absent = is_neox(config.vocab_size).then_some(0);
    let ids = [("bos_token_id", config.bos_token_id), ("eos_token_id", config.eos_token_id)];
    for (key, id) in ids.into_iter().chain([("pad_token_id", config.pad_token_id)]).filter(|(_, id)| *id != absent) {
        map.insert(key.into(), json!(id));
    }
    Some(map)
}

/// The scale of products, if it is not that of the columns of a head.
fn scale_beside(attention: &attention::Settings) -> Value {
    let usual = attention.head_dim.map_or(1.0, |columns| (columns.get() as f32).powf(-0.5));
    let said = attention.softmax_scale.or(usual);
    if said == usual { Value::Null } else { real(said) }
}

fn write_mamba2(config: &ModelConfig, mixer: &mamba2::Settings) -> Value {
    let inner = mixer.d_inner.map_or(1, Size::get);
    let mut map = json!({
        "layer": "Mamba2",
        "d_state": mixer.d_state,
        "d_conv": mixer.d_conv,
        "expand": inner / config.d_model(),
        "headdim": mixer.head_dim,
        "ngroups": mixer.groups,
        "A_init_range": [real(mixer.a_min), real(mixer.a_max)],
        "D_has_hdim": mixer.skip_per_channel,
        "rmsnorm": mixer.gated_norm != GatedNorm::None,
        "norm_before_gate": mixer.gated_norm == GatedNorm::NormFirst,
        "dt_min": real(mixer.dt_min),
        "dt_max": real(mixer.dt_max),
        "dt_init_floor": real(mixer.dt_init_floor),
        "bias": mixer.in_bias,
        "conv_bias": mixer.conv_bias,
    });
    // Infinity is no JSON, and the class has no other word for it.
    if mixer.dt_limit_min > 0.0 || mixer.dt_limit_max > 0.0 {
        map["dt_limit"] = write_limit(mixer);
    }
    if mixer.d_ssm != mixer.d_inner {
        map["d_ssm"] = json!(mixer.d_ssm);
    }
    map
}

fn write_mamba1(config: &ModelConfig, mixer: &Settings) -> Value {
    let d = config.d_model();
    json!({
        "layer": "Mamba1",
        "d_state": mixer.d_state,
        "d_conv": mixer.d_conv,
        "expand": mixer.d_inner(d) / d,
        "dt_rank": mixer.dt_rank(d),
        "bias": mixer.proj_bias,
        "conv_bias": mixer.conv_bias,
    })
}

/// The tensors of a model with attention or MLPs. Any other has elapid's names.
fn tensors(config: &Config<'_>) -> Mapped<Tensors> {
    let mut all = Tensors::default();
    let at = config.sizes("attn_layer_idx").unwrap_or_default();
    let wide = config.size_or("d_intermediate", || Ok(0))?.next_multiple_of(128);
    if at.is_empty() && wide == 0 {
        return Ok(all);
    }
    all.one(EMBEDDING, "backbone.embedding.weight");
    all.one("backbone.norm_f.weight", "backbone.norm_f.weight");
    if !config.tied() || config.0.get("tie_embeddings").is_some_and(|tied| *tied == false) {
        all.one(HEAD, "lm_head.weight");
    }
    let empty = Map::new();
    let part = |key: &str| Config(config.0.get(key).and_then(Value::as_object).unwrap_or(&empty));
    let (ssm, attn) = (part("ssm_cfg"), part("attn_cfg"));
    let off = |of: &Config<'_>, key: &str| of.0.get(key).is_some_and(|value| *value == false);
    let second = ssm.0.get("layer").is_some_and(|layer| layer == "Mamba2");
    for i in 0..config.size("n_layer")? {
        let layer = Module::layer(i, "backbone.layers");
        all.same(&layer, &["norm.weight"]);
        let mixer = layer.sub("mixer", "mixer");
        if at.contains(&i) {
            all.renamed(&mixer, &[("qkv.weight", "in_proj.weight")]);
            all.same(&mixer, &["out_proj.weight"]);
            if attn.size_or("d_conv", || Ok(0))? > 0 {
                all.same(&mixer, &["conv1d.weight", "conv1d.bias"]);
            }
            if !off(&attn, "qkv_proj_bias") {
                all.renamed(&mixer, &[("qkv.bias", "in_proj.bias")]);
            }
            if !off(&attn, "out_proj_bias") {
                all.same(&mixer, &["out_proj.bias"]);
            }
        } else {
            let there = |name: &&&str| match **name {
                "norm.weight" => !off(&ssm, "rmsnorm"),
                "conv1d.bias" => !off(&ssm, "conv_bias"),
                _ => true,
            };
            let names = if second { MAMBA2 } else { MAMBA1 };
            all.same(&mixer, &names.iter().filter(there).copied().collect::<Vec<_>>());
            if ssm.flag("bias") {
                all.same(&mixer, &["in_proj.bias", "out_proj.bias"]);
            }
        }
        if wide > 0 {
            let mlp = layer.sub("ffn", "mlp");
            all.renamed(&layer, &[("ffn_norm.weight", "norm2.weight")]);
            // Here the gate stands after what it gates.
            all.put(&mlp, "up.weight", mlp.file("fc1.weight").turned(wide));
            all.renamed(&mlp, &[("down.weight", "fc2.weight")]);
        }
    }
    Ok(all)
}

/// The mixer that `ssm_cfg` describes; what it leaves out is as in `default`.
pub(super) fn ssm_cfg(ssm: &mut Fields, d_model: Size, default: &Settings) -> Result<Settings> {
    ssm.only("layer", &["Mamba1"], NOT_YET)?;
    ssm.get("use_fast_path"); // chooses a kernel, not a function
    let mixer = Settings {
        d_state: ssm.bounded("d_state", default.d_state)?,
        d_conv: ssm.bounded("d_conv", default.d_conv)?,
        expand: ssm.bounded("expand", default.expand)?,
        d_inner: if ssm.map.contains_key("expand") { Auto::Auto } else { default.d_inner },
        dt_rank: match ssm.get("dt_rank") {
            None => default.dt_rank,
            Some(_) => dt_rank(ssm, "dt_rank", d_model)?,
        },
        conv_bias: ssm.flag("conv_bias", default.conv_bias)?,
        proj_bias: ssm.flag("bias", default.proj_bias)?,
        dt_min: ssm.real("dt_min", default.dt_min)?,
        dt_max: ssm.real("dt_max", default.dt_max)?,
        dt_init_floor: ssm.real("dt_init_floor", default.dt_init_floor)?,
        dt_scale: ssm.real("dt_scale", default.dt_scale)?,
        dt_init: ssm.dt_init("dt_init")?,
        ..default.clone()
    };
    ssm.no_unknown("elapid does not know what it means; remove it if the default is right")?;
    Ok(mixer)
}
