//! Reading `config.json` in the two layouts there are.

use elapid_kernels::selective_scan::Discretisation;
use serde_json::{Map, Value, json};

use super::fields::{Fields, Synonyms};
use super::{AInit, ConfigError, Mamba1Config, MixerConfig, ModelConfig, NEOX_VOCAB, Selective};
use crate::json::{self, Unique};

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// Keys that do not change what a forward pass computes: where the model comes from, how it was trained, how text is
/// generated with it, which kernels compute it.
const HARMLESS: &str = "
    add_cross_attention architectures attn_implementation auto_map bad_words_ids base_model_prefix
    begin_suppress_tokens cache_implementation chunk_size_feed_forward cls_token_id cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    epsilon_cutoff eta_cutoff exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id generation_config gradient_checkpointing guidance_scale id2label is_composition is_decoder
    is_encoder_decoder keys_to_ignore_at_inference label2id layer_types length_penalty library_name license
    mask_token_id max_length max_new_tokens max_position_embeddings min_length min_new_tokens min_p
    model_max_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_vocab_size_multiple
    penalty_alpha prefix problem_type pruned_heads remove_invalid_values renormalize_logits repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens tags task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_associative_scan use_bfloat16
    use_cache use_falcon_mambapy use_l2warp use_mambapy";

/// What such keys begin with: private attributes, and kernels that fuse operations.
const HARMLESS_PREFIXES: [&str; 3] = ["_", "fuse_", "fused_"];

/// Names of the epsilon of RMSNorm beside the one that `transformers` has for Mamba.
const EPSILONS: &[&str] =
    &["norm_eps", "norm_epsilon", "rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layernorm_epsilon"];

/// Names of other writers (the original code, flash-linear-attention, other models of `transformers`) for fields of
/// Hugging Face's configuration.
const HUGGING_FACE_SYNONYMS: Synonyms = &[
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

/// The same for the original layout.
const ORIGINAL_SYNONYMS: Synonyms = &[
    ("n_layer", &["num_hidden_layers", "n_layers", "num_layers"]),
    ("norm_epsilon", &["norm_eps", "rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"]),
    ("tie_embeddings", &["tie_word_embeddings"]),
];

/// What the fields of a configuration are called in a file of Hugging Face.
const HUGGING_FACE: &[(&str, &str)] = &[
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

/// What they are called in a file of the original code, where that is something else.
const ORIGINAL: &[(&str, &str)] = &[
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

/// Deepest nesting of brackets in a file that needs the lenient parser, which does not count them itself.
const MAX_DEPTH: usize = 64;

pub(super) fn parse(text: &str, file: &str) -> Result<(ModelConfig, Vec<String>)> {
    let Value::Object(map) = parse_json(text, file)? else {
        return Err(syntax(file, "something else than an object"));
    };
    let hugging_face_layout = map.contains_key("hidden_size") || (!map.contains_key("d_model") && claims_mamba(&map));
    let (synonyms, names) =
        if hugging_face_layout { (HUGGING_FACE_SYNONYMS, HUGGING_FACE) } else { (ORIGINAL_SYNONYMS, ORIGINAL) };
    let mut fields = Fields::new(file, "", &map, synonyms)?;
    let config = if hugging_face_layout {
        hugging_face(&mut fields)?
    } else if map.contains_key("d_model") {
        original(&mut fields)?
    } else {
        return Err(fields.error(
            "model_type",
            "\"mamba\", with the sizes of a Mamba model",
            map.get("model_type").unwrap_or(&Value::Null),
            "give the config.json that came with the weights",
        ));
    };
    check_unknown(&fields)?;
    let names: Vec<(&str, &str)> = names.iter().map(|(ours, there)| (*ours, fields.called(there))).collect();
    config.validate().map_err(|e| e.in_file(file, &names))?;
    Ok((config, fields.warnings))
}

/// A key that nobody knows may change the model: it is no warning that scrolls by. One that says nothing (null) does not.
fn check_unknown(fields: &Fields) -> Result<()> {
    let harmless = |key: &str| {
        HARMLESS.split_whitespace().any(|known| known == key)
            || HARMLESS_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
    };
    match fields.unknown().find(|(key, value)| *key != "elapid" && !value.is_null() && !harmless(key)) {
        None => Ok(()),
        Some((key, value)) => {
            let fix = "if it changes what the model computes, elapid does not have this model yet; if not, remove it";
            Err(fields.error(key, "a key that elapid knows", value, fix))
        }
    }
}

/// JSON as it should be; or, for files that Python wrote with bare `Infinity` or `NaN` in them, as it is.
pub(crate) fn parse_json(text: &str, file: &str) -> Result<Value> {
    let strict = match json::parse(text.as_bytes()) {
        Ok(value) => return Ok(value),
        Err(error) => syntax(file, error),
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.contains("Infinity") && !text.contains("NaN") {
        return Err(strict);
    }
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(syntax(file, format_args!("brackets nested more than {MAX_DEPTH} deep")));
        }
    }
    json5::from_str(text).map(|Unique(value)| value).map_err(|error| syntax(file, error))
}

fn syntax(file: &str, got: impl std::fmt::Display) -> ConfigError {
    let fix = "give the config.json that came with the weights".to_owned();
    ConfigError::Syntax { file: file.into(), got: got.to_string(), fix }
}

fn claims_mamba(map: &Map<String, Value>) -> bool {
    let architectures = map.get("architectures").and_then(Value::as_array);
    map.get("model_type").is_some_and(|kind| kind == "mamba")
        || architectures.is_some_and(|list| list.iter().any(|name| name == "MambaForCausalLM" || name == "MambaModel"))
}

fn hugging_face(fields: &mut Fields) -> Result<ModelConfig> {
    if !claims_mamba(fields.map) {
        let got = fields.get("model_type").or_else(|| fields.get("architectures")).unwrap_or(&Value::Null);
        let fix = "elapid does not have this model yet; give a Mamba-1 model";
        return Err(fields.error("model_type", "\"mamba\"", got, fix));
    }
    fields.only("model_type", &["mamba"], "elapid does not have this model yet; give a Mamba-1 model")?;
    fields.only("hidden_act", &["silu", "swish"], "elapid does not have this activation")?;
    no_limit(fields)?;
    if let Some(quantised) = fields.get("quantization_config").filter(|value| !value.is_null()) {
        let fix = "give the checkpoint in F32, F16 or BF16";
        return Err(fields.error("quantization_config", "weights that are not quantised", quantised, fix));
    }
    let d_model = fields.size("hidden_size", 768)?;
    let expand = fields.size("expand", 2)?;
    let mut mixer = Mamba1Config {
        d_state: fields.size("state_size", 16)?,
        d_conv: fields.size("conv_kernel", 4)?,
        expand,
        d_inner: None,
        dt_rank: fields.size_or_auto("time_step_rank", d_model.div_ceil(16))?,
        selective: Selective::default(),
        a_init: AInit::default(),
        gate: true,
        conv_bias: fields.flag("use_conv_bias", true)?,
        proj_bias: fields.flag("use_bias", false)?,
        dt_min: fields.real("time_step_min", 1e-3)?,
        dt_max: fields.real("time_step_max", 0.1)?,
        dt_init_floor: fields.real("time_step_floor", 1e-4)?,
        dt_scale: fields.real("time_step_scale", 1.0)?,
        dt_init: fields.dt_init("time_step_init_scheme")?,
        rule: Discretisation::ExpEuler,
    };
    // Writers differ on `expand`, but the weights have always had `intermediate_size` channels.
    let d_inner = fields.size("intermediate_size", mixer.d_inner(d_model))?;
    if d_inner != mixer.d_inner(d_model) {
        match d_inner.checked_div(d_model).filter(|expand| *expand > 0 && expand.checked_mul(d_model) == Some(d_inner))
        {
            Some(expand) => mixer.expand = expand,
            None => mixer.d_inner = Some(d_inner),
        }
    }
    let n_layer = fields.size("num_hidden_layers", 32)?;
    fields.rms_norm()?;
    let mut config = ModelConfig {
        vocab_size: fields.size("vocab_size", 50280)?,
        pad_vocab_size_multiple: 1,
        d_model,
        n_layer,
        mixer: MixerConfig::Mamba1(mixer),
        norm_eps: fields.real("layer_norm_epsilon", 1e-5)?,
        tie_embeddings: fields.flag("tie_word_embeddings", true)?,
        residual_in_fp32: fields.flag("residual_in_fp32", true)?,
        initializer_range: fields.real("initializer_range", 0.1)?,
        rescale_prenorm_residual: fields.flag("rescale_prenorm_residual", false)?,
        bos_token_id: fields.id("bos_token_id")?,
        eos_token_id: fields.id("eos_token_id")?,
        pad_token_id: fields.id("pad_token_id")?,
    };
    check_ssm_cfg(fields, &config)?;
    own(fields, &mut config)?;
    Ok(config)
}

/// A limit on step sizes is Mamba-2's; files of Mamba-1 may carry the one that is none.
fn no_limit(fields: &mut Fields) -> Result<()> {
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
fn check_ssm_cfg(fields: &mut Fields, config: &ModelConfig) -> Result<()> {
    let Some(cfg) = fields.get("ssm_cfg").filter(|cfg| !cfg.is_null()) else { return Ok(()) };
    let Value::Object(map) = cfg else {
        return Err(fields.error("ssm_cfg", "an object", cfg, "remove it"));
    };
    let MixerConfig::Mamba1(used) = &config.mixer;
    let mut inner = Fields::new(fields.file, "ssm_cfg.", map, &[])?;
    let said = ssm_cfg(&mut inner, config.d_model, used)?;
    let channels = |mixer: &Mamba1Config| json!(format!("{} channels", mixer.d_inner(config.d_model)));
    let pairs = [
        ("d_state", json!(said.d_state), json!(used.d_state)),
        ("d_conv", json!(said.d_conv), json!(used.d_conv)),
        ("expand", channels(&said), channels(used)),
        ("dt_rank", json!(said.dt_rank), json!(used.dt_rank)),
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

/// What elapid wrote for itself. Where it contradicts the rest, the file was edited since: the rest counts.
fn own(fields: &mut Fields, config: &mut ModelConfig) -> Result<()> {
    let map = match fields.get("elapid") {
        None => return Ok(()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.error("elapid", "an object", other, "remove it")),
    };
    let mut inner = Fields::new(fields.file, "elapid.", map, &[])?;
    let padded = config.vocab_size;
    let vocab_size = inner.size("vocab_size", padded)?;
    let multiple = inner.size("pad_vocab_size_multiple", 1)?;
    if multiple > 0 && vocab_size.checked_next_multiple_of(multiple) == Some(padded) {
        (config.vocab_size, config.pad_vocab_size_multiple) = (vocab_size, multiple);
    } else {
        let warning = format!(
            "{}: `elapid.vocab_size` {vocab_size} in multiples of {multiple} is not `vocab_size` {padded}, which is used",
            fields.file
        );
        inner.warnings.push(warning);
    }
    config.rescale_prenorm_residual = inner.flag("rescale_prenorm_residual", config.rescale_prenorm_residual)?;
    match &mut config.mixer {
        MixerConfig::Mamba1(mixer) => {
            let in_use = mixer.d_inner(config.d_model);
            let expand = inner.size("expand", mixer.expand)?;
            let d_inner = inner.get("d_inner").is_some().then(|| inner.size("d_inner", in_use)).transpose()?;
            match d_inner {
                Some(d_inner) if d_inner == in_use => (mixer.d_inner, mixer.expand) = (Some(d_inner), expand),
                Some(d_inner) => {
                    let file = fields.file;
                    let warning = format!(
                        "{file}: `elapid.d_inner` {d_inner} is not `intermediate_size` {in_use}, which is used"
                    );
                    inner.warnings.push(warning);
                }
                None => {}
            }
            if let Some(rule) = inner.get("rule") {
                let known = Discretisation::ALL.into_iter().find(|known| rule == known.name());
                let wanted = Discretisation::ALL.map(Discretisation::name).join(", ");
                let fix = "give one of these; this file may be from a newer elapid";
                mixer.rule = known.ok_or_else(|| inner.error("rule", &wanted, rule, fix))?;
            }
            if let Some(names) = inner.get("selective") {
                let list = names.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
                let wanted = "a list of some of \"delta\", \"B\", \"C\"";
                let error = || inner.error("selective", wanted, names, "give those that depend on the input");
                mixer.selective = list.and_then(Selective::from_names).ok_or_else(error)?;
            }
            if let Some(name) = inner.get("a_init") {
                let known = AInit::ALL.into_iter().find(|known| name == known.name());
                let wanted = AInit::ALL.map(AInit::name).join(", ");
                let fix = "give one of these; this file may be from a newer elapid";
                mixer.a_init = known.ok_or_else(|| inner.error("a_init", &wanted, name, fix))?;
            }
            mixer.gate = inner.flag("gate", true)?;
        }
    }
    inner.no_unknown("this file may be from a newer elapid: update, or remove the key")?;
    fields.warnings.extend(inner.warnings);
    Ok(())
}

fn original(fields: &mut Fields) -> Result<ModelConfig> {
    fields.only("model_type", &["mamba"], NOT_YET)?;
    fields.rms_norm()?;
    if let Some(other) = fields.get("d_intermediate").filter(|value| value.as_u64() != Some(0)) {
        return Err(fields.error("d_intermediate", "0, blocks without an MLP", other, NOT_YET));
    }
    if let Some(other) =
        fields.get("attn_layer_idx").filter(|value| value.as_array().is_none_or(|list| !list.is_empty()))
    {
        return Err(fields.error("attn_layer_idx", "[], no attention layers", other, NOT_YET));
    }
    fields.get("attn_cfg"); // says how attention layers are, and there are none
    let d_model = fields.required_size("d_model")?;
    let vocab_size = fields.required_size("vocab_size")?;
    let neox = vocab_size == NEOX_VOCAB || vocab_size == NEOX_VOCAB.next_multiple_of(8);
    // The layout itself does not record them. The published models have the GPT-NeoX tokenizer, <|endoftext|> its token 0.
    let id = |fields: &mut Fields, key| match fields.get(key) {
        Some(_) => fields.id(key),
        None => Ok(neox.then_some(0)),
    };
    let empty = Map::new();
    let map = match fields.get("ssm_cfg") {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.error("ssm_cfg", "an object", other, "write {} for the defaults")),
    };
    let mut ssm = Fields::new(fields.file, "ssm_cfg.", map, &[])?;
    let mixer = ssm_cfg(&mut ssm, d_model, &Mamba1Config::new(d_model))?;
    Ok(ModelConfig {
        vocab_size,
        pad_vocab_size_multiple: fields.size("pad_vocab_size_multiple", 8)?,
        d_model,
        n_layer: fields.required_size("n_layer")?,
        mixer: MixerConfig::Mamba1(mixer),
        norm_eps: fields.real("norm_epsilon", 1e-5)?,
        tie_embeddings: fields.flag("tie_embeddings", true)?,
        residual_in_fp32: fields.flag("residual_in_fp32", true)?,
        initializer_range: fields.real("initializer_range", 0.02)?,
        rescale_prenorm_residual: true,
        bos_token_id: id(fields, "bos_token_id")?,
        eos_token_id: id(fields, "eos_token_id")?,
        pad_token_id: id(fields, "pad_token_id")?,
    })
}

const NOT_YET: &str = "not supported yet: give a model of Mamba-1 blocks only";

/// The mixer that `ssm_cfg` describes; what it leaves out is as in `default`.
fn ssm_cfg(ssm: &mut Fields, d_model: usize, default: &Mamba1Config) -> Result<Mamba1Config> {
    ssm.only("layer", &["Mamba1"], NOT_YET)?;
    ssm.get("use_fast_path"); // chooses a kernel, not a function
    let mixer = Mamba1Config {
        d_state: ssm.size("d_state", default.d_state)?,
        d_conv: ssm.size("d_conv", default.d_conv)?,
        expand: ssm.size("expand", default.expand)?,
        d_inner: if ssm.map.contains_key("expand") { None } else { default.d_inner },
        dt_rank: match ssm.get("dt_rank") {
            None => default.dt_rank,
            Some(_) => ssm.size_or_auto("dt_rank", d_model.div_ceil(16))?,
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
