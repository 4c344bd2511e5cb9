//! The state of sequences, as a value.
//!
//! It can be zero, cloned, split into rows and stacked again, saved and loaded, and differentiated through.

mod cache;
mod cache_spec;
mod file;
mod in_place;
mod pages;
mod tables;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use elapid_kernels::reuse::List;

pub use cache::Cache;
pub(crate) use cache::Source;
pub use cache_spec::CacheSpec;
pub use elapid_kernels::attention::paged::PAGE;

use crate::Layout;
use crate::autograd::Var;
use crate::{DType, Device, Error, Result, Tensor};

/// One entry of a layer's state, for a single sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSpec {
    /// Short name: `conv`, `ssm`, `k`. Wrappers prefix it with the names of their layers.
    pub name: String,
    /// What it holds.
    pub kind: StateKind,
    /// The dtype of its elements.
    pub dtype: StateDtype,
    /// The value of every element before the first position.
    pub initial: f32,
}

/// The kind of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateKind {
    /// A tensor of this shape, without the batch.
    Fixed(Vec<usize>),
    /// A row for each position read, for all or the last positions.
    Cache(CacheSpec),
}

/// The dtype of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateDtype {
    /// f32, whatever the dtype of the activations: recurrent states.
    F32,
    /// The dtype of the activations: inputs of earlier positions, keys and values.
    Activations,
}

impl StateSpec {
    /// A tensor in f32 that starts as zeros.
    pub fn fixed(name: &str, shape: &[usize]) -> Self {
        Self { name: name.into(), kind: StateKind::Fixed(shape.to_vec()), dtype: StateDtype::F32, initial: 0.0 }
    }

    /// A cache in the dtype of the activations.
    pub fn cache(name: &str, spec: CacheSpec) -> Self {
        Self { name: name.into(), kind: StateKind::Cache(spec), dtype: StateDtype::Activations, initial: 0.0 }
    }

    /// The same with another initial value.
    #[must_use]
    pub fn starting_at(self, initial: f32) -> Self {
        Self { initial, ..self }
    }

    /// Number of elements kept for a sequence of `positions` positions.
    pub fn elements(&self, positions: u64) -> u64 {
        match &self.kind {
            StateKind::Fixed(shape) => shape.iter().product::<usize>() as u64,
            StateKind::Cache(spec) if spec.window == 0 => positions * spec.cols as u64,
            StateKind::Cache(spec) => positions.min((spec.window + spec.sinks) as u64) * spec.cols as u64,
        }
    }
}

/// One entry of the state of a batch of sequences.
#[derive(Debug, Clone)]
pub enum Slot {
    /// A tensor, the first dimension the batch.
    Fixed(Var),
    /// A cache with that many rows.
    Cache(Cache),
}

/// The state of one layer: its entries in the order of its specs.
#[derive(Debug, Clone, Default)]
pub struct LayerState(List<Slot>);

impl LayerState {
    /// The state with these entries.
    pub fn new(slots: impl IntoIterator<Item = Slot>) -> Self {
        Self(slots.into_iter().collect())
    }

    /// A state of tensors only.
    pub fn of(tensors: impl IntoIterator<Item = Var>) -> Self {
        Self(tensors.into_iter().map(Slot::Fixed).collect())
    }

    /// Its entries.
    pub fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// Moves out its entries.
    pub fn into_slots(self) -> List<Slot> {
        self.0
    }

    /// The tensors of a state that consists of exactly this many.
    ///
    /// # Errors
    /// If it has other entries.
    pub fn into_fixed<const N: usize>(self) -> Result<[Var; N]> {
        let tensors: Option<List<Var>> = self.0.into_iter().map(Slot::into_fixed).collect();
        let tensors = tensors.and_then(|tensors| tensors.try_into().ok());
        tensors.ok_or_else(|| state_error(format!("a layer with {N} state tensors got the state of another layer")))
    }

    /// The caches of a state that consists of exactly this many.
    ///
    /// # Errors
    /// If it has other entries.
    pub fn into_caches<const N: usize>(self) -> Result<[Cache; N]> {
        let caches: Option<List<Cache>> = self.0.into_iter().map(Slot::into_cache).collect();
        let caches = caches.and_then(|caches| caches.try_into().ok());
        caches.ok_or_else(|| state_error(format!("a layer with {N} caches got the state of another layer")))
    }

    /// Tensor `i`.
    ///
    /// # Errors
    /// If there is none, or it is a cache.
    pub fn fixed(&self, i: usize) -> Result<&Var> {
        match self.0.get(i) {
            Some(Slot::Fixed(var)) => Ok(var),
            _ => Err(state_error(format!("state entry {i} of a layer is not a tensor"))),
        }
    }

    /// Splits off the entries from `at` on, for wrappers to distribute a state.
    pub fn split_off(&mut self, at: usize) -> Self {
        Self(self.0.split_off(at.min(self.0.len())))
    }

    /// Appends the entries of another state.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    fn zeros(specs: &[StateSpec], b: usize, device: Device, shared: &mut Shared) -> Result<Self> {
        let slot = |spec: &StateSpec| -> Result<Slot> {
            Ok(match &spec.kind {
                StateKind::Fixed(shape) => Slot::Fixed(shared.filled(device, &with_batch(b, shape), spec.initial)?),
                StateKind::Cache(cache) => Slot::Cache(Cache::empty(cache, b)),
            })
        };
        Ok(Self(specs.iter().map(slot).collect::<Result<_>>()?))
    }

    /// Moves constants into the pages of caches.
    pub(crate) fn settle(&mut self) {
        for slot in &mut self.0 {
            if let Slot::Cache(cache) = slot {
                cache.settle();
            }
        }
    }

    /// All variables: inputs and outputs of a recomputed segment.
    pub(crate) fn vars(&self) -> Vec<Var> {
        let vars = |slot: &Slot| match slot {
            Slot::Fixed(var) => vec![var.clone()],
            Slot::Cache(cache) => cache.vars().cloned().collect(),
        };
        self.0.iter().flat_map(vars).collect()
    }

    /// The same state with other variables, as many as [`vars`](Self::vars) returns.
    pub(crate) fn with_vars(&self, vars: &mut impl Iterator<Item = Var>) -> Self {
        let slot = |slot: &Slot| match slot {
            Slot::Fixed(var) => Slot::Fixed(vars.next().unwrap_or_else(|| var.detach())),
            Slot::Cache(cache) => Slot::Cache(cache.with_vars(vars)),
        };
        Self(self.0.iter().map(slot).collect())
    }

    fn map(&self, tensor: &impl Fn(&Var) -> Result<Var>, cache: &impl Fn(&Cache) -> Result<Cache>) -> Result<Self> {
        let slot = |slot: &Slot| match slot {
            Slot::Fixed(var) => tensor(var).map(Slot::Fixed),
            Slot::Cache(pages) => cache(pages).map(Slot::Cache),
        };
        Ok(Self(self.0.iter().map(slot).collect::<Result<_>>()?))
    }
}

impl Slot {
    fn into_fixed(self) -> Option<Var> {
        if let Self::Fixed(var) = self { Some(var) } else { None }
    }

    fn into_cache(self) -> Option<Cache> {
        if let Self::Cache(cache) = self { Some(cache) } else { None }
    }
}

/// Initial tensors. Layers share those of equal shape, since a shared state is never written in place.
#[derive(Default)]
struct Shared(HashMap<(Vec<usize>, u32), Var>);

impl Shared {
    fn filled(&mut self, device: Device, shape: &[usize], value: f32) -> Result<Var> {
        let key = (shape.to_vec(), value.to_bits());
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let made: Var = match value {
            0.0 => Tensor::zeros_on(device, DType::F32, shape)?.into(),
            value => Tensor::new(vec![value; shape.iter().product()], shape).to(device, DType::F32)?.into(),
        };
        Ok(self.0.entry(key).insert_entry(made).get().clone())
    }
}

/// The state entries of every layer of a model, with each layer's place: `layers.3.mixer`.
pub(crate) type Spec = Arc<[(String, Vec<StateSpec>)]>;

/// The state of a batch of sequences.
#[derive(Debug, Clone)]
pub struct State {
    layers: List<LayerState>,
    spec: Spec,
    rows: List<Row>,
}

impl<'a> From<&'a State> for Cow<'a, State> {
    fn from(state: &'a State) -> Self {
        Cow::Borrowed(state)
    }
}

impl From<State> for Cow<'_, State> {
    fn from(state: State) -> Self {
        Cow::Owned(state)
    }
}

/// The progress of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Row {
    /// Positions read, over all documents.
    read: u64,
    /// Positions since the last reset.
    document: u64,
}

impl State {
    pub(crate) fn zeros(spec: &Spec, b: usize, device: Device) -> Result<Self> {
        let mut shared = Shared::default();
        let zeros = |(_, specs): &(String, Vec<StateSpec>)| LayerState::zeros(specs, b, device, &mut shared);
        let layers = spec.iter().map(zeros).collect::<Result<_>>()?;
        Ok(Self { layers, spec: spec.clone(), rows: List::of(Row::default(), b) })
    }

    /// The state after a pass, with the new states of the layers.
    pub(crate) fn after(&self, layers: List<LayerState>, layout: &Layout) -> Self {
        let advance = |(r, row): (usize, &Row)| {
            let len = layout.len(r) as u64;
            let document = layout.last_reset(r).map_or(row.document + len, |at| len - at as u64);
            Row { read: row.read + len, document }
        };
        let rows = self.rows.iter().enumerate().map(advance).collect();
        Self { layers, spec: self.spec.clone(), rows }
    }

    /// The same progress with other states of the layers, one for each.
    ///
    /// # Errors
    /// If there are more or fewer, or one has other entries.
    pub fn with_layers(self, layers: impl IntoIterator<Item = LayerState>) -> Result<Self> {
        let layers: List<LayerState> = layers.into_iter().collect();
        let same = |(one, other): (&Slot, &Slot)| match (one, other) {
            (Slot::Fixed(one), Slot::Fixed(other)) => one.shape() == other.shape(),
            (Slot::Cache(one), Slot::Cache(other)) => one.spec() == other.spec() && one.rows() == other.rows(),
            _ => false,
        };
        let all = |(one, other): (&LayerState, &LayerState)| {
            one.0.len() == other.0.len() && one.0.iter().zip(&other.0).all(same)
        };
        match layers.len() == self.layers.len() && layers.iter().zip(&self.layers).all(all) {
            true => Ok(Self { layers, ..self }),
            false => Err(state_error("states of other layers".into())),
        }
    }

    /// Moves every layer's state out, in order.
    pub(crate) fn take_layers(&mut self) -> List<LayerState> {
        std::mem::take(&mut self.layers)
    }

    /// Counts one more position of these rows, where the values were updated in place.
    pub(crate) fn advance(&mut self, rows: impl Iterator<Item = usize> + Clone) {
        for i in rows.clone() {
            let row = &mut self.rows[i];
            (row.read, row.document) = (row.read + 1, row.document + 1);
        }
        self.grow(rows);
    }

    /// Puts caches where a pass on a device in a dtype reads them.
    ///
    /// # Errors
    /// If the device failed, or has too little memory.
    pub(crate) fn place_caches(&mut self, device: Device, dtype: DType) -> Result<()> {
        for slot in self.layers.iter_mut().flat_map(|layer| &mut layer.0) {
            if let Slot::Cache(cache) = slot {
                cache.place(device, dtype)?;
            }
        }
        Ok(())
    }

    /// Forgets what a row has read; its tensors stay as they are.
    pub(crate) fn forget_row(&mut self, row: usize) {
        self.clear_caches(row);
        self.rows[row] = Row::default();
    }

    /// The same values in unshared memory.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn own(&self) -> Result<Self> {
        self.select(&(0..self.rows()).collect::<Vec<_>>())
    }

    /// Writes the values of another state into the memory of this one, on a GPU.
    ///
    /// # Errors
    /// If it has another number of rows, belongs to another model, or is not on the same device.
    pub fn write(&mut self, from: &State) -> Result<()> {
        if !from.fits(&self.spec) || from.rows() != self.rows() {
            return Err(state_error(format!(
                "wanted {} rows of this model, got {} of this or another model",
                self.rows(),
                from.rows()
            )));
        }
        self.write_values(from)?;
        self.rows.clone_from(&from.rows);
        Ok(())
    }

    /// Writes a state of one row into row `row` of this one, on a GPU.
    ///
    /// # Errors
    /// If it is not one row of the same model, or the device fails.
    pub(crate) fn write_row(&mut self, row: usize, from: &State) -> Result<()> {
        if !from.fits(&self.spec) || from.rows() != 1 {
            return Err(state_error(format!(
                "wanted one row of this model, got {} of this or another model",
                from.rows()
            )));
        }
        for (from, to) in from.fixed().zip(self.fixed()) {
            let Some(gpu) = to.gpu() else { return Err(state_error("in-place writes work on a GPU only".into())) };
            let (from, mut to) = (from.to(to.device(), to.dtype())?, to.narrow(row, 1));
            gpu.copy(from.mat(), to.mat_mut())?;
        }
        self.write_caches(row, from)?;
        self.rows[row] = from.rows[0];
        Ok(())
    }

    pub(crate) fn write_values(&self, from: &State) -> Result<()> {
        for (from, to) in from.fixed().zip(self.fixed()) {
            let Some(gpu) = to.gpu() else { return Err(state_error("in-place writes work on a GPU only".into())) };
            let from = from.to(to.device(), to.dtype())?;
            // Entries updated in place are there already.
            if from.mat().address() != to.mat().address() {
                gpu.copy(from.mat(), to.clone().mat_mut())?;
            }
        }
        Ok(())
    }

    /// The same state on a device.
    ///
    /// # Errors
    /// If a device failed, or has too little memory.
    pub fn to(&self, device: Device) -> Result<Self> {
        self.map(&|x| Ok(x.value().to(device, DType::F32)?.into()), &|cache| cache.to(device))
    }

    /// The same state with those of heads, `[h n p]`, in another dtype.
    pub(crate) fn matrices_in(&self, dtype: DType) -> Result<Self> {
        let tensor = |x: &Var| match x.shape().len() {
            4.. => Ok(x.value().to(x.value().device(), dtype)?.into()),
            _ => Ok(x.clone()),
        };
        self.map(&tensor, &|cache| Ok(cache.clone()))
    }

    /// Whether it may grow: whether a layer keeps earlier positions in a cache.
    pub fn has_caches(&self) -> bool {
        self.spec.iter().flat_map(|(_, specs)| specs).any(|spec| matches!(spec.kind, StateKind::Cache(_)))
    }

    pub(crate) fn fits(&self, spec: &Spec) -> bool {
        self.spec == *spec
    }

    /// The same state, as if every row had read so many positions of a document.
    #[must_use]
    pub fn having_read(mut self, positions: u64) -> Self {
        self.rows.fill(Row { read: positions, document: positions });
        self
    }

    /// Number of sequences.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Positions that each row has read, over all documents.
    pub fn positions(&self) -> Vec<u64> {
        self.rows.iter().map(|row| row.read).collect()
    }

    /// Positions that the longest row has read.
    pub fn position(&self) -> u64 {
        self.rows.iter().map(|row| row.read).max().unwrap_or(0)
    }

    /// Positions of each row since its last reset, where its document continues.
    pub(crate) fn starts(&self) -> List<u64> {
        self.rows.iter().map(|row| row.document).collect()
    }

    /// The state of layer `i`, mixers and feed-forwards counted one after another.
    pub fn layer(&self, i: usize) -> &LayerState {
        &self.layers[i]
    }

    /// The layers' places with the names of their entries: `("layers.0.mixer", ["conv", "ssm"])`.
    pub fn names(&self) -> Vec<(&str, Vec<&str>)> {
        self.spec
            .iter()
            .map(|(place, specs)| (place.as_str(), specs.iter().map(|spec| spec.name.as_str()).collect()))
            .collect()
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        let bytes = |slot: &Slot| match slot {
            Slot::Fixed(x) => 4 * x.value().len(),
            Slot::Cache(cache) => cache.bytes(),
        };
        self.layers.iter().flat_map(LayerState::slots).map(bytes).sum()
    }

    /// The same values as constants: where truncated backpropagation stops.
    pub fn detach(&self) -> Self {
        let detached = |layer: &LayerState| {
            let slots = layer.slots().iter().map(|slot| match slot {
                Slot::Fixed(x) => Slot::Fixed(x.detach()),
                Slot::Cache(cache) => Slot::Cache(cache.detach()),
            });
            LayerState::new(slots)
        };
        Self { layers: self.layers.iter().map(detached).collect(), ..self.clone() }
    }

    /// The sequences `rows`, in that order, as constants; a row may occur several times.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        if let Some(row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(state_error(format!("row {row} was requested, but it has {} rows", self.rows())));
        }
        let mut selected = self.map(&|x| Ok(x.value().select(rows)?.into()), &|cache| cache.select(rows))?;
        selected.rows = rows.iter().map(|&row| self.rows[row]).collect();
        Ok(selected)
    }

    /// The sequences of several states in one batch, as constants.
    ///
    /// # Errors
    /// If there are none, or they belong to different models.
    pub fn stack(states: &[State]) -> Result<Self> {
        let first = states.first().ok_or_else(|| state_error("nothing to stack".into()))?;
        if states.iter().any(|state| state.spec != first.spec) {
            return Err(state_error("states of models of different shapes cannot be stacked".into()));
        }
        let stacked = |i: usize, j: usize, spec: &StateSpec| -> Result<Slot> {
            let slots = states.iter().map(|state| &state.layers[i].slots()[j]);
            match &spec.kind {
                StateKind::Fixed(_) => {
                    let parts = slots.filter_map(|slot| if let Slot::Fixed(x) = slot { Some(x.value()) } else { None });
                    Ok(Slot::Fixed(Tensor::concat(&parts.collect::<Vec<_>>())?.into()))
                }
                StateKind::Cache(spec) => {
                    let parts = slots.filter_map(|slot| if let Slot::Cache(cache) = slot { Some(cache) } else { None });
                    Ok(Slot::Cache(Cache::stack(parts, spec)?))
                }
            }
        };
        let layer = |(i, (_, specs)): (usize, &(String, Vec<StateSpec>))| {
            let slots = specs.iter().enumerate().map(|(j, spec)| stacked(i, j, spec));
            slots.collect::<Result<_>>().map(LayerState)
        };
        let layers = first.spec.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let rows = states.iter().flat_map(|state| state.rows.clone()).collect();
        Ok(Self { layers, spec: first.spec.clone(), rows })
    }

    fn map(&self, tensor: &impl Fn(&Var) -> Result<Var>, cache: &impl Fn(&Cache) -> Result<Cache>) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| layer.map(tensor, cache)).collect::<Result<_>>()?;
        Ok(Self { layers, ..self.clone() })
    }

    /// Every fixed tensor, in order.
    fn fixed(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(LayerState::slots).filter_map(|slot| match slot {
            Slot::Fixed(x) => Some(x.value()),
            Slot::Cache(_) => None,
        })
    }

    /// Every fixed tensor with its name, `layers.0.mixer.ssm`.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.spec.iter().zip(&self.layers).flat_map(|((place, specs), layer)| {
            specs.iter().zip(layer.slots()).filter_map(move |(spec, slot)| match slot {
                Slot::Fixed(x) => Some((format!("{place}.{}", spec.name), x.value())),
                Slot::Cache(_) => None,
            })
        })
    }
}

fn with_batch(b: usize, shape: &[usize]) -> Vec<usize> {
    [b].iter().chain(shape).copied().collect()
}

fn state_error(reason: String) -> Error {
    Error::State { path: None, reason }
}
