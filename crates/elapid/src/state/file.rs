//! States in files: safetensors with a version and the fingerprint of the model.
//!
//! Version 2: `layers.N.mixer.NAME` (or `ffn`) are the tensors, f32 `[b ..]`. A cache is f32 `[positions cols]`, the kept
//! positions of all rows one after another; the note `cache.` with its name has two numbers for each row: positions since
//! the last reset, and the first kept page. The notes `positions` and `document` have one number for each row. Version 1 has
//! one `position` for all rows, and tensors `layers.N.NAME` only of mixers; it is still read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use elapid_kernels::reuse::List;
use safetensors::tensor::Dtype;

use super::{Cache, CacheSpec, LayerState, Row, Slot, Spec, State, StateKind, StateSpec, with_batch};
use crate::files::{self, Elements, FileError, TensorFile};
use crate::{Device, Error, Result, Tensor};

/// The version that is written.
const VERSION: &str = "2";

impl State {
    /// Writes it to a file (safetensors), with the model's fingerprint and notes of the caller's. Equal states and notes
    /// give equal bytes.
    ///
    /// # Errors
    /// If the file cannot be written; an older file of that name is then unchanged.
    pub fn save(&self, path: &Path, fingerprint: &str, notes: &[(&str, String)]) -> Result<()> {
        let mut metadata: BTreeMap<String, String> = BTreeMap::from([
            ("format".into(), "elapid-state".into()),
            ("version".into(), VERSION.into()),
            ("fingerprint".into(), fingerprint.into()),
            ("positions".into(), list(self.rows.iter().map(|row| row.read))),
            ("document".into(), list(self.rows.iter().map(|row| row.document))),
        ]);
        metadata.extend(notes.iter().map(|(key, value)| (format!("note.{key}"), value.clone())));
        let mut tensors = Vec::new();
        for ((place, specs), layer) in self.spec.iter().zip(&self.layers) {
            for (spec, slot) in specs.iter().zip(layer.slots()) {
                let name = format!("{place}.{}", spec.name);
                tensors.push(match slot {
                    Slot::Fixed(x) => Elements { name, shape: x.shape().to_vec(), data: x.value().to_vec()? },
                    Slot::Cache(cache) => {
                        let (rows, data) = cache.to(Device::Cpu)?.export();
                        metadata.insert(format!("cache.{name}"), list(rows.into_iter().flatten()));
                        let cols = cache.spec().cols;
                        Elements { name, shape: vec![data.len() / cols.max(1), cols], data }
                    }
                });
            }
        }
        Ok(files::write_tensors(path, &metadata, &tensors)?)
    }

    /// Reads what [`save`](Self::save) wrote; returns the caller's notes with it.
    ///
    /// # Errors
    /// If the file is not a state, is damaged, or was made by a model with another `fingerprint`.
    pub(crate) fn load(path: &Path, spec: &Spec, fingerprint: &str) -> Result<(Self, HashMap<String, String>)> {
        let file = File::open(path)?;
        file.check(fingerprint)?;
        let mut layers = List::with_room(spec.len());
        let mut rows = None;
        for (place, specs) in spec.iter() {
            let slots = specs.iter().map(|spec| file.slot(place, spec, &mut rows));
            layers.push(LayerState(slots.collect::<Result<_>>()?));
        }
        let rows = file.rows(rows)?;
        Ok((Self { layers, spec: spec.clone(), rows }, file.notes()))
    }
}

/// Numbers as a note, separated by spaces.
fn list(numbers: impl Iterator<Item = u64>) -> String {
    numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

/// A state file whose header was read.
struct File<'a> {
    path: &'a Path,
    tensors: TensorFile,
}

impl<'a> File<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let tensors = TensorFile::open(path).map_err(|error| match error {
            FileError::Damaged { what, .. } => {
                let reason = format!("not a state file, or damaged ({what}); write it again with --save-state");
                Error::State { path: Some(path.to_owned()), reason }
            }
            error => error.into(),
        })?;
        Ok(Self { path, tensors })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::State { path: Some(self.path.to_owned()), reason }
    }

    fn field(&self, key: &str) -> &str {
        self.tensors.notes().get(key).map(String::as_str).unwrap_or_default()
    }

    fn is_first_version(&self) -> bool {
        self.field("version") == "1"
    }

    fn check(&self, fingerprint: &str) -> Result<()> {
        if self.field("format") != "elapid-state" {
            let reason = "a safetensors file, but not a state of elapid; write one with --save-state";
            return Err(self.wrong(reason.into()));
        }
        let version = self.field("version");
        if version != VERSION && !self.is_first_version() {
            return Err(self.wrong(format!("version `{version}`, this program reads 1 to {VERSION}; write it again")));
        }
        if self.field("fingerprint") != fingerprint {
            return Err(self.wrong(format!(
                "made by another model (fingerprint {:.12}…, this model's is {fingerprint:.12}…); load it with the model \
                 that made it, or read the prompt again with this one",
                self.field("fingerprint")
            )));
        }
        Ok(())
    }

    /// The shape of a tensor of f32.
    fn shape(&self, name: &str) -> Result<&[usize]> {
        match self.tensors.shape(name) {
            Some((Dtype::F32, shape)) => Ok(shape),
            Some((dtype, _)) => Err(self.wrong(format!("tensor `{name}`: wanted F32, got {dtype:?}"))),
            None => Err(self.wrong(format!("tensor `{name}` is missing"))),
        }
    }

    /// An entry of a layer's state; `rows` is the number of rows of earlier entries.
    fn slot(&self, place: &str, spec: &StateSpec, rows: &mut Option<usize>) -> Result<Slot> {
        let place = if self.is_first_version() { place.strip_suffix(".mixer").unwrap_or(place) } else { place };
        let name = format!("{place}.{}", spec.name);
        match &spec.kind {
            StateKind::Fixed(shape) => {
                let got = self.shape(&name)?;
                let b = *rows.get_or_insert(got.first().copied().unwrap_or(0));
                let wanted = with_batch(b, shape);
                if got != wanted {
                    return Err(self.wrong(format!("tensor `{name}`: wanted F32 {wanted:?}, got F32 {got:?}")));
                }
                Ok(Slot::Fixed(Tensor::new(self.finite(&name)?, &wanted).into()))
            }
            StateKind::Cache(cache) => self.cache(&name, cache, rows).map(Slot::Cache),
        }
    }

    fn cache(&self, name: &str, spec: &CacheSpec, rows: &mut Option<usize>) -> Result<Cache> {
        let (got, index) = (self.shape(name)?, self.list(&format!("cache.{name}"))?);
        let (index, rest) = index.as_chunks::<2>();
        let b = *rows.get_or_insert(index.len());
        if index.len() != b || !rest.is_empty() || got.len() != 2 || got[1] != spec.cols {
            let cols = spec.cols;
            return Err(self.wrong(format!("cache `{name}`: wanted [positions, {cols}] of {b} rows, got {got:?}")));
        }
        let cache = Cache::import(spec, index, &self.finite(name)?);
        cache.map_err(|reason| self.wrong(format!("cache `{name}`: {reason}")))
    }

    fn finite(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.tensors.f32(name)?;
        match values.iter().position(|x| !x.is_finite()) {
            Some(place) => {
                Err(self.wrong(format!("tensor `{name}`: element {place} is not finite; write the state again")))
            }
            None => Ok(values),
        }
    }

    /// The numbers of a note.
    fn list(&self, key: &str) -> Result<Vec<u64>> {
        let numbers: Option<Vec<u64>> = self.field(key).split_whitespace().map(|n| n.parse().ok()).collect();
        numbers.ok_or_else(|| self.wrong(format!("field `{key}` is not a list of numbers")))
    }

    fn rows(&self, rows: Option<usize>) -> Result<List<Row>> {
        // A model whose layers have no state still has rows.
        let b = rows.map_or_else(|| self.list("positions").map(|list| list.len()), Ok)?;
        if self.is_first_version() {
            let all = self.field("position").parse();
            let all: u64 = all.map_err(|_| self.wrong("field `position` is not a number".into()))?;
            return Ok(List::of(Row { read: all, document: all }, b));
        }
        let of_rows = |key: &str| -> Result<Vec<u64>> {
            let numbers = self.list(key)?;
            match numbers.len() == b {
                true => Ok(numbers),
                false => Err(self.wrong(format!("field `{key}` has {} numbers for {b} rows", numbers.len()))),
            }
        };
        let (positions, documents) = (of_rows("positions")?, of_rows("document")?);
        Ok(positions.into_iter().zip(documents).map(|(read, document)| Row { read, document }).collect())
    }

    fn notes(&self) -> HashMap<String, String> {
        let note = |(key, value): (&String, &String)| Some((key.strip_prefix("note.")?.to_owned(), value.clone()));
        self.tensors.notes().iter().filter_map(note).collect()
    }
}
