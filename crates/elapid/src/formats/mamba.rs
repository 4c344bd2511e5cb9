//! Mamba-1 and Falcon-Mamba, whose names are elapid's own.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::format::Codec;
use super::names::{Config, MAMBA1, Module, Result, Tensors};
use super::state_spaces::ssm_cfg;
use super::values::{dt_rank, read_ends, real, stack, with_ends};
use crate::config::{ConfigError, ModelConfig, ModelSettings, StackConfig};
use crate::layers::mamba1::{DtInit, Settings};
use crate::settings::{Auto, Size};

/// The configuration of `MambaForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: SYNONYMS, names: NAMES, read, write, own_names: true };

/// Names of the epsilon of RMSNorm beside the one that `transformers` has for Mamba.
const EPSILONS: &[&str] =
    &["norm_eps", "norm_epsilon", "rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layernorm_epsilon"];

/// Names of other writers (the original code, flash-linear-attention, other models of `transformers`) for fields of
/// Hugging Face's configuration.
const SYNONYMS: Synonyms = &[
    ("hidden_size", &["d_model"]),
    ("num_hidden_layers", &["n_layer", "n_layers", "num_layers"]),
    ("state_size", &["d_state", "ssm_state_size"]),
    ("conv_kernel", &["d_conv", "conv_kernel_size"]),
    ("intermediate_size", &["d_inner"]),
    ("time_step_rank", &["dt_rank"]),
    ("time_step_min", &["dt_min"]),
    ("time_step_max", &["dt_max"]),
    ("time_step_floor", &["dt_init_floor"]),
    ("time_step_scale", &["dt_scale"]),
    ("time_step_init_scheme", &["dt_init"]),
    ("use_conv_bias", &["conv_bias"]),
    ("use_bias", &["bias"]),
    ("hidden_act", &["hidden_activation", "activation_function", "activation"]),
    ("layer_norm_epsilon", EPSILONS),
    ("tie_word_embeddings", &["tie_embeddings"]),
];

/// What the fields of a configuration are called in a file of Hugging Face.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("norm_eps", "layer_norm_epsilon"),
    ("d_state", "state_size"),
    ("d_conv", "conv_kernel"),
    ("d_inner", "intermediate_size"),
    ("dt_rank", "time_step_rank"),
    ("dt_min", "time_step_min"),
    ("dt_max", "time_step_max"),
    ("dt_init_floor", "time_step_floor"),
    ("dt_scale", "time_step_scale"),
];

/// The tensors of `MambaForCausalLM` and `FalconMambaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    layers(config, MAMBA1)
}

/// A model with one mixer a layer and elapid's names.
pub(super) fn layers(config: &Config<'_>, mixer: &[&str]) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "backbone.layers");
        all.same(&layer, &["norm.weight"]);
        all.same(&layer.sub("mixer", "mixer"), mixer);
        if config.flag("use_bias") {
            all.same(&layer.sub("mixer", "mixer"), &["in_proj.bias", "out_proj.bias"]);
        }
    }
    Ok(all)
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fields.only("model_type", &["mamba"], "elapid does not have this model yet; give a Mamba-1 model")?;
    blocks(fields)
}

/// Reads a stack of Mamba-1 blocks.
pub(super) fn blocks(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fields.only("hidden_act", &["silu", "swish"], "elapid does not have this activation")?;
    no_limit(fields)?;
    fields.get("layer_types"); // "mamba" for every layer
    if let Some(quantised) = fields.get("quantization_config").filter(|value| !value.is_null()) {
        let fix = "give the checkpoint in F32, F16 or BF16";
        return Err(fields.error("quantization_config", "weights that are not quantised", quantised, fix));
    }
    let d_model = fields.bounded("hidden_size", Size::new(768))?;
    let mut mixer = Settings {
        d_state: fields.bounded("state_size", Size::new(16))?,
        d_conv: fields.bounded("conv_kernel", Size::new(4))?,
        expand: fields.bounded("expand", Size::new(2))?,
        dt_rank: dt_rank(fields, "time_step_rank", d_model)?,
        conv_bias: fields.flag("use_conv_bias", true)?,
        proj_bias: fields.flag("use_bias", false)?,
        dt_min: fields.real("time_step_min", 1e-3)?,
        dt_max: fields.real("time_step_max", 0.1)?,
        dt_init_floor: fields.real("time_step_floor", 1e-4)?,
        dt_scale: fields.real("time_step_scale", 1.0)?,
        dt_init: fields.dt_init("time_step_init_scheme")?,
        ..Settings::default()
    };
    // Writers differ on `expand`, but the weights have always had `intermediate_size` channels.
    let d_inner = fields.bounded("intermediate_size", Size::new(mixer.d_inner(d_model.get())))?;
    if d_inner.get() != mixer.d_inner(d_model.get()) {
        match Size::checked(d_inner.get() / d_model.get())
            .filter(|expand| expand.get() * d_model.get() == d_inner.get())
        {
            Some(expand) => mixer.expand = expand,
            None => mixer.d_inner = Auto::Is(d_inner),
        }
    }
    let n_layer = fields.bounded("num_hidden_layers", Size::new(32))?;
    fields.rms_norm()?;
    fields.get("residual_in_fp32"); // How other programs keep the stream; elapid's is in the dtype of activations.
    let model = ModelSettings {
        d_model,
        n_layer,
        norm_eps: fields.real("layer_norm_epsilon", 1e-5)?,
        tie_embeddings: fields.flag("tie_word_embeddings", true)?,
        pad_vocab_multiple: Size::new(1),
        initializer_range: fields.real("initializer_range", 0.1)?,
        rescale_prenorm_residual: fields.flag("rescale_prenorm_residual", false)?,
        ..ModelSettings::default()
    };
    check_ssm_cfg(fields, d_model, &mixer)?;
    let mut config = read_ends(fields, 50280, stack(model, mixer), [Some(0); 3])?;
    partial(fields, &mut config)?;
    Ok(config)
}

/// A limit on step sizes is Mamba-2's; files of Mamba-1 may carry the one that is none.
fn no_limit(fields: &mut Fields) -> Result<(), ConfigError> {
    let Some(limit) = fields.get("time_step_limit").filter(|limit| !limit.is_null()) else { return Ok(()) };
    // Infinity is no JSON: bare, it is null after parsing; transformers 5 writes an object.
    let infinite = |high: &Value| {
        high.is_null() || high["__float__"] == "Infinity" || high.as_f64().is_some_and(|high| high > 1e30)
    };
    let none = limit
        .as_array()
        .is_some_and(|list| matches!(list.as_slice(), [low, high] if low.as_f64() == Some(0.0) && infinite(high)));
    let fix = "elapid does not limit step sizes; remove it if the model was not trained with it";
    if none { Ok(()) } else { Err(fields.error("time_step_limit", "[0, Infinity], no limit", limit, fix)) }
}

/// `ssm_cfg` is the original layout's. In a file of Hugging Face's it must say what the rest says.
fn check_ssm_cfg(fields: &mut Fields, d_model: Size, used: &Settings) -> Result<(), ConfigError> {
    let Some(cfg) = fields.get("ssm_cfg").filter(|cfg| !cfg.is_null()) else { return Ok(()) };
    let Value::Object(map) = cfg else {
        return Err(fields.error("ssm_cfg", "an object", cfg, "remove it"));
    };
    let mut inner = Fields::new(fields.file, "ssm_cfg.", map, &[])?;
    let said = ssm_cfg(&mut inner, d_model, used)?;
    let d = d_model.get();
    let channels = |mixer: &Settings| json!(format!("{} channels", mixer.d_inner(d)));
    let pairs = [
        ("d_state", json!(said.d_state), json!(used.d_state)),
        ("d_conv", json!(said.d_conv), json!(used.d_conv)),
        ("expand", channels(&said), channels(used)),
        ("dt_rank", json!(said.dt_rank(d)), json!(used.dt_rank(d))),
        ("conv_bias", json!(said.conv_bias), json!(used.conv_bias)),
        ("bias", json!(said.proj_bias), json!(used.proj_bias)),
    ];
    for (key, said, used) in pairs {
        if map.contains_key(key) && said != used {
            let wanted = format!("{used}, as the keys outside `ssm_cfg` say");
            return Err(inner.error(key, &wanted, &said, "they mean the same: remove the one that is wrong"));
        }
    }
    Ok(())
}

/// What elapid wrote under its own key before it had a schema there: single settings of Mamba-1.
fn partial(fields: &mut Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let map = match fields.get("elapid") {
        None => return Ok(()),
        Some(Value::Object(map)) if map.contains_key("model") => return Ok(()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.error("elapid", "an object", other, "remove it")),
    };
    let mut inner = Fields::new(fields.file, "elapid.", map, &[])?;
    let padded = config.vocab_size;
    let (vocab_size, multiple) =
        (inner.size("vocab_size", padded)?, inner.bounded("pad_vocab_size_multiple", Size::new(1))?);
    if vocab_size.checked_next_multiple_of(multiple.get()) == Some(padded) {
        (config.vocab_size, config.stack.model.pad_vocab_multiple) = (vocab_size, multiple);
    } else {
        let said = format!("{vocab_size} in multiples of {multiple}");
        let file = fields.file;
        fields.warnings.push(format!("{file}: `elapid.vocab_size` {said} is not `vocab_size` {padded}, which is used"));
    }
    let model = &mut config.stack.model;
    model.rescale_prenorm_residual = inner.flag("rescale_prenorm_residual", model.rescale_prenorm_residual)?;
    let mut mixer = mixer_of(&config.stack).cloned().unwrap_or_default();
    for (key, setting) in [
        ("rule", "discretisation"),
        ("selective", "selective"),
        ("a_init", "a_init"),
        ("gate", "gate"),
        ("expand", "expand"),
        ("d_inner", "d_inner"),
    ] {
        let Some(value) = inner.get(key) else { continue };
        let mut tree = serde_json::to_value(&mixer).unwrap_or_default();
        tree[setting] = value.clone();
        mixer = serde_json::from_value(tree).map_err(|error| ConfigError::Field {
            file: fields.file.to_owned(),
            field: format!("elapid.{key}"),
            what: error.to_string(),
            fix: "correct it; this file may be from a newer elapid".into(),
        })?;
    }
    inner.no_unknown("this file may be from a newer elapid: update, or remove the key")?;
    config.stack = stack(config.stack.model.clone(), mixer);
    Ok(())
}

/// The settings of the layers of a stack that is Mamba-1 blocks alone, pre-norm, with RMSNorm.
fn mixer_of(stack: &StackConfig) -> Option<&Settings> {
    let [name] = stack.model.layers.as_slice() else { return None };
    stack.named.get(name)?.layer.settings()
}

/// A model that `transformers` computes as elapid does. It takes the number of channels to be `expand * hidden_size`, and
/// has one rule of discretisation.
pub(super) fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (model, mixer) = (&config.stack.model, mixer_of(&config.stack)?);
    let (d, d_inner) = (config.d_model(), mixer.d_inner(config.d_model()));
    // What the keys do not say at all is found when they are read back.
    if mixer.dt_rank(d) == 0 || !d_inner.is_multiple_of(d) {
        return None;
    }
    with_ends(
        config,
        json!({
            "architectures": ["MambaForCausalLM"],
            "model_type": "mamba",
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": d,
            "num_hidden_layers": config.n_layer(),
            "state_size": mixer.d_state,
            "conv_kernel": mixer.d_conv,
            "expand": d_inner / d,
            "intermediate_size": d_inner,
            "time_step_rank": mixer.dt_rank(d),
            "time_step_min": real(mixer.dt_min),
            "time_step_max": real(mixer.dt_max),
            "time_step_floor": real(mixer.dt_init_floor),
            "time_step_scale": real(mixer.dt_scale),
            "time_step_init_scheme": match mixer.dt_init { DtInit::Random => "random", DtInit::Constant => "constant" },
            "use_conv_bias": mixer.conv_bias,
            "use_bias": mixer.proj_bias,
            "hidden_act": "silu",
            "layer_norm_epsilon": real(model.norm_eps),
            "initializer_range": real(model.initializer_range),
            // transformers 5.23 divides out_proj by the root of n_layer whenever it loads weights, if told in its own field.
            "rescale_prenorm_residual": false,
            "residual_in_fp32": true,
        }),
    )
}
