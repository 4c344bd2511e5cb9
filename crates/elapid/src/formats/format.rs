//! What a format is: a description of models, and a map of their tensors.

use serde_json::{Map, Value};

use super::fields::{Fields, Synonyms};
use super::names::{Config, Result, Tensors};
use super::places::{HEAD, Places};
use crate::config::{ConfigError, ModelConfig};

/// How a format describes a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codec {
    /// Names of other writers for its keys.
    pub(super) synonyms: Synonyms,
    /// What settings of elapid are called in its files.
    pub(super) names: &'static [(&'static str, &'static str)],
    /// Reads a configuration.
    pub(super) read: fn(&mut Fields<'_>) -> Result<ModelConfig, ConfigError>,
    /// Writes the keys for a model; none if it is of another kind. Reading them back says whether they are this very model.
    pub(super) write: fn(&ModelConfig) -> Option<Map<String, Value>>,
    /// Whether its tensors have elapid's names, perhaps with the prefixes of other writers.
    pub(super) own_names: bool,
}

/// A format of a model's files.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// The `model_type` of its configuration.
    pub model_type: &'static str,
    /// elapid's tensors for a configuration, each with its place in the file.
    pub tensors: fn(&Config<'_>) -> Result<Tensors>,
    /// Tensors of the file that are no parameters.
    pub ignores: fn(&str) -> bool,
    /// Whether a configuration with this `model_type` is of this format, where two have the same.
    pub(crate) is: fn(&Map<String, Value>) -> bool,
    /// Keys from which tensors' names follow, and nothing else.
    pub(super) naming: &'static [&'static str],
    /// Its configuration, if elapid has all layers of such models.
    pub(crate) codec: Option<Codec>,
}

impl Format {
    /// The keys for a model as the format itself would write them, which have defaults and synonyms in one form, with those of the
    /// file that name tensors.
    pub(super) fn canonical(
        &self,
        codec: &Codec,
        config: &ModelConfig,
        file: Map<String, Value>,
    ) -> Map<String, Value> {
        let Some(mut map) = (codec.write)(config) else { return file };
        map.extend(file.into_iter().filter(|(key, _)| self.naming.contains(&key.as_str())));
        map
    }

    /// Where the tensors of a model lie, whose configuration has these keys.
    pub(super) fn places(&self, map: &Map<String, Value>) -> Result<Places> {
        if self.codec.as_ref().is_none_or(|codec| codec.own_names) {
            return Ok(Places::default());
        }
        let listed = (self.tensors)(&Config(map))?.0.into_iter().collect();
        let mut untied = map.clone();
        untied.insert("tie_word_embeddings".into(), Value::Bool(false));
        let head = (self.tensors)(&Config(&untied))?.0.into_iter().find(|(name, _)| name == HEAD);
        let head = head.and_then(|(_, place)| place.names().first().map(|name| (*name).to_owned()));
        Ok(Places { listed, head: head.unwrap_or_else(|| HEAD.to_owned()), ignores: self.ignores })
    }
}
