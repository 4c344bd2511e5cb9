//! Beginning from a model that is there: its settings take the place of the config's.

use elapid::config as model;
use toml::{Table, Value};

use super::{AInit, ConfigError, DtRank, Family, Init, ModelConfig, Rule, TrainConfig};
use crate::tasks::Kind;

/// Settings that weights depend on. The others say how new weights are drawn.
const SIZES: [&str; 14] = [
    "family",
    "d_model",
    "n_layer",
    "d_state",
    "d_conv",
    "expand",
    "dt_rank",
    "selective",
    "gate",
    "conv_bias",
    "proj_bias",
    "tie_embeddings",
    "norm_eps",
    "discretisation",
];

impl ModelConfig {
    /// The settings of a model, but for its vocabulary.
    pub(crate) fn of(config: &model::ModelConfig) -> Self {
        use elapid_kernels::selective_scan::Discretisation as D;
        let model::MixerConfig::Mamba1(mixer) = &config.mixer;
        Self {
            from: String::new(),
            family: Family::Mamba1,
            d_model: config.d_model,
            n_layer: config.n_layer,
            d_state: mixer.d_state,
            d_conv: mixer.d_conv,
            expand: mixer.expand,
            dt_rank: match mixer.dt_rank {
                rank if rank == config.d_model.div_ceil(16) => DtRank::Auto,
                rank => DtRank::Rank(rank),
            },
            selective: mixer.selective.names().into_iter().map(str::to_owned).collect(),
            a_init: match mixer.a_init {
                model::AInit::Arange => AInit::Arange,
                model::AInit::Half => AInit::Half,
                model::AInit::ExpNormal => AInit::ExpNormal,
            },
            gate: mixer.gate,
            conv_bias: mixer.conv_bias,
            proj_bias: mixer.proj_bias,
            tie_embeddings: config.tie_embeddings,
            pad_vocab_multiple: config.pad_vocab_size_multiple,
            norm_eps: decimal(config.norm_eps),
            dt_min: decimal(mixer.dt_min),
            dt_max: decimal(mixer.dt_max),
            dt_init_floor: decimal(mixer.dt_init_floor),
            dt_scale: decimal(mixer.dt_scale),
            dt_init: match mixer.dt_init {
                model::DtInit::Random => Init::Random,
                model::DtInit::Constant => Init::Constant,
            },
            discretisation: match mixer.rule {
                D::ExpEuler => Rule::ExpEuler,
                D::Zoh => Rule::Zoh,
                D::Bilinear => Rule::Bilinear,
            },
            initializer_range: decimal(config.initializer_range),
            rescale_prenorm_residual: config.rescale_prenorm_residual,
        }
    }

    /// The same in the form that [`of`](Self::of) gives.
    pub(crate) fn normal(&self) -> Self {
        Self::of(&self.with_any_vocabulary())
    }

    /// Settings that weights depend on and that differ: their names, and both values.
    pub(crate) fn differences(&self, other: &Self) -> Vec<(String, Value, Value)> {
        let table = |config: &Self| Table::try_from(config).unwrap_or_default();
        let (ours, theirs) = (table(self), table(other));
        let both = SIZES.iter().filter_map(|key| Some((format!("model.{key}"), ours.get(*key)?, theirs.get(*key)?)));
        both.filter(|(_, a, b)| a != b).map(|(key, a, b)| (key, a.clone(), b.clone())).collect()
    }
}

impl TrainConfig {
    /// Takes the settings of the model that the run begins from, so that the config says what is trained.
    ///
    /// # Errors
    /// If a setting was given that is another one in that model.
    pub(crate) fn take_settings_of(&mut self, base: &model::ModelConfig, file: &str) -> Result<(), ConfigError> {
        let theirs = ModelConfig::of(base);
        let ours = self.model.normal();
        for (field, here, there) in ours.differences(&theirs) {
            // What is as the defaults have it was not given.
            let given =
                |default: &ModelConfig| ours.differences(&default.normal()).iter().any(|(key, ..)| *key == field);
            if given(&ModelConfig::default()) && given(&self.defaults()?.model) {
                return Err(ConfigError {
                    file: file.to_owned(),
                    line: None,
                    field,
                    what: format!(
                        "it is {there} in {}, whose weights the run begins from, and was set to {here}",
                        self.model.from
                    ),
                    fix: "leave it out, or begin from another model".into(),
                });
            }
        }
        self.model = ModelConfig { from: std::mem::take(&mut self.model.from), ..theirs };
        Ok(())
    }

    /// The defaults: of the task, if there is one.
    fn defaults(&self) -> Result<Self, ConfigError> {
        if self.task.is_text() {
            return Ok(Self::default());
        }
        let kind = Kind::find(&self.task.name)?;
        Self::parse(kind.settings, kind.name)
    }
}

/// The shortest decimal that is this f32.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
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
        // Through the file of a model too.
        let (read, _) = model::ModelConfig::parse(&base.to_hf_json().to_string(), "config.json").unwrap();
        assert_eq!(ModelConfig::of(&read), config.model);
        assert_eq!(config.model.differences(&ModelConfig::default()).len(), 6);
        let auto = TrainConfig::default();
        assert_eq!(auto.model.normal(), auto.model);
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
        // How weights are drawn makes no difference.
        wanted(&["model.dt_min=0.01", "model.d_model=256"]).unwrap();
        let error = wanted(&["model.from=x", "model.n_layer=9"]).unwrap_err().to_string();
        assert!(error.contains("`model.n_layer`: it is 4 in x") && error.contains("was set to 9"), "{error}");
        // The paper's settings of a task were not given either.
        let kind = Kind::find("induction-heads").unwrap();
        let mut task = TrainConfig::parse(kind.settings, kind.name).unwrap();
        task.task.name = kind.name.into();
        assert_ne!(task.model.d_model, 256);
        task.take_settings_of(&base, "the command line").unwrap();
        assert_eq!(task.model.d_model, 256);
    }
}
