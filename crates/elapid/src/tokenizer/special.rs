//! Special tokens from the files: ids with a role, the tokens before and after a text, and the ids that end one.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::{Result, TokenizerError};
use crate::files::{self, FileError, limit};
use crate::{content, formats, json};

/// The file beside `tokenizer.json` that names the special tokens.
pub(super) const CONFIG: &str = "tokenizer_config.json";

const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const MODEL_CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// Ids with a role.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Roles {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
}

/// The ids before and after a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
}

/// The files beside a `tokenizer.json`; null for a missing one.
pub(super) struct Beside {
    tokenizer_config: Value,
    special_tokens_map: Value,
    config: Value,
    generation_config: Value,
}

impl Beside {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            tokenizer_config: object(dir, CONFIG)?,
            special_tokens_map: object(dir, SPECIAL_TOKENS_MAP)?,
            config: object(dir, MODEL_CONFIG)?,
            generation_config: object(dir, GENERATION_CONFIG)?,
        })
    }

    /// Ids by role: by name from `tokenizer_config.json` or `special_tokens_map.json`, else by number from `config.json`,
    /// else by the names that published models use. The number of the end token is from `end_ids`, if the files state any or
    /// none.
    pub(super) fn roles(
        &self,
        end_ids: Option<&[u32]>,
        id_of: impl Fn(&str) -> Option<u32>,
        is_id: impl Fn(u32) -> bool,
    ) -> Roles {
        let named = [&self.tokenizer_config, &self.special_tokens_map];
        let is_id = |id: &u32| is_id(*id);
        let usual = |names: &[&str]| names.iter().find_map(|name| id_of(name));
        let by_name = |key: &str| {
            let name = |json: &Value| {
                let token = &json[format!("{key}_token")];
                id_of(token.as_str().or_else(|| token["content"].as_str())?)
            };
            named.into_iter().find_map(name)
        };
        let by_number = |key: &str| {
            let id = self.config[format!("{key}_token_id")].as_u64()?;
            u32::try_from(id).ok().filter(is_id)
        };
        let role = |key: &str, names: &[&str]| by_name(key).or_else(|| by_number(key)).or_else(|| usual(names));
        Roles {
            bos: role("bos", &["<bos>", "<s>", "<|begin_of_text|>", "<|endoftext|>"]),
            eos: by_name("eos").or_else(|| match end_ids {
                Some(stated) => stated.iter().copied().find(is_id),
                None => usual(&["<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>"]),
            }),
            pad: role("pad", &["<pad>", "<|padding|>", "[PAD]"]),
        }
    }

    /// The tokens of the post-processor of `tokenizer.json`, overridden by `add_bos_token` and `add_eos_token` of
    /// `tokenizer_config.json`: a side with a flag is that token or nothing.
    pub(super) fn template(&self, mut from_file: Template, roles: Roles) -> Result<Template, String> {
        for (key, id, side) in
            [("add_bos_token", roles.bos, &mut from_file.prefix), ("add_eos_token", roles.eos, &mut from_file.suffix)]
        {
            match &self.tokenizer_config[key] {
                Value::Null => {}
                Value::Bool(add) => *side = id.filter(|_| *add).into_iter().collect(),
                other => return Err(format!("`{key}`: wanted true or false, got {other}; correct it")),
            }
        }
        Ok(from_file)
    }

    /// As [`stated_end_ids`].
    pub(super) fn end_ids(&self, dir: &Path) -> Result<Option<Vec<u32>>> {
        let stated = |name: &str, json: &Value| -> Result<Option<Vec<u32>>> {
            let Some(value) = json.get("eos_token_id") else { return Ok(None) };
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let none = |value: &Value| value.is_null() || value.as_i64() == Some(-1);
            let all = match value {
                Value::Array(list) => list.iter().filter(|value| !none(value)).map(id).collect(),
                value if none(value) => Some(Vec::new()),
                value => id(value).map(|id| vec![id]),
            };
            all.map(Some).ok_or_else(|| {
                let what =
                    format!("`eos_token_id`: wanted a token id, a list of them or null, got {value}; correct it");
                TokenizerError::Definition { path: dir.join(name), what }
            })
        };
        let generation = stated(GENERATION_CONFIG, &self.generation_config)?;
        match generation.filter(|ids| !ids.is_empty()) {
            Some(ids) => Ok(Some(ids)),
            None => stated(MODEL_CONFIG, &self.config),
        }
    }
}

/// The ids that end a text, from a model's directory: `eos_token_id` of `generation_config.json`, else that of
/// `config.json`, a number or a list; `None` if neither file has it. [`Tokenizer::end_ids`](super::Tokenizer::end_ids)
/// includes them.
///
/// # Errors
/// If an existing file cannot be read, is not JSON, or has something other than ids; the error names it.
pub fn stated_end_ids(dir: &Path) -> Result<Option<Vec<u32>>> {
    let (config, generation_config) = (object(dir, MODEL_CONFIG)?, object(dir, GENERATION_CONFIG)?);
    let (tokenizer_config, special_tokens_map) = (Value::Null, Value::Null);
    Beside { tokenizer_config, special_tokens_map, config, generation_config }.end_ids(dir)
}

/// A file that holds a JSON object; null if there is no file.
fn object(dir: &Path, name: &str) -> Result<Value> {
    let path = dir.join(name);
    let bytes = match files::read(&path, limit::CONFIG) {
        Ok(bytes) => bytes,
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(error) => return Err(error.into()),
    };
    let wrong = |what: String| TokenizerError::Definition { path: path.clone(), what };
    let not_json = |error: &dyn std::fmt::Display| wrong(content::not_json(&bytes, error));
    // Python writes bare `Infinity` into config.json.
    let json = if name == MODEL_CONFIG {
        let text = std::str::from_utf8(&bytes).map_err(|e| not_json(&e))?;
        formats::parse_json(text, name).map_err(|e| not_json(&e))?
    } else {
        json::parse(&bytes).map_err(|e| not_json(&e))?
    };
    if json.is_object() { Ok(json) } else { Err(wrong("wanted a JSON object; fetch the file again".into())) }
}

impl Template {
    /// From the `post_processor` of a `tokenizer.json`.
    pub(super) fn of(processor: &Value) -> Result<Self, String> {
        let wrong = |what: &str| format!("post_processor: {what}; fetch the file again");
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match processor["type"].as_str() {
            None | Some("ByteLevel") => Ok(Self::default()),
            Some("BertProcessing" | "RobertaProcessing") => {
                let side = |key: &str| id(&processor[key][1]).map(|id| vec![id]);
                side("cls")
                    .zip(side("sep"))
                    .map(|(prefix, suffix)| Self { prefix, suffix })
                    .ok_or_else(|| wrong("`cls` and `sep` are not tokens with ids"))
            }
            Some("TemplateProcessing") => {
                let (mut template, mut after) = (Self::default(), false);
                for piece in processor["single"].as_array().into_iter().flatten() {
                    let Some(name) = piece["SpecialToken"]["id"].as_str() else {
                        after = true;
                        continue;
                    };
                    let ids = processor["special_tokens"][name]["ids"].as_array().into_iter().flatten().map(id);
                    let ids: Option<Vec<u32>> = ids.collect();
                    let ids = ids.filter(|ids| !ids.is_empty());
                    let ids = ids.ok_or_else(|| wrong(&format!("its template has `{name}`, which has no id there")))?;
                    if after { template.suffix.extend(ids) } else { template.prefix.extend(ids) }
                }
                if after { Ok(template) } else { Err(wrong("its template has no place for the text")) }
            }
            Some("Sequence") => {
                let mut whole = Self::default();
                for part in processor["processors"].as_array().into_iter().flatten() {
                    let mut part = Self::of(part)?;
                    part.prefix.append(&mut whole.prefix);
                    whole.suffix.append(&mut part.suffix);
                    whole.prefix = part.prefix;
                }
                Ok(whole)
            }
            Some(other) => Err(wrong(&format!("`{other}` is not known"))),
        }
    }

    /// A `post_processor` with these tokens; the original's handling of offsets stays.
    pub(super) fn post_processor(&self, original: &Value, name_of: impl Fn(u32) -> Option<String>) -> Value {
        let mut parts = Vec::new();
        offsets(original, &mut parts);
        if *self != Self::default() {
            let mut special_tokens = Map::new();
            let mut side = |ids: &[u32], type_id: u32| -> Vec<Value> {
                let named = ids.iter().filter_map(|&id| Some((id, name_of(id)?)));
                let piece = |(id, name): (u32, String)| {
                    special_tokens.insert(name.clone(), json!({"id": name, "ids": [id], "tokens": [name]}));
                    json!({"SpecialToken": {"id": name, "type_id": type_id}})
                };
                named.map(piece).collect()
            };
            let mut sequence = |id: &str, type_id: u32| {
                let text = vec![json!({"Sequence": {"id": id, "type_id": type_id}})];
                [side(&self.prefix, type_id), text, side(&self.suffix, type_id)].concat()
            };
            let single = sequence("A", 0);
            let pair = [single.clone(), sequence("B", 1)].concat();
            parts.push(json!({
                "type": "TemplateProcessing", "single": single, "pair": pair,
                "special_tokens": special_tokens,
            }));
        }
        match parts.len() {
            0 => Value::Null,
            1 => parts.remove(0),
            _ => json!({"type": "Sequence", "processors": parts}),
        }
    }
}

/// The parts of a post-processor that add no tokens.
fn offsets(processor: &Value, parts: &mut Vec<Value>) {
    match processor["type"].as_str() {
        Some("ByteLevel") => parts.push(processor.clone()),
        Some("Sequence") => {
            processor["processors"].as_array().into_iter().flatten().for_each(|part| offsets(part, parts));
        }
        _ => {}
    }
}
