//! What a model is made of: the sizes and choices that `config.json` records.
//!
//! Two layouts are read, that of Hugging Face (`MambaForCausalLM`) and that of the original code (`state-spaces`); the
//! first is written. What only elapid knows goes under the key `"elapid"`, which `transformers` carries along unread.

mod fields;
mod read;
mod write;

use elapid_kernels::selective_scan::Discretisation;

pub(crate) use read::parse_json;

/// The vocabulary of the GPT-NeoX tokenizer, with which the published models were trained.
const NEOX_VOCAB: usize = 50277;

/// More layers than any model has: a limit on what a file can make the program do.
const MAX_LAYERS: usize = 1 << 16;

/// A language model: embedding, `n_layer` times norm and mixer with a residual, norm, head.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Token ids that mean something. The embedding may have more rows: see [`ModelConfig::padded_vocab_size`].
    pub vocab_size: usize,
    /// The embedding's rows are rounded up to a multiple of this; 1 is no padding.
    pub pad_vocab_size_multiple: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// What mixes along the sequence in every block.
    pub mixer: MixerConfig,
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f32,
    /// Whether the head is the embedding transposed.
    pub tie_embeddings: bool,
    /// Whether the residual stream stays in f32 when the weights do not.
    pub residual_in_fp32: bool,
    /// Standard deviation of the embedding at initialisation.
    pub initializer_range: f32,
    /// Whether initialisation divides the projections into the residual stream by the root of their number.
    pub rescale_prenorm_residual: bool,
    /// The token that begins a document.
    pub bos_token_id: Option<u32>,
    /// The token that ends a document.
    pub eos_token_id: Option<u32>,
    /// The token that fills up a batch.
    pub pad_token_id: Option<u32>,
}

/// The sequence mixer of a block, by family.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerConfig {
    /// Mamba-1: the selective scan S6 with a diagonal state per channel.
    Mamba1(Mamba1Config),
}

/// The sizes and initial values of a Mamba-1 mixer.
#[derive(Debug, Clone, PartialEq)]
pub struct Mamba1Config {
    /// State numbers per channel.
    pub d_state: usize,
    /// Taps of the causal convolution, the current position among them.
    pub d_conv: usize,
    /// Channels per unit of `d_model`, unless [`Mamba1Config::d_inner`] says how many.
    pub expand: usize,
    /// Number of channels where it is not `expand * d_model`.
    pub d_inner: Option<usize>,
    /// Rank of the projection that makes the step sizes; 0 is none: they are constants, as without
    /// [`Selective::delta`].
    pub dt_rank: usize,
    /// What depends on the input.
    pub selective: Selective,
    /// How A begins.
    pub a_init: AInit,
    /// Whether the output of the scan is multiplied by silu(z), z a projection of the input: the Mamba block. Without,
    /// the block is projection, convolution, scan, projection.
    pub gate: bool,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the input and output projections have one.
    pub proj_bias: bool,
    /// Smallest step size at initialisation.
    pub dt_min: f32,
    /// Largest step size at initialisation.
    pub dt_max: f32,
    /// Step sizes drawn below this are raised to it.
    pub dt_init_floor: f32,
    /// Scale of the initial step-size projection, in units of `dt_rank^-1/2`.
    pub dt_scale: f32,
    /// How that projection begins.
    pub dt_init: DtInit,
    /// How the continuous system becomes a recurrence.
    pub rule: Discretisation,
}

/// Which of Δ, B and C are functions of the input; the others are parameters (Mamba, table 7; none: an LTI system).
///
/// A constant B or C is one vector `[n]` for all channels, as a selective one is at every position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selective {
    /// Δ, the step sizes.
    pub delta: bool,
    /// B, what enters the state.
    pub b: bool,
    /// C, what is read from it.
    pub c: bool,
}

impl Default for Selective {
    fn default() -> Self {
        Self { delta: true, b: true, c: true }
    }
}

impl Selective {
    /// The names of those that depend on the input, in the order Δ, B, C.
    pub fn names(self) -> Vec<&'static str> {
        let all = [("delta", self.delta), ("B", self.b), ("C", self.c)];
        all.into_iter().filter(|(_, selective)| *selective).map(|(name, _)| name).collect()
    }

    /// What [`names`](Self::names) gives; none if a name is not one of `delta`, `B` and `C`.
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Option<Self> {
        let mut selective = Self { delta: false, b: false, c: false };
        for name in names {
            match name.as_ref() {
                "delta" => selective.delta = true,
                "B" => selective.b = true,
                "C" => selective.c = true,
                _ => return None,
            }
        }
        Some(selective)
    }
}

/// How A begins, the same in every channel but for the last (Mamba, table 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AInit {
    /// A_n = -(n + 1), as S4D-real.
    #[default]
    Arange,
    /// A_n = -1/2.
    Half,
    /// A_n = -exp(x), x normal.
    ExpNormal,
}

impl AInit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Arange, Self::Half, Self::ExpNormal];

    /// Its name in a config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arange => "arange",
            Self::Half => "half",
            Self::ExpNormal => "exp-normal",
        }
    }
}

/// How the weights of the step-size projection begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DtInit {
    /// Uniform in plus or minus `dt_scale * dt_rank^-1/2`.
    #[default]
    Random,
    /// All `dt_scale * dt_rank^-1/2`.
    Constant,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("{file}: wanted JSON, got {got}; {fix}")]
    Syntax {
        /// The file read.
        file: String,
        /// The parser's words, with line and column.
        got: String,
        /// What to do.
        fix: String,
    },
    /// A field has a value that cannot be.
    #[error("{file}: `{field}`: wanted {wanted}, got {got}; {fix}")]
    Field {
        /// The file read, or `model config` for one made in code.
        file: String,
        /// The field, as the file names it.
        field: String,
        /// What would do.
        wanted: String,
        /// What is there.
        got: String,
        /// What to do.
        fix: String,
    },
}

impl ConfigError {
    fn field(
        file: &str,
        field: &str,
        wanted: impl ToString,
        got: impl std::fmt::Display,
        fix: impl ToString,
    ) -> ConfigError {
        let mut got: String = got.to_string();
        if let Some((at, _)) = got.char_indices().nth(80) {
            got.truncate(at);
            got.push('…');
        }
        ConfigError::Field {
            file: file.into(),
            field: field.into(),
            wanted: wanted.to_string(),
            got,
            fix: fix.to_string(),
        }
    }

    /// The same error, about this file, which calls the field something else.
    fn in_file(self, file: &str, names: &[(&str, &str)]) -> ConfigError {
        let file = file.to_owned();
        match self {
            ConfigError::Syntax { got, fix, .. } => ConfigError::Syntax { file, got, fix },
            ConfigError::Field { field: ours, wanted, got, fix, .. } => {
                let field = names.iter().find(|(name, _)| *name == ours).map_or(ours.as_str(), |(_, there)| there);
                let fix = fix.replace(&format!("`{ours}`"), &format!("`{field}`"));
                ConfigError::Field { file, field: field.into(), wanted, got, fix }
            }
        }
    }
}

impl Default for ModelConfig {
    /// A model of bytes, small enough to train on a laptop: 4 layers of width 128.
    fn default() -> Self {
        Self {
            vocab_size: 256,
            pad_vocab_size_multiple: 1,
            d_model: 128,
            n_layer: 4,
            mixer: MixerConfig::Mamba1(Mamba1Config::new(128)),
            norm_eps: 1e-5,
            tie_embeddings: true,
            residual_in_fp32: true,
            initializer_range: 0.02,
            rescale_prenorm_residual: true,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        }
    }
}

impl Mamba1Config {
    /// The published choices for this width: state 16, convolution 4, twice the channels, rank `ceil(d_model / 16)`.
    pub fn new(d_model: usize) -> Self {
        Self {
            d_state: 16,
            d_conv: 4,
            expand: 2,
            d_inner: None,
            dt_rank: d_model.div_ceil(16),
            selective: Selective::default(),
            a_init: AInit::Arange,
            gate: true,
            conv_bias: true,
            proj_bias: false,
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init_floor: 1e-4,
            dt_scale: 1.0,
            dt_init: DtInit::Random,
            rule: Discretisation::ExpEuler,
        }
    }

    /// Number of channels.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.d_inner.unwrap_or_else(|| self.expand.saturating_mul(d_model))
    }

    /// Rank of the projection that makes the step sizes; 0 if they are constants.
    pub fn delta_rank(&self) -> usize {
        if self.selective.delta { self.dt_rank } else { 0 }
    }
}

impl ModelConfig {
    /// A Mamba-1 model by name: a published size (`130m`, `370m`, `790m`, `1.4b`, `2.8b`, with or without `mamba-`
    /// before it), or `<d_model>x<n_layer>` (`256x8`), which has a vocabulary of 256 bytes until that is set.
    ///
    /// # Errors
    /// If the name is neither, or names a size that cannot be.
    pub fn mamba1(name: &str) -> Result<Self, ConfigError> {
        const SIZES: [(&str, usize, usize); 5] =
            [("130m", 768, 24), ("370m", 1024, 48), ("790m", 1536, 48), ("1.4b", 2048, 48), ("2.8b", 2560, 64)];
        let lower = name.to_ascii_lowercase();
        let short = lower.strip_prefix("mamba-").unwrap_or(&lower);
        let published = SIZES.iter().find(|size| size.0 == short);
        let custom = || {
            let (d_model, n_layer) = short.split_once('x')?;
            Some((d_model.parse().ok()?, n_layer.parse().ok()?))
        };
        let Some((d_model, n_layer)) = published.map(|&(_, d_model, n_layer)| (d_model, n_layer)).or_else(custom)
        else {
            return Err(ConfigError::field(
                "model config",
                "size",
                "130m, 370m, 790m, 1.4b, 2.8b or <d_model>x<n_layer>",
                format_args!("`{name}`"),
                "give a published size, or a width and a number of layers such as 256x8",
            ));
        };
        let mut config =
            Self { d_model, n_layer, mixer: MixerConfig::Mamba1(Mamba1Config::new(d_model)), ..Self::default() };
        if published.is_some() {
            (config.vocab_size, config.pad_vocab_size_multiple) = (NEOX_VOCAB, 8);
            (config.bos_token_id, config.eos_token_id, config.pad_token_id) = (Some(0), Some(0), Some(0));
        }
        config.validate()?;
        Ok(config)
    }

    /// Reads `config.json`, of Hugging Face or of the original code, and says what in it was not understood. `file` is
    /// the name that errors give.
    ///
    /// # Errors
    /// If the text is not JSON, a value has the wrong kind or cannot be, or the model is of a kind that elapid has not.
    pub fn parse(text: &str, file: &str) -> Result<(Self, Vec<String>), ConfigError> {
        read::parse(text, file)
    }

    /// The configuration as Hugging Face's `config.json`; [`ModelConfig::parse`] gives the same one back.
    ///
    /// `transformers` computes the number of channels as `expand * hidden_size` and knows one rule of discretisation:
    /// it cannot load a model with another number of channels, and computes something else with another rule.
    pub fn to_hf_json(&self) -> serde_json::Value {
        write::to_hf_json(self)
    }

    /// Rows of the embedding: the vocabulary rounded up.
    pub fn padded_vocab_size(&self) -> usize {
        self.vocab_size.checked_next_multiple_of(self.pad_vocab_size_multiple).unwrap_or(self.vocab_size)
    }

    /// Number of parameters, a tied head not counted twice; `None` if the number overflows.
    pub fn parameter_count(&self) -> Option<u64> {
        let d = self.d_model as u64;
        let embedding = (self.padded_vocab_size() as u64).checked_mul(d)?;
        let head = if self.tie_embeddings { 0 } else { embedding };
        let layer = self.mixer.parameter_count(self.d_model)?.checked_add(d)?;
        layer.checked_mul(self.n_layer as u64)?.checked_add(embedding)?.checked_add(head)?.checked_add(d)
    }

    /// Checks that such a model can exist.
    ///
    /// # Errors
    /// The first field whose value cannot be: a size of 0, a range upside down, a number that is not finite, more
    /// parameters than memory has addresses.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = Check;
        check.size("vocab_size", self.vocab_size)?;
        check.size("pad_vocab_size_multiple", self.pad_vocab_size_multiple)?;
        check.size("d_model", self.d_model)?;
        check.size("n_layer", self.n_layer)?;
        check.that(self.n_layer <= MAX_LAYERS, "n_layer", format_args!("at most {MAX_LAYERS}"), self.n_layer)?;
        let padded = self.vocab_size.checked_next_multiple_of(self.pad_vocab_size_multiple);
        let rounded = format!("a number that can be rounded up to a multiple of {}", self.pad_vocab_size_multiple);
        check.that(padded.is_some(), "vocab_size", rounded, self.vocab_size)?;
        check.positive("norm_eps", self.norm_eps)?;
        check.not_negative("initializer_range", self.initializer_range)?;
        let ids = [
            ("bos_token_id", self.bos_token_id),
            ("eos_token_id", self.eos_token_id),
            ("pad_token_id", self.pad_token_id),
        ];
        for (field, id) in ids {
            let Some(id) = id else { continue };
            if id as usize >= self.padded_vocab_size() {
                let wanted = format!("an id below {}", self.padded_vocab_size());
                let fix = "give the token's id, or null if the model has no such token";
                return Err(ConfigError::field("model config", field, wanted, id, fix));
            }
        }
        match &self.mixer {
            MixerConfig::Mamba1(mixer) => mixer.validate(self.d_model)?,
        }
        let bytes = self.parameter_count().and_then(|n| n.checked_mul(4));
        check.that(
            bytes.is_some_and(|n| isize::try_from(n).is_ok()),
            "d_model",
            "sizes whose product is a number of bytes that can be addressed",
            format_args!("vocabulary {} x width {} x {} layers", self.padded_vocab_size(), self.d_model, self.n_layer),
        )
    }
}

impl MixerConfig {
    /// Number of parameters of one mixer; `None` if the number overflows.
    pub fn parameter_count(&self, d_model: usize) -> Option<u64> {
        match self {
            MixerConfig::Mamba1(c) => {
                let inner = c.d_inner(d_model) as u64;
                let (d, n, k, r) = (d_model as u64, c.d_state as u64, c.d_conv as u64, c.delta_rank() as u64);
                // Per channel: in_proj's rows and out_proj's column, convolution, x_proj's column, dt_proj's row
                // with its bias, A_log, D, and the biases there may be.
                let selective = u64::from(c.selective.b) + u64::from(c.selective.c);
                let constants = n.checked_mul(2 - selective)?;
                let states = n.checked_mul(1 + selective)?;
                let rows = 1 + u64::from(c.gate);
                let biases = if c.proj_bias { rows } else { 0 } + u64::from(c.conv_bias) + 2;
                let channel = [states, k, r.checked_mul(2)?, biases]
                    .into_iter()
                    .try_fold(d.checked_mul(1 + rows)?, |sum, part| sum.checked_add(part))?;
                let out_bias = if c.proj_bias { d } else { 0 };
                inner.checked_mul(channel)?.checked_add(out_bias)?.checked_add(constants)
            }
        }
    }
}

impl Mamba1Config {
    fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        let check = Check;
        check.size("d_state", self.d_state)?;
        check.size("d_conv", self.d_conv)?;
        check.size("expand", self.expand)?;
        if let Some(d_inner) = self.d_inner {
            check.size("d_inner", d_inner)?;
        }
        check.that(
            self.d_inner.is_some() || self.expand.checked_mul(d_model).is_some(),
            "expand",
            format_args!("a number of channels per unit of {d_model}"),
            self.expand,
        )?;
        check.positive("dt_min", self.dt_min)?;
        check.positive("dt_max", self.dt_max)?;
        check.that(
            self.dt_min <= self.dt_max,
            "dt_min",
            format_args!("at most the largest step size, {}", self.dt_max),
            self.dt_min,
        )?;
        check.not_negative("dt_init_floor", self.dt_init_floor)?;
        check.positive("dt_scale", self.dt_scale)
    }
}

/// The checks of [`ModelConfig::validate`], each a line.
struct Check;

impl Check {
    fn that(
        &self,
        holds: bool,
        field: &str,
        wanted: impl std::fmt::Display,
        got: impl std::fmt::Display,
    ) -> Result<(), ConfigError> {
        let fix = || format!("set `{field}` to {wanted}");
        if holds { Ok(()) } else { Err(ConfigError::field("model config", field, &wanted, got, fix())) }
    }

    fn size(&self, field: &str, got: usize) -> Result<(), ConfigError> {
        self.that(got >= 1, field, "at least 1", got)
    }

    fn positive(&self, field: &str, got: f32) -> Result<(), ConfigError> {
        self.that(got.is_finite() && got > 0.0, field, "a finite number above 0", got)
    }

    fn not_negative(&self, field: &str, got: f32) -> Result<(), ConfigError> {
        self.that(got.is_finite() && got >= 0.0, field, "a finite number, not negative", got)
    }
}

#[cfg(test)]
mod tests;
