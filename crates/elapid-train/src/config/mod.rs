//! The settings of a training run: a TOML file overrides the defaults, `--set` overrides the file.
//!
//! `configs/default.toml` is the manual: every setting with its default and a comment. A resolved config is written in the
//! same form.

mod base;
mod check;
mod error;
mod overrides;
mod sections;
mod toml_error;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use elapid::files::{self, atomic_write, limit};
use elapid::layers::{KINDS, LayerConfig};
use elapid::settings::{self, Problem, Settings, commented, nearest};
use toml::de::DeTable;
use toml::{Table, Value};

pub use sections::{DataConfig, Dtype, Mode, ModelConfig, OutputConfig, ParamGroup, Paths, TaskConfig, TrainSettings};

use crate::Result;

pub use error::ConfigError;

/// `configs/default.toml`: every setting with its default and a comment.
pub const MANUAL: &str = include_str!("../../configs/default.toml");

/// The first lines of a config file that elapid writes.
const HEADER: &str = "\
# Every setting of a training run with its default: a byte-level Mamba of 1.8 million parameters on the text inside the
# binary. A config file needs only what differs; `--set train.lr=1e-3` overrides one value. Paths are relative to the
# directory that elapid runs in.

";

/// All settings of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainConfig {
    /// The model.
    pub model: ModelConfig,
    /// The data.
    pub data: DataConfig,
    /// The task, instead of text.
    pub task: TaskConfig,
    /// The training.
    pub train: TrainSettings,
    /// The output.
    pub output: OutputConfig,
}

impl TrainConfig {
    /// Reads a config file; settings that it leaves out are as in [`MANUAL`].
    ///
    /// Values are checked by [`validate`](Self::validate), after all overrides.
    ///
    /// # Errors
    /// If the file is unreadable, is not TOML, or has an unknown setting or a value of the wrong type; the error has file,
    /// line, setting and fix.
    pub fn load(path: &Path) -> Result<Self> {
        let text = files::read_text(path, limit::CONFIG)?;
        Ok(Self::parse(&text, &path.display().to_string())?)
    }

    /// Reads a config from text; errors give `file` as its name.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| toml_error::explain(&error, text, file))?;
        Self::read(table.into_inner()).map_err(|problem| {
            let line = |span: std::ops::Range<usize>| {
                text.as_bytes()[..span.start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
            };
            let Problem { field, span, what, fix } = problem;
            ConfigError { file: file.to_owned(), line: span.map(line), field, what, fix }
        })
    }

    fn read(sections: DeTable<'_>) -> Result<Self, Problem> {
        let mut config = Self::default();
        let mut model = None;
        for (name, value) in sections {
            match name.get_ref().as_ref() {
                "model" => model = Some(value),
                "data" => config.data = settings::read("data", value)?,
                "task" => config.task = settings::read("task", value)?,
                "train" => config.train = settings::read("train", value)?,
                "output" => config.output = settings::read("output", value)?,
                other => {
                    let what = "there is no such setting".to_owned();
                    let fix = "sections are [model], [data], [task], [train] and [output]".to_owned();
                    return Err(Problem { field: other.to_owned(), span: Some(name.span()), what, fix });
                }
            }
        }
        // Last: a kind of layer that does not exist is reported when nothing else is wrong.
        if let Some(model) = model {
            config.model = ModelConfig::read(model)?;
        }
        Ok(config)
    }

    /// Overrides one setting: `train.lr=1e-3`, `model.layer.local.window=128`. The value is TOML; text needs no quotes.
    /// Setting a layer's `kind`, `model.layers` or `model.ffn` also removes the settings that no longer apply.
    ///
    /// # Errors
    /// If there is no such setting (the error names the nearest) or the value is of the wrong type. The config is then
    /// unchanged.
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
        let mut tree = self.tree();
        let parsed = format!("value = {raw}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let value = parsed.unwrap_or_else(|| Value::String(raw.to_owned()));
        let Some(was) = overrides::set(&mut tree, field, value) else {
            let names: Vec<String> = self.settings().into_iter().map(|(name, _)| name).collect();
            let fix = format!("did you mean `{}`?", nearest(field, &names).unwrap_or("train.lr"));
            return Err(wrong(field, "there is no such setting".into(), fix));
        };
        let text = toml::to_string(&tree).unwrap_or_default();
        let read = DeTable::parse(&text).ok().map(|table| Self::read(table.into_inner()));
        *self = read.unwrap_or_else(|| Ok(self.clone())).map_err(|problem| {
            let Problem { field, what, fix, .. } = problem;
            let fix = was.filter(|_| what.starts_with("invalid")).map_or(fix, |was| format!("give a value like {was}"));
            wrong(&field, what, fix)
        })?;
        Ok(())
    }

    /// The settings that differ from another config, in the form that [`apply_override`](Self::apply_override) takes.
    ///
    /// # Errors
    /// If TOML cannot express one of them.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>, ConfigError> {
        [self, other].into_iter().try_for_each(|config| config.check_integers("config"))?;
        let ours = self.settings();
        let text = |(name, value): &(String, String)| format!("{name}={value}");
        // With the same layers in it, the other has their defaults, which need not be said.
        let mut base = other.clone();
        let mut said = Vec::new();
        for layers in ours.iter().filter(|(name, _)| ["model.layers", "model.ffn"].contains(&name.as_str())) {
            if !base.settings().contains(layers) && base.apply_override(&text(layers)).is_ok() {
                said.push(text(layers));
            }
        }
        let theirs: HashMap<String, String> = base.settings().into_iter().collect();
        said.extend(ours.iter().filter(|(name, value)| theirs.get(name) != Some(value)).map(text));
        Ok(said)
    }

    /// The resolved config, with a comment on every setting.
    ///
    /// # Errors
    /// If TOML cannot express a setting.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        self.check_integers("config")?;
        Ok(self.text())
    }

    /// [`to_toml`](Self::to_toml) of the defaults, with the settings of the other kinds of layers as comments. [`MANUAL`]
    /// must equal this.
    pub fn manual() -> String {
        let config = Self::default();
        let mut text = config.text();
        let others = KINDS.iter().filter(|kind| !config.model.stack.named.contains_key(**kind));
        for kind in others.filter_map(|kind| LayerConfig::of(kind)) {
            let settings = commented(kind.fields(), &kind.values());
            text += &format!("\n# A layer of kind {0}, if [model] names it:\n# [model.layer.{0}]\n", kind.kind());
            text += &settings.lines().map(|line| format!("# {line}\n")).collect::<String>();
        }
        text
    }

    fn text(&self) -> String {
        let section = |name: &str, fields: &[settings::Field], values: &[String]| {
            format!("\n[{name}]\n{}", commented(fields, values))
        };
        [
            HEADER.to_owned(),
            self.model.to_toml(),
            section("data", DataConfig::FIELDS, &self.data.values()),
            section("task", TaskConfig::FIELDS, &self.task.values()),
            section("train", TrainSettings::FIELDS, &self.train.values()),
            section("output", OutputConfig::FIELDS, &self.output.values()),
        ]
        .concat()
    }

    /// Every setting with its section, and its value.
    fn settings(&self) -> Vec<(String, String)> {
        let section = |name: &str, fields: &[settings::Field], values: Vec<String>| -> Vec<(String, String)> {
            fields.iter().map(|field| format!("{name}.{}", field.name)).zip(values).collect()
        };
        let model = self.model.settings().into_iter().map(|(name, value)| (format!("model.{name}"), value)).collect();
        [
            model,
            section("data", DataConfig::FIELDS, self.data.values()),
            section("task", TaskConfig::FIELDS, self.task.values()),
            section("train", TrainSettings::FIELDS, self.train.values()),
            section("output", OutputConfig::FIELDS, self.output.values()),
        ]
        .concat()
    }

    /// The config as a table.
    fn tree(&self) -> Table {
        // `text` writes valid TOML, as its integers are checked.
        self.text().parse().unwrap_or_default()
    }

    /// Writes `config.toml` into a directory and returns its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        let (path, text) = (dir.join("config.toml"), self.to_toml()?);
        atomic_write(&path, |w| w.write_all(text.as_bytes()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests;
