//! Reading `config.json` in the two layouts there are.

use elapid_kernels::selective_scan::Discretisation;
use serde_json::{Map, Value};

use super::{AInit, ConfigError, DtInit, Mamba1Config, MixerConfig, ModelConfig, NEOX_VOCAB, Selective};

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// Keys of Hugging Face configurations that do not change what a forward pass computes.
const HARMLESS: &str = "
    _attn_implementation _commit_hash _name_or_path add_cross_attention architectures auto_map bad_words_ids
    begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id fused_add_norm
    id2label is_decoder is_encoder_decoder label2id layer_types length_penalty max_length
    max_position_embeddings min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_vocab_size_multiple prefix
    problem_type pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    time_step_limit tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    use_associative_scan use_bfloat16 use_cache use_falcon_mambapy use_mambapy";

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
    let Value::Object(map) = json(text, file)? else {
        return Err(syntax(file, "something else than an object"));
    };
    let mut fields = Fields { file, within: "", map: &map, seen: Vec::new(), warnings: Vec::new() };
    let (config, names) = if map.contains_key("hidden_size") || (!map.contains_key("d_model") && claims_mamba(&map)) {
        (hugging_face(&mut fields)?, HUGGING_FACE)
    } else if map.contains_key("d_model") {
        (original(&mut fields)?, ORIGINAL)
    } else {
        return Err(fields.error(
            "model_type",
            "\"mamba\", with the sizes of a Mamba model",
            map.get("model_type").unwrap_or(&Value::Null),
            "give the config.json that came with the weights",
        ));
    };
    let unknown = fields
        .unknown()
        .filter(|key| *key != "elapid" && !HARMLESS.split_whitespace().any(|harmless| harmless == *key));
    let unknown: Vec<_> = unknown.map(|key| format!("{file}: `{key}` is not known and was ignored")).collect();
    let mut warnings = fields.warnings;
    warnings.extend(unknown);
    config.validate().map_err(|e| e.in_file(file, names))?;
    Ok((config, warnings))
}

/// JSON as it should be; or, for files that Python wrote with bare `Infinity` or `NaN` in them, as it is.
pub(crate) fn json(text: &str, file: &str) -> Result<Value> {
    let strict = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => syntax(file, error),
    };
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
    json5::from_str(text).map_err(|error| syntax(file, error))
}

fn syntax(file: &str, got: impl std::fmt::Display) -> ConfigError {
    let fix = "give the config.json that came with the weights".to_owned();
    ConfigError::Syntax { file: file.into(), got: got.to_string(), fix }
}

fn claims_mamba(map: &Map<String, Value>) -> bool {
    let architectures = map.get("architectures").and_then(Value::as_array);
    map.get("model_type").is_some_and(|kind| kind == "mamba")
        || architectures.is_some_and(|list| list.iter().any(|name| name == "MambaForCausalLM"))
}

fn hugging_face(fields: &mut Fields) -> Result<ModelConfig> {
    if !claims_mamba(fields.map) {
        let got = fields.get("model_type").or_else(|| fields.get("architectures")).unwrap_or(&Value::Null);
        let fix = "elapid does not have this model yet; give a Mamba-1 model";
        return Err(fields.error("model_type", "\"mamba\"", got, fix));
    }
    fields.only("model_type", "mamba", "elapid does not have this model yet; give a Mamba-1 model")?;
    fields.only("hidden_act", "silu", "elapid does not have this activation")?;
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
    for (key, value) in [("d_model", d_model), ("n_layer", n_layer), ("d_inner", d_inner)] {
        if let Some(other) = fields.get(key).filter(|other| other.as_u64() != Some(value as u64)) {
            fields.warnings.push(format!("{}: `{key}` is {other}; {value} is used, as transformers does", fields.file));
        }
    }
    if fields.get("ssm_cfg").is_some_and(|cfg| cfg.as_object().is_none_or(|map| !map.is_empty())) {
        let warning = format!("{}: `ssm_cfg` was ignored, as transformers does", fields.file);
        fields.warnings.push(warning);
    }
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
    own(fields, &mut config)?;
    Ok(config)
}

/// What elapid wrote for itself. Where it contradicts the rest, the file was edited since: the rest counts.
fn own(fields: &mut Fields, config: &mut ModelConfig) -> Result<()> {
    let map = match fields.get("elapid") {
        None => return Ok(()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.error("elapid", "an object", other, "remove it")),
    };
    let mut inner = Fields { file: fields.file, within: "elapid.", map, seen: Vec::new(), warnings: Vec::new() };
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
    const NOT_YET: &str = "not supported yet: give a model of Mamba-1 blocks only";
    fields.only("model_type", "mamba", NOT_YET)?;
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
    let empty = Map::new();
    let ssm_cfg = match fields.get("ssm_cfg") {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.error("ssm_cfg", "an object", other, "write {} for the defaults")),
    };
    let mut ssm =
        Fields { file: fields.file, within: "ssm_cfg.", map: ssm_cfg, seen: Vec::new(), warnings: Vec::new() };
    ssm.only("layer", "Mamba1", NOT_YET)?;
    ssm.get("use_fast_path"); // chooses a kernel, not a function
    let mixer = Mamba1Config {
        d_state: ssm.size("d_state", 16)?,
        d_conv: ssm.size("d_conv", 4)?,
        expand: ssm.size("expand", 2)?,
        d_inner: None,
        dt_rank: ssm.size_or_auto("dt_rank", d_model.div_ceil(16))?,
        selective: Selective::default(),
        a_init: AInit::default(),
        gate: true,
        conv_bias: ssm.flag("conv_bias", true)?,
        proj_bias: ssm.flag("bias", false)?,
        dt_min: ssm.real("dt_min", 1e-3)?,
        dt_max: ssm.real("dt_max", 0.1)?,
        dt_init_floor: ssm.real("dt_init_floor", 1e-4)?,
        dt_scale: ssm.real("dt_scale", 1.0)?,
        dt_init: ssm.dt_init("dt_init")?,
        rule: Discretisation::ExpEuler,
    };
    ssm.no_unknown("elapid does not know what it means; remove it if the default is right")?;
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
        // The layout does not record them. The published models have the GPT-NeoX tokenizer, <|endoftext|> its token 0.
        bos_token_id: neox.then_some(0),
        eos_token_id: neox.then_some(0),
        pad_token_id: neox.then_some(0),
    })
}

const WHOLE: &str = "a whole number, not negative";

fn whole(value: &Value) -> Option<usize> {
    // 2^53: up to there a float that is whole is the number that was meant.
    let meant = |x: &f64| x.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(x);
    let number = value.as_u64().or_else(|| value.as_f64().filter(meant).map(|x| x as u64));
    number.and_then(|n| usize::try_from(n).ok())
}

/// The fields of an object, and which of them were asked for.
struct Fields<'a> {
    file: &'a str,
    /// Prefix of the field's name in errors.
    within: &'static str,
    map: &'a Map<String, Value>,
    seen: Vec<&'static str>,
    warnings: Vec<String>,
}

impl<'a> Fields<'a> {
    fn error(&self, key: &str, wanted: &str, got: &Value, fix: &str) -> ConfigError {
        ConfigError::field(self.file, &format!("{}{key}", self.within), wanted, got, fix)
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.push(key);
        self.map.get(key)
    }

    fn unknown(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str).filter(|key| !self.seen.contains(key))
    }

    fn no_unknown(&self, fix: &str) -> Result<()> {
        match self.unknown().next() {
            None => Ok(()),
            Some(key) => Err(self.error(key, "a key that elapid knows", &self.map[key], fix)),
        }
    }

    /// The field, if it is there, must have this value: another one would be another model.
    fn only(&mut self, key: &'static str, value: &str, fix: &str) -> Result<()> {
        match self.get(key) {
            Some(other) if other != value => Err(self.error(key, &format!("\"{value}\""), other, fix)),
            _ => Ok(()),
        }
    }

    fn rms_norm(&mut self) -> Result<()> {
        match self.flag("rms_norm", true)? {
            true => Ok(()),
            false => Err(self.error("rms_norm", "true", &Value::Bool(false), "LayerNorm is not supported yet")),
        }
    }

    fn required_size(&mut self, key: &'static str) -> Result<usize> {
        let fix = "give the size that the weights have";
        match self.get(key) {
            Some(value) => whole(value).ok_or_else(|| self.error(key, WHOLE, value, fix)),
            None => Err(ConfigError::field(self.file, key, WHOLE, "nothing", fix)),
        }
    }

    fn size(&mut self, key: &'static str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        whole(value).ok_or_else(|| self.error(key, WHOLE, value, &format!("correct it (the default is {default})")))
    }

    fn size_or_auto(&mut self, key: &'static str, auto: usize) -> Result<usize> {
        if self.get(key).is_some_and(|value| value == "auto") { Ok(auto) } else { self.size(key, auto) }
    }

    fn real(&mut self, key: &'static str, default: f32) -> Result<f32> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        number
            .ok_or_else(|| self.error(key, "a finite number", value, &format!("correct it (the default is {default})")))
    }

    fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value
            .as_bool()
            .ok_or_else(|| self.error(key, "true or false", value, &format!("correct it (the default is {default})")))
    }

    fn dt_init(&mut self, key: &'static str) -> Result<DtInit> {
        match self.get(key).map(|value| (value, value.as_str())) {
            None | Some((_, Some("random"))) => Ok(DtInit::Random),
            Some((_, Some("constant"))) => Ok(DtInit::Constant),
            Some((value, _)) => {
                Err(self.error(key, "\"random\" or \"constant\"", value, "correct it (the default is \"random\")"))
            }
        }
    }

    /// A token id: absent is 0 as `transformers` has it, null and -1 are none, of a list the first.
    fn id(&mut self, key: &'static str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(Some(0)) };
        let one = match value {
            // All ids that end a text are read where text is made.
            Value::Array(list) if list.len() > 1 && key != "eos_token_id" => {
                let warning = format!("{}: `{key}` lists {} tokens; the first is used", self.file, list.len());
                self.warnings.push(warning);
                &list[0]
            }
            Value::Array(list) => list.first().unwrap_or(&Value::Null),
            other => other,
        };
        if one.is_null() || one.as_i64() == Some(-1) {
            return Ok(None);
        }
        let id = one.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| self.error(key, "a token id or null", value, "give the id that the tokenizer has"))
    }
}
