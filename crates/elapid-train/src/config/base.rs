//! Starting from an existing model: its settings replace those of the config.

use std::collections::HashMap;

use elapid::config as model;

use super::{ConfigError, ModelConfig, TrainConfig};
use crate::tasks::Kind;

impl ModelConfig {
    /// The settings of a model except its vocabulary.
    pub(crate) fn of(config: &model::ModelConfig) -> Self {
        Self { from: String::new(), stack: config.stack.clone() }
    }

    /// The settings that differ in another model, with both values. Settings that matter in training alone do not
    /// count.
    pub(crate) fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let theirs = other.values();
        let differs = |(name, init, ours): (String, bool, String)| {
            let there = theirs.get(&name).cloned().unwrap_or_else(|| "nothing".into());
            (!init && there != ours).then(|| (format!("model.{name}"), ours, there))
        };
        self.stack.settings().into_iter().filter_map(differs).collect()
    }

    fn values(&self) -> HashMap<String, String> {
        self.stack.settings().into_iter().map(|(name, _, value)| (name, value)).collect()
    }
}

impl TrainConfig {
    /// Takes over the settings of the model that the run starts from, so that the config describes what is trained. Rates of
    /// dropout that were given stay.
    ///
    /// # Errors
    /// If a setting was given that contradicts that model.
    pub(crate) fn take_settings_of(&mut self, base: &model::ModelConfig, file: &str) -> Result<(), ConfigError> {
        let theirs = ModelConfig::of(base);
        let defaults = [Self::default().model.values(), self.defaults()?.model.values()];
        for (field, here, there) in self.model.differences(&theirs) {
            // A setting equal to its default counts as not given.
            let name = field.strip_prefix("model.").unwrap_or(&field);
            if defaults.iter().all(|default| default.get(name) != Some(&here)) {
                return Err(ConfigError {
                    file: file.to_owned(),
                    line: None,
                    field,
                    what: format!(
                        "it is {there} in {}, whose weights the run begins from, and was set to {here}",
                        self.model.from
                    ),
                    fix: "leave it out, or start from another model".into(),
                });
            }
        }
        let own = std::mem::replace(&mut self.model, theirs);
        self.model.stack.model.take_rates_of(&own.stack.model);
        self.model.from = own.from;
        Ok(())
    }

    /// The defaults: those of the task, if there is one.
    fn defaults(&self) -> Result<Self, ConfigError> {
        if self.task.is_text() {
            return Ok(Self::default());
        }
        let kind = Kind::find(&self.task.name)?;
        Self::parse(kind.settings, kind.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_from_a_model() {
        let mut config = TrainConfig::default();
        let all = [
            "model.d_model=40",
            "model.selective=[\"C\"]",
            "model.a_init=half",
            "model.gate=false",
            "model.norm_eps=1e-6",
            "model.dt_rank=5",
            "model.discretisation=zoh",
            "model.dt_init=constant",
            "model.pad_vocab_multiple=1",
        ];
        all.iter().for_each(|one| config.apply_override(one).unwrap());
        let base = config.model.resolve_for(100).unwrap();
        assert_eq!(ModelConfig::of(&base), config.model);
        // Also when read back from a model's file.
        let (read, _) = model::ModelConfig::parse(&base.to_hf_json().to_string(), "config.json").unwrap();
        assert_eq!(ModelConfig::of(&read), config.model);
        assert_eq!(config.model.differences(&ModelConfig::default()).len(), 6);
    }

    #[test]
    fn given_settings_must_be_those_of_the_model() {
        let base = TrainConfig::default().model.resolve_for(100).unwrap();
        let wanted = |set: &[&str]| {
            let mut config = TrainConfig::default();
            set.iter().for_each(|one| config.apply_override(one).unwrap());
            config.take_settings_of(&base, "the command line").map(|()| config.model)
        };
        assert_eq!(wanted(&["model.from=x"]).unwrap(), ModelConfig { from: "x".into(), ..ModelConfig::default() });
        // How weights are drawn does not matter.
        wanted(&["model.dt_min=0.01", "model.d_model=256"]).unwrap();
        // What is dropped is a matter of this run.
        assert_eq!(wanted(&["model.dropout=0.25"]).unwrap().stack.model.dropout, 0.25);
        let error = wanted(&["model.from=x", "model.n_layer=9"]).unwrap_err().to_string();
        assert!(error.contains("`model.n_layer`: it is 4 in x") && error.contains("was set to 9"), "{error}");
        // The paper's settings of a task count as not given, too.
        let kind = Kind::find("induction-heads").unwrap();
        let mut task = TrainConfig::parse(kind.settings, kind.name).unwrap();
        task.task.name = kind.name.into();
        assert_ne!(task.model.stack.model.d_model.get(), 256);
        task.take_settings_of(&base, "the command line").unwrap();
        assert_eq!(task.model.stack.model.d_model.get(), 256);
    }
}
