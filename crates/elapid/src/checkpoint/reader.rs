//! An open checkpoint: the locations of its tensors, and their values.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use elapid_kernels::packed::Form;
use safetensors::Dtype;

use super::error::{CheckpointError, Result};
use super::names;
use crate::config::ModelConfig;
use crate::files::RegularFile;
use crate::formats::Places;
use crate::formats::places::HEAD;
use crate::formats::stored::Stored;
use crate::params::Wanted;

/// The files of a checkpoint.
pub(super) const CONFIG: &str = "config.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A model's configuration and weights; the weights are still on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// What the model is made of.
    pub config: ModelConfig,
    pub(super) warnings: Vec<String>,
    /// Where elapid's tensors lie among those of the files.
    pub places: Places,
    pub(super) files: Vec<Source>,
    /// By the names that the format has for them.
    pub(super) tensors: BTreeMap<String, Entry>,
    /// Weights in a stored form, by elapid's own names.
    pub(super) packed: BTreeMap<String, (Form, Entry)>,
}

/// A safetensors file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) bytes: Bytes,
}

#[derive(Debug)]
pub(super) enum Bytes {
    /// Read on demand and not memory mapped: if another process truncated a mapped file, this process would be killed.
    File(RegularFile),
    Static(&'static [u8]),
}

impl Bytes {
    pub(super) fn len(&self) -> usize {
        match self {
            // A file larger than the address space is read up to the last address.
            Bytes::File(file) => usize::try_from(file.len()).unwrap_or(usize::MAX),
            Bytes::Static(bytes) => bytes.len(),
        }
    }

    /// A short range, inside the file.
    pub(super) fn range(&self, range: Range<usize>) -> Result<Cow<'static, [u8]>> {
        Ok(match self {
            Bytes::File(file) => file.range(range.start as u64..range.end as u64)?.into(),
            Bytes::Static(bytes) => bytes[range].into(),
        })
    }

    /// Calls `take` with one part of a range after another; all but the last have a multiple of 8 bytes.
    pub(super) fn windows(&self, range: Range<usize>, mut take: impl FnMut(&[u8])) -> Result<()> {
        match self {
            Bytes::File(file) => file.windows(range.start as u64..range.end as u64, take)?,
            Bytes::Static(bytes) => take(&bytes[range]),
        }
        Ok(())
    }

    /// An empty vector with room for `count` elements.
    pub(super) fn room_for(&self, count: usize) -> Result<Vec<f32>> {
        match self {
            Bytes::File(file) => Ok(file.room_for(count)?),
            Bytes::Static(_) => Ok(Vec::with_capacity(count)),
        }
    }
}

/// The location of a tensor. Its range is inside the file and matches its shape and dtype.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: usize,
    /// Its name in the file.
    pub(super) stored: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) range: Range<usize>,
}

impl Checkpoint {
    /// The tensors' names in the files, sorted. The head of a model whose head is its embedding is not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether all is there of a tensor that elapid calls so.
    pub fn contains(&self, name: &str) -> bool {
        if self.packed.contains_key(name) {
            return true;
        }
        self.places.of(name).names().iter().all(|name| self.tensors.contains_key(*name))
    }

    /// The type of the numbers, in the file, of a tensor that elapid calls so.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        let place = self.places.of(name);
        place.names().first().and_then(|name| self.tensors.get(*name)).map(|entry| entry.dtype)
    }

    /// The shape of a tensor of the file.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Notices that are not errors.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// A tensor that elapid calls so as f32, row after row, from F32, F16, BF16 or F64 in the file.
    ///
    /// # Errors
    /// If there is no tensor of this name, its shape or dtype differs, or a value is not finite as f32.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.places.of(name).read(shape, &mut |name, shape| self.stored(name, shape))
    }

    /// The values of a parameter: a tensor as [`tensor`](Self::tensor) has it, or constants that other formats do not store.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn parameter(&self, wanted: &Wanted<'_>) -> crate::Result<Vec<f32>> {
        if let Some(packed) = self.packed(wanted)? {
            return Ok(packed.to_vec()?);
        }
        match *self.places.of(wanted.name) {
            Stored::Absent => wanted.init.values(wanted.name, wanted.shape, 0),
            _ => Ok(self.tensor(wanted.name, wanted.shape)?),
        }
    }

    /// A tensor of the file.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(CheckpointError::tensor(&self.file_names(), name, "to find it", "no such tensor", MISSING));
        };
        self.check_entry(entry, shape)?;
        let (values, finite) = self.decode(entry)?;
        if finite { Ok(values) } else { Err(self.not_finite(name, entry, &values)?) }
    }

    /// Checks names, shapes and dtypes against those of a model before any tensor is read.
    ///
    /// # Errors
    /// If any is missing, unexpected, or of another shape; the error shows what was found.
    pub fn check_complete(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let mut strangers: BTreeSet<&str> = self.packed.keys().map(String::as_str).collect();
        let mut places = Vec::new();
        for (name, shape) in expected {
            match self.packed.get(name) {
                Some((form, entry)) => {
                    strangers.remove(name.as_str());
                    self.check_packed(*form, entry, shape)?;
                }
                None => places.push((self.places.of(name), shape)),
            }
        }
        if let Some(stranger) = strangers.first().and_then(|name| self.packed.get(*name)) {
            let wanted = format!("a parameter of the model that {CONFIG} describes");
            let (file, tensor) = (&self.files[stranger.1.file].name, &stranger.1.stored);
            return Err(CheckpointError::tensor(file, tensor, wanted, "another", MISSING));
        }
        let mut parts = Vec::new();
        for (place, shape) in &places {
            parts.extend(place.files(shape)?);
        }
        let wanted: BTreeSet<&str> = parts.iter().map(|(name, _)| *name).collect();
        let names: Vec<(&str, &str)> =
            self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.stored.as_str())).collect();
        if let Some(difference) = names::difference(&wanted, &names) {
            let no_head = expected.iter().all(|(name, _)| self.contains(name) || name == HEAD);
            let fix = match names.len() < wanted.len() && no_head {
                true => "if the head is the embedding, set tie_word_embeddings to true in config.json",
                false => MISSING,
            };
            let wanted = format!("the {} tensors of the model that {CONFIG} describes", wanted.len());
            let got = format!("{} tensors, {difference}", names.len());
            return Err(CheckpointError::format(&self.file_names(), wanted, got, fix));
        }
        parts.iter().try_for_each(|(name, shape)| self.check_entry(&self.tensors[*name], shape))
    }

    /// Checks that a tensor has this shape, and a dtype that can be read.
    pub(super) fn check_entry(&self, entry: &Entry, shape: &[usize]) -> Result<()> {
        let wrong = |wanted: String, got: String, fix| {
            Err(CheckpointError::tensor(&self.files[entry.file].name, &entry.stored, wanted, got, fix))
        };
        if entry.shape != shape {
            return wrong(format!("shape {shape:?}"), format!("{:?}", entry.shape), MISSING);
        }
        match entry.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64 => Ok(()),
            other => wrong("dtype F32, F16, BF16 or F64".into(), other.to_string(), "convert the checkpoint"),
        }
    }

    /// The error for a tensor with values that are not finite. It names other such tensors too.
    fn not_finite(&self, name: &str, entry: &Entry, values: &[f32]) -> Result<CheckpointError> {
        // Tensors that cannot be read are not mentioned.
        let finite = |entry: &Entry| {
            self.check_entry(entry, &entry.shape).is_err() || self.decode(entry).map_or(true, |(_, finite)| finite)
        };
        let others: Vec<&str> = self
            .tensors
            .iter()
            .filter(|(other, entry)| *other != name && !finite(entry))
            .map(|(_, entry)| entry.stored.as_str())
            .collect();
        let mut got = describe_non_finite(entry, &self.files[entry.file].bytes.range(entry.range.clone())?, values);
        if !others.is_empty() {
            got += &format!("; also in {}", names::list(&others, |name| format!("`{name}`")));
        }
        let fix = "the model has diverged or the file is damaged: use an older checkpoint, or fetch it again";
        Ok(CheckpointError::tensor(&self.files[entry.file].name, &entry.stored, "finite values", got, fix))
    }

    pub(super) fn file_names(&self) -> String {
        match self.files.as_slice() {
            [one] => one.name.clone(),
            _ => INDEX.into(),
        }
    }

    /// A tensor's values, and whether all are finite. Nothing for an unsupported dtype.
    pub(super) fn decode(&self, entry: &Entry) -> Result<(Vec<f32>, bool)> {
        let (bytes, range) = (&self.files[entry.file].bytes, entry.range.clone());
        match entry.dtype {
            Dtype::F32 => decode_each(bytes, range, f32::from_le_bytes),
            Dtype::F16 => decode_each(bytes, range, |b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => decode_each(bytes, range, |b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => decode_each(bytes, range, |b| f64::from_le_bytes(b) as f32),
            _ => Ok((Vec::new(), true)),
        }
    }

    /// Whether two tensors have the same bytes.
    pub(super) fn same_bytes(&self, a: &Entry, b: &Entry) -> Result<bool> {
        let hash = |entry: &Entry| -> Result<blake3::Hash> {
            let mut hasher = blake3::Hasher::new();
            self.files[entry.file].bytes.windows(entry.range.clone(), |part| {
                hasher.update(part);
            })?;
            Ok(hasher.finalize())
        };
        Ok(hash(a)? == hash(b)?)
    }
}

pub(super) const MISSING: &str = "config.json and weights must belong to the same model";

fn decode_each<const N: usize>(
    bytes: &Bytes,
    range: Range<usize>,
    value: impl Fn([u8; N]) -> f32,
) -> Result<(Vec<f32>, bool)> {
    // A block stays in cache until it is checked, so the check costs next to nothing.
    const BLOCK: usize = 4096;
    let (mut values, mut finite) = (bytes.room_for(range.len() / N)?, true);
    bytes.windows(range, |part| {
        for block in part.as_chunks::<N>().0.chunks(BLOCK) {
            let from = values.len();
            values.extend(block.iter().map(|chunk| value(*chunk)));
            finite &= values[from..].iter().fold(true, |finite, x: &f32| finite & x.is_finite());
        }
    })?;
    Ok((values, finite))
}

/// How many values of a tensor are not finite, in what way, and where the first is.
fn describe_non_finite(entry: &Entry, bytes: &[u8], values: &[f32]) -> String {
    let beyond = |i: usize| {
        entry.dtype == Dtype::F64 && bytes.as_chunks::<8>().0.get(i).is_some_and(|b| f64::from_le_bytes(*b).is_finite())
    };
    let (mut nan, mut infinite, mut large, mut first) = (0_usize, 0_usize, 0_usize, None);
    for (i, value) in values.iter().enumerate().filter(|(_, value)| !value.is_finite()) {
        first.get_or_insert(i);
        match () {
            () if value.is_nan() => nan += 1,
            () if beyond(i) => large += 1,
            () => infinite += 1,
        }
    }
    let kinds = [(nan, "NaN"), (infinite, "infinite"), (large, "beyond the range of f32")];
    let kinds: Vec<String> =
        kinds.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}")).collect();
    let first = first.unwrap_or_default();
    let (mut rest, mut place) = (first, vec![0; entry.shape.len()]);
    for (index, &size) in place.iter_mut().zip(&entry.shape).rev() {
        (*index, rest) = (rest % size.max(1), rest / size.max(1));
    }
    format!("{} of {} values, the first at {place:?}", kinds.join(" and "), values.len())
}
