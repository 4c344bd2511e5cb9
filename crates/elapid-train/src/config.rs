//! The settings of a training run: a TOML file over the defaults, `--set` over the file.
//!
//! `configs/default.toml` is the manual: every setting with its default and a line about it. A resolved config is
//! written in the same form.

mod base;
mod check;
mod sections;
mod toml_error;

use std::io::Write;
use std::path::{Path, PathBuf};

use elapid::files::{self, atomic_write, limit};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use sections::{
    AInit, DataConfig, DtRank, Dtype, Family, Init, Mode, ModelConfig, OutputConfig, Rule, TaskConfig, TrainSettings,
};

use crate::Result;

/// `configs/default.toml`: every setting, its default, what it is.
pub const MANUAL: &str = include_str!("../../../configs/default.toml");

/// What is wrong with a setting, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}{}: {}{what}; {fix}",
    .line.map(|line| format!(":{line}")).unwrap_or_default(),
    if .field.is_empty() { String::new() } else { format!("`{}`: ", .field) },
)]
pub struct ConfigError {
    /// The file, or `--set` with its argument.
    pub file: String,
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The setting with its section, `train.lr`; empty if the text is no TOML.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// All settings of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// What is trained.
    pub model: ModelConfig,
    /// On what.
    pub data: DataConfig,
    /// On which task instead of text.
    pub task: TaskConfig,
    /// How.
    pub train: TrainSettings,
    /// Where the results go.
    pub output: OutputConfig,
}

impl TrainConfig {
    /// Reads a config file; what it does not say is as in [`MANUAL`].
    ///
    /// Values are checked by [`validate`](Self::validate), after all overrides.
    ///
    /// # Errors
    /// If the file is unreadable, is not TOML, or has an unknown setting or a value of the wrong kind: with file, line,
    /// setting and fix.
    pub fn load(path: &Path) -> Result<Self> {
        let text = files::read_text(path, limit::CONFIG)?;
        Ok(Self::parse(&text, &path.display().to_string())?)
    }

    /// Reads a config from text; `file` is the name that errors give.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| toml_error::explain(&error, text, file))
    }

    /// Overrides one setting: `train.lr=1e-3`. The value is TOML; text needs no quotes.
    ///
    /// # Errors
    /// If there is no such setting (the error names the nearest) or the value is of the wrong kind. The config is then
    /// as it was.
    pub fn apply_override(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let wrong = |field: &str, what: String, fix: String| ConfigError {
            file: format!("--set {assignment}"),
            line: None,
            field: field.to_owned(),
            what,
            fix,
        };
        let Some((field, raw)) = assignment.split_once('=') else {
            return Err(wrong("", "there is no `=` in it".into(), "write it as section.setting=value".into()));
        };
        let (field, raw) = (field.trim(), raw.trim());
        self.check_integers(&format!("--set {assignment}"))?;
        let mut table = self.table();
        let place = match field.split_once('.') {
            Some((section, key)) => table.get_mut(section).and_then(|section| section.get_mut(key)),
            None => None,
        };
        let Some(place) = place.filter(|value| !value.is_table()) else {
            let fix = format!("did you mean `{}`?", toml_error::nearest(field, &fields()).unwrap_or("train.lr"));
            return Err(wrong(field, "there is no such setting".into(), fix));
        };
        let parsed = format!("value = {raw}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let was = std::mem::replace(place, parsed.unwrap_or_else(|| Value::String(raw.to_owned())));
        *self = table.try_into().map_err(|error: toml::de::Error| {
            let what = error.message().lines().next().unwrap_or_default().to_owned();
            wrong(field, what, format!("give a value like {was}"))
        })?;
        Ok(())
    }

    /// The settings in which this differs from another config, as [`apply_override`](Self::apply_override) takes them.
    ///
    /// # Errors
    /// If TOML cannot say one of them.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>, ConfigError> {
        [self, other].into_iter().try_for_each(|config| config.check_integers("config"))?;
        let (ours, theirs) = (self.table(), other.table());
        let place = |table: &Table, field: &str| {
            let (section, key) = field.split_once('.')?;
            table.get(section)?.get(key).cloned()
        };
        let difference = |field: String| {
            let value = place(&ours, &field)?;
            (place(&theirs, &field).as_ref() != Some(&value)).then(|| format!("{field}={value}"))
        };
        Ok(fields().into_iter().filter_map(difference).collect())
    }

    /// The resolved config, with a comment about every setting.
    ///
    /// # Errors
    /// If TOML cannot say a setting.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        self.check_integers("config")?;
        let table = self.table();
        let mut section = String::new();
        let mut text = String::new();
        for line in MANUAL.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                name.clone_into(&mut section);
            }
            let key = line.split_once(" = ").map(|(key, _)| key).filter(|_| !line.starts_with('#'));
            match key.and_then(|key| Some((key, table.get(&section)?.get(key)?))) {
                Some((key, value)) => text += &format!("{key} = {value}\n"),
                None => text += &format!("{line}\n"),
            }
        }
        Ok(text)
    }

    /// Writes `config.toml` into a directory and gives its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        let (path, text) = (dir.join("config.toml"), self.to_toml()?);
        atomic_write(&path, |w| w.write_all(text.as_bytes()))?;
        Ok(path)
    }

    fn table(&self) -> Table {
        // Structs of numbers, text and lists of them, their integers checked: TOML can say all of it.
        Table::try_from(self).unwrap_or_default()
    }
}

/// Every setting with its section.
fn fields() -> Vec<String> {
    let table = TrainConfig::default().table();
    let section = |(section, value): (&String, &Value)| -> Vec<String> {
        value.as_table().into_iter().flat_map(Table::keys).map(|key| format!("{section}.{key}")).collect()
    };
    table.iter().flat_map(section).collect()
}

#[cfg(test)]
mod tests;
