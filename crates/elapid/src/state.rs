//! What sequences have become: the state is a value.
//!
//! It can be zero, cloned, cut into rows and stacked again, saved and loaded, and differentiated through.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::Dtype;

use crate::autograd::Var;
use crate::files::{self, Elements, FileError, TensorFile};
use crate::mixer::StateTensor;
use crate::{DType, Device, Error, Result, Tensor};

/// The version of saved states; another one is refused.
const VERSION: &str = "1";

/// The state of a batch of sequences: per layer the tensors that its mixer names, the first dimension the batch. f32.
#[derive(Debug, Clone)]
pub struct State {
    layers: Vec<Vec<Var>>,
    spec: Spec,
    /// Positions read so far, of the longest row.
    pub position: u64,
}

/// The tensors of every layer.
pub(crate) type Spec = std::sync::Arc<[Vec<StateTensor>]>;

impl State {
    pub(crate) fn zeros(spec: &Spec, b: usize, device: Device) -> Result<Self> {
        // Layers share the zeros of a shape: nothing writes to a state in place.
        let mut made: HashMap<&[usize], Var> = HashMap::new();
        let mut layers = Vec::with_capacity(spec.len());
        for tensors in spec.iter() {
            let mut layer = Vec::with_capacity(tensors.len());
            for t in tensors {
                let zeros = match made.get(t.shape.as_slice()) {
                    Some(zeros) => zeros.clone(),
                    None => Tensor::zeros_on(device, DType::F32, &with_batch(b, &t.shape))?.into(),
                };
                made.insert(&t.shape, zeros.clone());
                layer.push(zeros);
            }
            layers.push(layer);
        }
        Ok(Self { layers, spec: spec.clone(), position: 0 })
    }

    /// The same numbers in memory that nothing else shares.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn own(&self) -> Result<Self> {
        self.select(&(0..self.rows()).collect::<Vec<_>>())
    }

    /// Writes the numbers of another state into the memory of this one, on a GPU.
    ///
    /// # Errors
    /// If it has another number of rows, is of another model, or is not on the same device.
    pub fn write(&mut self, from: &State) -> Result<()> {
        if !from.fits(&self.spec) || from.rows() != self.rows() {
            return Err(state_error(format!(
                "{} rows of this model wanted, got {} of it or another",
                self.rows(),
                from.rows()
            )));
        }
        self.write_numbers(from)?;
        self.position = from.position;
        Ok(())
    }

    pub(crate) fn write_numbers(&self, from: &State) -> Result<()> {
        for ((_, from), (_, to)) in from.tensors().zip(self.tensors()) {
            let Some(gpu) = to.gpu() else { return Err(state_error("written in place on a GPU only".into())) };
            let from = from.to(to.device(), to.dtype())?;
            // What was moved on in place is there already.
            if from.mat().address() != to.mat().address() {
                gpu.copy(from.mat(), to.clone().mat_mut())?;
            }
        }
        Ok(())
    }

    /// The same state on a device.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn to(&self, device: Device) -> Result<Self> {
        self.map(|x| Ok(x.value().to(device, DType::F32)?.into()))
    }

    pub(crate) fn from_layers(spec: &Spec, layers: Vec<Vec<Var>>, position: u64) -> Self {
        Self { layers, spec: spec.clone(), position }
    }

    pub(crate) fn fits(&self, spec: &Spec) -> bool {
        self.spec == *spec
    }

    /// Number of sequences.
    pub fn rows(&self) -> usize {
        self.layers.iter().flatten().next().map_or(0, |x| x.shape()[0])
    }

    /// The tensors of layer `i`, in the order its mixer names them.
    pub fn layer(&self, i: usize) -> &[Var] {
        &self.layers[i]
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|x| 4 * x.value().len()).sum()
    }

    /// The same numbers as constants: where truncated backpropagation stops.
    pub fn detach(&self) -> Self {
        let layers = self.layers.iter().map(|layer| layer.iter().map(Var::detach).collect()).collect();
        Self { layers, ..self.clone() }
    }

    /// The sequences `rows`, in that order; one may be named several times.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        if let Some(row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(state_error(format!("row {row} was asked for, it has {}", self.rows())));
        }
        self.map(|x| Ok(x.value().select(rows)?.into()))
    }

    /// The sequences of several states in one batch.
    ///
    /// # Errors
    /// If there are none, or they are of different models.
    pub fn stack(states: &[State]) -> Result<Self> {
        let first = states.first().ok_or_else(|| state_error("nothing to stack".into()))?;
        if states.iter().any(|state| state.spec != first.spec) {
            return Err(state_error("states of models of different shapes cannot be stacked".into()));
        }
        let stacked = |i: usize, j: usize| {
            let parts: Vec<&Tensor> = states.iter().map(|state| state.layers[i][j].value()).collect();
            Ok(Var::from(Tensor::concat(&parts)?))
        };
        let layers = (0..first.layers.len())
            .map(|i| (0..first.layers[i].len()).map(|j| stacked(i, j)).collect())
            .collect::<Result<_>>()?;
        let position = states.iter().map(|state| state.position).max().unwrap_or(0);
        Ok(Self { layers, spec: first.spec.clone(), position })
    }

    fn map(&self, f: impl Fn(&Var) -> Result<Var>) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| layer.iter().map(&f).collect()).collect::<Result<_>>()?;
        Ok(Self { layers, ..self.clone() })
    }

    /// Every tensor with its name, `layers.0.ssm`.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.spec.iter().zip(&self.layers).enumerate().flat_map(|(i, (spec, layer))| {
            spec.iter().zip(layer).map(move |(t, x)| (format!("layers.{i}.{}", t.name), x.value()))
        })
    }

    /// Writes it to a file (safetensors), with the model's fingerprint and notes of the caller's. Equal states and notes
    /// give equal bytes.
    ///
    /// # Errors
    /// If the file cannot be written; an older file of that name is then still whole.
    pub fn save(&self, path: &Path, fingerprint: &str, notes: &[(&str, String)]) -> Result<()> {
        let mut metadata: BTreeMap<String, String> = BTreeMap::from([
            ("format".into(), "elapid-state".into()),
            ("version".into(), VERSION.into()),
            ("fingerprint".into(), fingerprint.into()),
            ("position".into(), self.position.to_string()),
        ]);
        metadata.extend(notes.iter().map(|(key, value)| (format!("note.{key}"), value.clone())));
        let tensors: Vec<Elements> = self
            .tensors()
            .map(|(name, x)| Ok(Elements { name, shape: x.shape().to_vec(), data: x.to_vec()? }))
            .collect::<Result<_>>()?;
        Ok(files::write_tensors(path, &metadata, &tensors)?)
    }

    /// Reads what [`save`](Self::save) wrote; returns the caller's notes with it.
    ///
    /// # Errors
    /// If the file is not a state, is damaged, or was made by another model than the one of `fingerprint`.
    pub(crate) fn load(path: &Path, spec: &Spec, fingerprint: &str) -> Result<(Self, HashMap<String, String>)> {
        let wrong = |reason: String| Error::State { path: Some(path.to_owned()), reason };
        let file = TensorFile::open(path).map_err(|error| match error {
            FileError::Damaged { what, .. } => {
                wrong(format!("not a state file, or damaged ({what}); write it again with --save-state"))
            }
            error => error.into(),
        })?;
        let metadata = file.notes();
        let field = |key: &str| metadata.get(key).map(String::as_str).unwrap_or_default();
        if field("format") != "elapid-state" {
            return Err(wrong("a safetensors file, but not a state of elapid; write one with --save-state".into()));
        }
        if field("version") != VERSION {
            let found = field("version");
            return Err(wrong(format!("version `{found}`, this program reads {VERSION}; write it again")));
        }
        if field("fingerprint") != fingerprint {
            return Err(wrong(format!(
                "made by another model (fingerprint {:.12}…, this model's is {fingerprint:.12}…); load it with the \
                 model that made it, or read the prompt again with this one",
                field("fingerprint")
            )));
        }
        let position = field("position").parse().map_err(|_| wrong("field `position` is not a number".into()))?;
        let mut rows = None;
        let mut layers = Vec::new();
        for (i, tensors) in spec.iter().enumerate() {
            let mut layer = Vec::new();
            for t in tensors {
                let name = format!("layers.{i}.{}", t.name);
                let Some((dtype, got)) = file.shape(&name) else {
                    return Err(wrong(format!("tensor `{name}` is missing")));
                };
                let b = *rows.get_or_insert(got.first().copied().unwrap_or(0));
                let wanted = with_batch(b, &t.shape);
                if got != wanted || dtype != Dtype::F32 {
                    return Err(wrong(format!("tensor `{name}`: wanted F32 {wanted:?}, got {dtype:?} {got:?}")));
                }
                let numbers = file.f32(&name)?;
                if let Some(place) = numbers.iter().position(|x| !x.is_finite()) {
                    return Err(wrong(format!(
                        "tensor `{name}`: element {place} is not finite; write the state again"
                    )));
                }
                layer.push(Tensor::new(numbers, &wanted).into());
            }
            layers.push(layer);
        }
        let notes = metadata
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("note.")?.to_owned(), value.clone())))
            .collect();
        Ok((Self { layers, spec: spec.clone(), position }, notes))
    }
}

fn with_batch(b: usize, shape: &[usize]) -> Vec<usize> {
    [b].iter().chain(shape).copied().collect()
}

fn state_error(reason: String) -> Error {
    Error::State { path: None, reason }
}
