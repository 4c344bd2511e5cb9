//! The model that a command runs: the one inside the binary, or one in a directory.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use elapid::Layout;
use elapid::checkpoint::Checkpoint;
use elapid::tokenizer::{self, Tokenizer, TokenizerError};
use elapid::{DType, Device, LanguageModel, embedded};
use elapid_kernels::cuda;
use elapid_kernels::packed::Form;
use elapid_train::parallel::World;

use crate::failure::{self, wrong};
use crate::output::Output;
use crate::{ranks, trial};

/// The device and dtype of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
}

impl Place {
    /// Opens the device of that name. For one of several ranks, `auto` and `cuda` mean its own GPU.
    pub(crate) fn open(name: &str, dtype: Option<DType>, world: Option<&World>) -> Result<Self> {
        let device = match world.filter(|world| world.size > 1) {
            Some(world) if matches!(name, "auto" | "cuda") => {
                let found = cuda::count().map_err(|error| wrong(format!("{error}; or use --device cpu")))?;
                format!("cuda:{}", ranks::own_gpu(world, found)?).parse()?
            }
            _ => name.parse()?,
        };
        Self::new(device, dtype)
    }

    pub(crate) fn new(device: Device, dtype: Option<DType>) -> Result<Self> {
        let dtype = match (device, dtype) {
            (Device::Cpu, Some(DType::Bf16)) => {
                return Err(wrong("--dtype bf16 works on a GPU only; leave it out, or use --device cuda"));
            }
            (Device::Cpu, _) => DType::F32,
            (Device::Cuda(_), dtype) => dtype.unwrap_or(DType::Bf16),
        };
        Ok(Self { device, dtype })
    }
}

/// A model with its tokenizer.
pub(crate) struct Loaded {
    pub(crate) model: LanguageModel,
    /// None: then input and output are ids.
    pub(crate) tokenizer: Option<Tokenizer>,
    /// Why there is no tokenizer although its files are there.
    pub(crate) unusable: Option<String>,
    /// Its directory, or a name in its place.
    pub(crate) name: String,
    dir: Option<PathBuf>,
}

/// Which model.
#[derive(clap::Args)]
pub(crate) struct ModelArgument {
    /// Directory with config.json, model.safetensors and, for text, tokenizer.json [default: the model inside elapid]
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) weights: WeightsArgument,
}

/// Which form of its weights.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct WeightsArgument {
    /// Form of the weights on a CPU: f32, bf16, int8 or int4 [default: as in the file]
    #[arg(long = "weights", value_name = "FORM")]
    pub(crate) form: Option<Form>,
}

impl WeightsArgument {
    /// A model in that form.
    pub(crate) fn of(self, model: LanguageModel) -> Result<LanguageModel> {
        Ok(match self.form {
            Some(form) => model.with_weights(form)?,
            None => model,
        })
    }
}

impl ModelArgument {
    /// The model on a device, for use.
    pub(crate) fn load_on(&self, place: Place, output: Output) -> Result<Loaded> {
        let loaded = self.load(output)?;
        if place.device == Device::Cpu {
            return Ok(loaded);
        }
        if let Some(form) = loaded.model.form() {
            output.warn(format_args!("notice: weights stored as {form} are widened to {} on a GPU", place.dtype));
        }
        // A state file names the model that made it, by the parameters as stored.
        loaded.model.fingerprint()?;
        Ok(Loaded { model: loaded.model.to(place.device, place.dtype)?, ..loaded })
    }

    pub(crate) fn load(&self, output: Output) -> Result<Loaded> {
        let Some(dir) = &self.model else {
            let (model, tokenizer) = (embedded::model()?, Some(embedded::tokenizer()));
            let model = self.weights.of(model)?;
            let name = "the model inside elapid".into();
            return Ok(Loaded { model, tokenizer, unusable: None, name, dir: None });
        };
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.warnings().iter().for_each(|line| output.warn(format_args!("warning: {line}")));
        let model = LanguageModel::load_as(&checkpoint, self.weights.form)?;
        let (tokenizer, unusable) = match tokenizer(dir, output) {
            Ok(tokenizer) => (tokenizer, None),
            Err(error) => (None, Some(failure::message(&error))),
        };
        Ok(Loaded { model, tokenizer, unusable, name: dir.display().to_string(), dir: Some(dir.clone()) })
    }
}

/// The tokenizer of a model's directory, if it has one.
pub(crate) fn tokenizer(dir: &Path, output: Output) -> Result<Option<Tokenizer>> {
    trial::check(dir, output)?;
    match Tokenizer::open(dir) {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(TokenizerError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Loaded {
    /// The tokenizer, or an error if there is none.
    pub(crate) fn need_tokenizer(&self, what: &str) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| match &self.unusable {
            Some(error) => wrong(format!("{error} ({what} needs the tokenizer; token ids do not)")),
            None => {
                wrong(format!("{}: no tokenizer.json there, which {what} needs; add one, or give token ids", self.name))
            }
        })
    }

    /// The same model, whose decoders store the states of heads in a dtype.
    pub(crate) fn with_states_in(mut self, dtype: DType) -> Self {
        self.model = self.model.with_states_in(dtype);
        self
    }

    /// The same model, with no tokens before prompts and documents.
    pub(crate) fn without_bos(mut self) -> Result<Self> {
        self.tokenizer = self.tokenizer.map(|tokenizer| tokenizer.with_document_prefix([])).transpose()?;
        Ok(self)
    }

    /// The ids that end a text, from the files of the model and of its tokenizer.
    pub(crate) fn end_ids(&self) -> Result<Vec<u32>> {
        let stated = self.dir.as_deref().map(tokenizer::stated_end_ids).transpose()?.flatten();
        let mut ids = stated.unwrap_or_else(|| self.model.config().eos_token_id.into_iter().collect());
        ids.extend(self.tokenizer.as_ref().and_then(Tokenizer::eos));
        Ok(ids)
    }

    /// The error for a result that is not finite. It names the first layer that produces such a value over `tokens`, if one
    /// does. Weights that are not finite are refused when a model is loaded.
    pub(crate) fn not_finite(&self, what: &str, tokens: &[u32]) -> Result<anyhow::Error> {
        let layout = Layout::new(1, tokens.len());
        let found = self.model.first_non_finite(&layout, tokens, &self.model.zero_state(1)?)?;
        let found = found.map(|place| format!(", first in {place}")).unwrap_or_default();
        let fix = "the weights are too large to compute with: use an older checkpoint, or --dtype f32";
        Ok(anyhow!("{}: {what} not finite{found}; {fix}", self.name))
    }

    /// Checks ids before anything is computed from them.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let v = self.model.config().padded_vocab_size();
        match ids.iter().position(|&id| id as usize >= v) {
            None => Ok(()),
            Some(i) => Err(wrong(format!(
                "token {i} of the prompt has the id {}, and the vocabulary of {} ends at {}; use the model's own tokenizer",
                ids[i],
                self.name,
                v - 1
            ))),
        }
    }
}
