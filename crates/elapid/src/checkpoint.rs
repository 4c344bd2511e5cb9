//! Weights on the disk, in the layout of Hugging Face: `config.json` beside `model.safetensors`, or beside shards and
//! `model.safetensors.index.json`.
//!
//! Tensors go by their Hugging Face names (`backbone.layers.0.mixer.in_proj.weight`); those of the original code are
//! translated. Files are hostile until parsed: nothing is allocated, indexed or believed before it was checked.

mod card;
mod header;
mod open;
mod save;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::config::{ConfigError, ModelConfig};
use crate::files::{FileError, Map};

pub use card::Card;
pub use safetensors::Dtype;
pub use save::{SaveDtype, SaveOptions, save};

type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// The embedding's name, and the one that the original code has for it.
const EMBEDDING: &str = "backbone.embeddings.weight";
const EMBEDDING_ORIGINAL: &str = "backbone.embedding.weight";
/// The head's name.
const HEAD: &str = "lm_head.weight";
/// The files of a checkpoint.
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file as a whole is wrong.
    #[error("{file}: wanted {wanted}, got {got}; {fix}")]
    Format {
        /// The file.
        file: String,
        /// What would do.
        wanted: String,
        /// What is there.
        got: String,
        /// What to do.
        fix: String,
    },
    /// A tensor is wrong.
    #[error("{file}: tensor `{tensor}`: wanted {wanted}, got {got}; {fix}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor, as the file names it.
        tensor: String,
        /// What would do.
        wanted: String,
        /// What is there.
        got: String,
        /// What to do.
        fix: String,
    },
}

impl CheckpointError {
    fn format(file: &str, wanted: impl ToString, got: impl ToString, fix: impl ToString) -> Self {
        let (wanted, got, fix) = (wanted.to_string(), got.to_string(), fix.to_string());
        CheckpointError::Format { file: file.into(), wanted, got, fix }
    }

    fn tensor(file: &str, tensor: &str, wanted: impl ToString, got: impl ToString, fix: impl ToString) -> Self {
        let (wanted, got, fix) = (wanted.to_string(), got.to_string(), fix.to_string());
        CheckpointError::Tensor { file: file.into(), tensor: tensor.into(), wanted, got, fix }
    }
}

/// A model's configuration and weights, the weights still on the disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// What the model is made of.
    pub config: ModelConfig,
    warnings: Vec<String>,
    files: Vec<Source>,
    tensors: BTreeMap<String, Entry>,
}

/// A safetensors file.
#[derive(Debug)]
struct Source {
    name: String,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Map),
    Static(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

/// Where a tensor lies. Its range is inside the file, and as long as its shape and type say.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens a directory: reads the configuration and the headers, maps the weights.
    ///
    /// # Errors
    /// If a file is missing, cut, or says what cannot be; the error names file and tensor.
    pub fn open(dir: &Path) -> Result<Self> {
        open::directory(dir)
    }

    /// A checkpoint in memory: the contents of `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(config_json: &str, safetensors: &'static [u8]) -> Result<Self> {
        let (config, warnings) = ModelConfig::parse(config_json, CONFIG)?;
        open::assemble(config, warnings, vec![Source { name: SINGLE.into(), bytes: Bytes::Static(safetensors) }])
    }

    /// The tensors' names, sorted. The head of a model whose head is its embedding is not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The type of a tensor's numbers in the file.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// A tensor's shape in the file.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// What was odd, but no error.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// A tensor as f32, row after row, from F32, F16, BF16 or F64 in the file.
    ///
    /// # Errors
    /// If there is none of this name, or its shape or type is another.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(CheckpointError::tensor(&self.file_names(), name, "to find it", "no such tensor", MISSING));
        };
        let source = &self.files[entry.file];
        if entry.shape != shape {
            let fix = "config.json and weights must be of one model";
            return Err(CheckpointError::tensor(
                &source.name,
                name,
                format_args!("shape {shape:?}"),
                format_args!("{:?}", entry.shape),
                fix,
            ));
        }
        let bytes = &source.bytes[entry.range.clone()];
        Ok(match entry.dtype {
            Dtype::F32 => decode(bytes, f32::from_le_bytes),
            Dtype::F16 => decode(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => decode(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => decode(bytes, |b| f64::from_le_bytes(b) as f32),
            other => {
                let wanted = "numbers of type F32, F16, BF16 or F64";
                return Err(CheckpointError::tensor(&source.name, name, wanted, other, "convert the checkpoint"));
            }
        })
    }

    /// Checks that the tensors are the ones that a model has.
    ///
    /// # Errors
    /// If any is missing or not expected; the error lists them.
    pub fn check_complete(&self, expected: &[String]) -> Result<()> {
        let wanted: std::collections::BTreeSet<_> = expected.iter().map(String::as_str).collect();
        let missing: Vec<_> = wanted.iter().copied().filter(|name| !self.contains(name)).collect();
        let extra: Vec<_> = self.names().filter(|name| !wanted.contains(name)).collect();
        let problem = match (missing.is_empty(), extra.is_empty()) {
            (true, true) => return Ok(()),
            (false, true) => format!("without {}", list(&missing)),
            (true, false) => format!("with {} besides", list(&extra)),
            (false, false) => format!("without {}, with {} besides", list(&missing), list(&extra)),
        };
        let wanted = format!("the {} tensors of the model that {CONFIG} describes", wanted.len());
        let got = format!("{} tensors, {problem}", self.tensors.len());
        Err(CheckpointError::format(&self.file_names(), wanted, got, MISSING))
    }

    fn file_names(&self) -> String {
        match self.files.as_slice() {
            [one] => one.name.clone(),
            _ => INDEX.into(),
        }
    }

    /// The bytes of a tensor.
    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file].bytes[entry.range.clone()]
    }
}

const MISSING: &str = "config.json and weights must be of one model";

fn decode<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
}

/// The first few names, and how many more there are.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests;
