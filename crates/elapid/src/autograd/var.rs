//! Variables, and what a tape records of the operations on them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::slots::{Form, Grads};
use crate::params::ParamId;
use crate::{Result, Tensor};

/// Recomputes the values of a variable, bit for bit.
pub(super) type Recipe = Arc<dyn Fn() -> Result<Tensor> + Send + Sync>;

pub(super) type Backward = Box<dyn FnOnce(&mut Grads) -> Result<()> + Send>;

pub(super) struct Inner {
    /// The form of every gradient.
    pub(super) slots: Vec<Form>,
    pub(super) nodes: Vec<Node>,
    pub(super) params: HashMap<ParamId, usize>,
    /// True until the backward pass over these nodes has ended.
    pub(super) alive: Arc<AtomicBool>,
}

impl Default for Inner {
    fn default() -> Self {
        let alive = Arc::new(AtomicBool::new(true));
        Self { slots: Vec::new(), nodes: Vec::new(), params: HashMap::new(), alive }
    }
}

pub(super) struct Node {
    pub(super) outputs: Vec<usize>,
    /// Parameters whose gradients it adds to, including those of a segment that it recomputes.
    pub(super) params: Vec<ParamId>,
    pub(super) backward: Backward,
}

pub(super) fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A tensor, and the slot of its gradient if it needs one.
///
/// A `Var` made from a tensor is a constant: operations on constants record nothing. A variable of a tape becomes a constant
/// when the next backward pass of the tape has ended. So truncated backpropagation stops at a state that is kept across
/// [`Tape::backward`](super::Tape::backward), with or without [`Var::detach`].
#[derive(Clone)]
pub struct Var {
    pub(super) value: Tensor,
    pub(super) place: Option<Place>,
    /// How to recompute the values in the backward pass, if operations need not store them.
    pub(super) recipe: Option<Recipe>,
}

/// Columns `from..` of a gradient on a tape. The tape is held weakly, because closures on it hold variables.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) tape: Weak<Mutex<Inner>>,
    /// Whether no backward pass has ended since the variable was made; after one, the slot may belong to another variable.
    pub(super) alive: Arc<AtomicBool>,
    pub(super) slot: usize,
    pub(super) from: usize,
}

impl std::fmt::Debug for Var {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Var")
            .field("shape", &self.value.shape())
            .field("slot", &self.place.as_ref().map(|p| p.slot))
            .finish()
    }
}

impl From<Tensor> for Var {
    fn from(value: Tensor) -> Self {
        Self { value, place: None, recipe: None }
    }
}

impl Var {
    /// The values.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Length of each dimension.
    pub fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    /// Whether operations on it are recorded.
    pub fn wants_grad(&self) -> bool {
        self.place().is_some()
    }

    /// The slot of its gradient; none for a constant, and for a variable older than the last backward pass.
    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref().filter(|place| place.alive.load(Ordering::Acquire))
    }

    /// The same values as a constant, where truncated backpropagation stops.
    pub fn detach(&self) -> Var {
        self.value.clone().into()
    }

    /// Columns `from..from + cols` of every row; its gradient is the same columns of this one's gradient.
    ///
    /// # Panics
    /// If the range is not inside the last dimension.
    pub fn columns(&self, from: usize, cols: usize) -> Var {
        let place = self.place.clone().map(|place| Place { from: place.from + from, ..place });
        Var { value: self.value.columns(from, cols), place, recipe: None }
    }

    /// The same values with another shape that has the same last dimension (any shape for a variable that is not a slice).
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Var {
        Var { value: self.value.reshape(shape), place: self.place.clone(), recipe: None }
    }
}

impl Inner {
    pub(super) fn output(&mut self, tape: &Arc<Mutex<Inner>>, value: Tensor) -> Var {
        let slot = self.new_slot(&value);
        Var { place: Some(self.place(tape, slot)), ..value.into() }
    }

    pub(super) fn push(&mut self, inputs: &[&Var], recomputed: Vec<ParamId>, outputs: &[Var], backward: Backward) {
        let outputs = outputs.iter().filter_map(Var::place).map(|place| place.slot).collect();
        let places = inputs.iter().filter_map(|v| v.place());
        let mut params: Vec<ParamId> = places.filter_map(|place| self.slots[place.slot].param).collect();
        params.extend(recomputed);
        self.nodes.push(Node { outputs, params, backward });
    }

    pub(super) fn place(&self, tape: &Arc<Mutex<Inner>>, slot: usize) -> Place {
        Place { tape: Arc::downgrade(tape), alive: self.alive.clone(), slot, from: 0 }
    }

    pub(super) fn new_slot(&mut self, value: &Tensor) -> usize {
        self.slots.push(Form::of(value));
        self.slots.len() - 1
    }
}

impl Var {
    /// Whether it is a constant or a variable of this tape.
    pub(super) fn is_of(&self, tape: &Arc<Mutex<Inner>>) -> bool {
        self.place().is_none_or(|place| std::ptr::eq(place.tape.as_ptr(), Arc::as_ptr(tape)))
    }

    /// Only the gradient's slot and the shape, so that a closure does not keep values that it does not need.
    pub(crate) fn without_numbers(&self) -> Var {
        Var { value: self.value.shape_only(), place: self.place.clone(), recipe: None }
    }
}
