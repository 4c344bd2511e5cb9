//! Reading and writing `config.json` in whatever format it is.

use serde_json::{Map, Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fields::Fields;
use super::format::{Codec, Format};
use super::places::Places;
use super::state_spaces;
use super::table::{FORMATS, readable};
use crate::config::{ConfigError, ModelConfig, StackConfig};
use crate::json::{self, Unique};

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// The key under which elapid writes its own schema, and the `model_type` of models that no other format can say.
const OWN: &str = "elapid";

/// Keys that do not change what a forward pass computes: where the model comes from, how it was trained, how text is
/// generated with it, which kernels compute it.
const HARMLESS: &str = "
    add_cross_attention architectures attn_implementation auto_map bad_words_ids base_model_prefix
    begin_suppress_tokens cache_implementation chunk_size_feed_forward cls_token_id cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    epsilon_cutoff eta_cutoff exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id generation_config gradient_checkpointing guidance_scale id2label is_composition is_decoder
    is_encoder_decoder keys_to_ignore_at_inference label2id length_penalty library_name license
    mask_token_id max_length max_new_tokens max_position_embeddings min_length min_new_tokens min_p
    model_max_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_vocab_size_multiple
    penalty_alpha prefix problem_type pruned_heads remove_invalid_values renormalize_logits repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens tags task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_associative_scan use_bfloat16
    use_cache use_falcon_mambapy use_l2warp use_mamba_kernels use_mambapy";

/// What such keys begin with: private attributes, and kernels that fuse operations.
const HARMLESS_PREFIXES: [&str; 3] = ["_", "fuse_", "fused_"];

/// Deepest nesting of brackets in a file that needs the lenient parser, which does not count them itself.
const MAX_DEPTH: usize = 64;

impl ModelConfig {
    /// Reads `config.json` of any format that elapid knows, and returns what in it was not understood beside it. `file` is
    /// the name that errors give.
    ///
    /// # Errors
    /// If the text is not JSON, a value has the wrong kind or cannot be, or the model is of a kind that elapid does not have.
    pub fn parse(text: &str, file: &str) -> Result<(Self, Vec<String>), ConfigError> {
        describe(text, file).map(|described| (described.config, described.warnings))
    }

    /// The configuration as `config.json`; [`parse`](Self::parse) returns the same one. What the format cannot say stands
    /// under the key `"elapid"`, which `transformers` carries along unread; a model that no format can say has the
    /// `model_type` elapid.
    pub fn to_hf_json(&self) -> Value {
        let Some((_, mut map, back)) = say(self) else {
            return json!({
                "model_type": OWN,
                "vocab_size": self.padded_vocab_size(),
                "bos_token_id": self.bos_token_id,
                "eos_token_id": self.eos_token_id,
                "pad_token_id": self.pad_token_id,
                OWN: write_own(self),
            });
        };
        if back != *self {
            map.insert(OWN.into(), write_own(self));
        }
        Value::Object(map)
    }

    /// Whether a format of another program can say this model: whether that program computes the same.
    pub fn is_portable(&self) -> bool {
        say(self).is_some()
    }

    /// Where the model's tensors lie in the files that go with [`to_hf_json`](Self::to_hf_json).
    pub fn places(&self) -> Places {
        // A format's own keys have all that its map reads.
        say(self).and_then(|(format, map, _)| format.places(&map).ok()).unwrap_or_default()
    }
}

/// What `config.json` says.
pub(crate) struct Described {
    pub(crate) config: ModelConfig,
    /// What in it was not understood.
    pub(crate) warnings: Vec<String>,
    /// Where the tensors lie in the files beside it.
    pub(crate) places: Places,
}

/// Reads `config.json` of any format; see [`ModelConfig::parse`].
pub(crate) fn describe(text: &str, file: &str) -> Result<Described> {
    let Value::Object(map) = parse_json(text, file)? else {
        return Err(syntax(file, "something else than an object"));
    };
    let own = map.get(OWN).filter(|own| own.get("model").is_some());
    if map.get("model_type").is_some_and(|kind| kind == OWN) {
        let config = read_own(file, own.unwrap_or(&Value::Null), &map)?;
        return Ok(Described { config, warnings: Vec::new(), places: Places::default() });
    }
    let readable = readable(&map).and_then(|format| Some((format, format.codec.as_ref()?)));
    let (format, codec) = readable.ok_or_else(|| unknown_format(file, &map))?;
    let (mut config, mut warnings) = read_by(codec, &map, file)?;
    if let Some(own) = own {
        let ours = read_own(file, own, &map)?;
        // Where it contradicts the rest, the file was edited since: the rest counts.
        if say_in(codec, &ours).is_some_and(|(_, back)| back == config) {
            config = ours;
        } else {
            warnings.push(format!("{file}: `{OWN}` contradicts the keys beside it, which are used"));
        }
    }
    let places = format.places(&format.canonical(codec, &config, map)).map_err(|error| {
        let fix = "give the config.json that came with the weights";
        ConfigError::field(file, &error.key, error.wanted, error.got, fix)
    })?;
    Ok(Described { config, warnings, places })
}

/// The first format that can say a model, its keys, and what is read from them.
fn say(config: &ModelConfig) -> Option<(&'static Format, Map<String, Value>, ModelConfig)> {
    FORMATS.iter().chain([&state_spaces::FORMAT]).find_map(|format| {
        let (map, back) = say_in(format.codec.as_ref()?, config)?;
        Some((format, map, back))
    })
}

/// The keys of a format for a model, and what is read from them; none unless that computes the same.
fn say_in(codec: &Codec, config: &ModelConfig) -> Option<(Map<String, Value>, ModelConfig)> {
    let map = (codec.write)(config)?;
    let (back, _) = read_by(codec, &map, "").ok()?;
    let same = back.padded_vocab_size() == config.padded_vocab_size() && back.stack.computes_as(&config.stack);
    same.then_some((map, back))
}

/// Reads the keys of a format, all but elapid's own.
fn read_by(codec: &Codec, map: &Map<String, Value>, file: &str) -> Result<(ModelConfig, Vec<String>)> {
    let mut fields = Fields::new(file, "", map, codec.synonyms)?;
    let config = (codec.read)(&mut fields)?;
    check_unknown(&fields)?;
    let names: Vec<(&str, &str)> = codec.names.iter().map(|(ours, there)| (*ours, fields.called(there))).collect();
    config.validate().map_err(|error| error.in_file(file, &names))?;
    Ok((config, fields.warnings))
}

/// elapid's own schema: the vocabulary, and the tree of `[model]`.
fn write_own(config: &ModelConfig) -> Value {
    let tree: Option<toml::Table> = config.stack.to_toml("model").parse().ok();
    let tree = tree.and_then(|mut table| table.remove("model"));
    json!({ "vocab_size": config.vocab_size, "model": tree })
}

fn read_own(file: &str, own: &Value, map: &Map<String, Value>) -> Result<ModelConfig> {
    let error = |field: &str, wanted: &str, got: &Value| {
        ConfigError::field(file, field, wanted, got, "give the config.json that came with the weights")
    };
    let Value::Object(own) = own else { return Err(error(OWN, "an object with `vocab_size` and `model`", own)) };
    let mut inner = Fields::new(file, "elapid.", own, &[])?;
    let vocab_size = inner.required_size("vocab_size")?;
    let tree = inner.get("model").cloned().unwrap_or_default();
    inner.no_unknown("this file may be from a newer elapid: update, or remove the key")?;
    let wrong = || error("elapid.model", "the settings of a model", &tree);
    let table = toml::Table::try_from(&tree).map_err(|_| wrong())?;
    let text = toml::to_string(&table).map_err(|_| wrong())?;
    let table = DeTable::parse(&text).map_err(|_| wrong())?;
    let table = Spanned::new(table.span(), DeValue::Table(table.into_inner()));
    let stack = StackConfig::read("elapid.model", table).map_err(|problem| ConfigError::of(problem, file))?;
    let mut ids = Fields::new(file, "", map, &[])?;
    let config = ModelConfig {
        vocab_size,
        stack,
        bos_token_id: ids.id("bos_token_id")?,
        eos_token_id: ids.id("eos_token_id")?,
        pad_token_id: ids.id("pad_token_id")?,
    };
    config.validate().map_err(|error| error.in_file(file, &[]))?;
    Ok(config)
}

fn unknown_format(file: &str, map: &Map<String, Value>) -> ConfigError {
    let known: Vec<&str> =
        FORMATS.iter().filter(|format| format.codec.is_some()).map(|format| format.model_type).collect();
    let got = map.get("model_type").or_else(|| map.get("architectures")).unwrap_or(&Value::Null);
    let fix = "elapid does not have this model yet; give the config.json of one that it has";
    ConfigError::field(file, "model_type", format!("one of {}", known.join(", ")), got, fix)
}

/// A key that nobody knows may change the model: it is no warning that scrolls by. One that says nothing (null) does not.
fn check_unknown(fields: &Fields) -> Result<()> {
    let harmless = |key: &str| {
        HARMLESS.split_whitespace().any(|known| known == key)
            || HARMLESS_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
    };
    match fields.unknown().find(|(key, value)| *key != OWN && !value.is_null() && !harmless(key)) {
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
