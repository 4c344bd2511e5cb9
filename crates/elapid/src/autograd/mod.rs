//! Reverse-mode differentiation: a tape over coarse operations.
//!
//! An operation computes its output and, if an input wants a gradient, records on the tape a closure that turns the
//! gradient of the output into gradients of the inputs. [`Tape::backward`] runs the closures from last to first and
//! forgets each after it ran, with all that it saved. The tape knows nothing of models; an operation is one file in
//! [`crate::ops`].
//!
//! Two rules keep memory traffic low. A column slice ([`Var::columns`]) shares the gradient of what it was cut from, so
//! the gradients of `x` and `z` are written straight into that of the packed `[x z]`. And the first writer of a gradient
//! stores (`=`); only further ones add: in place where the operation can ([`Grads::accumulate`]), else from memory of their
//! own.

mod checkpoint;
mod grads;
mod saved;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use elapid_kernels::DType;

pub use checkpoint::checkpoint;
use grads::Form;
pub use grads::{Grads, Want};
use saved::Recipe;
pub(crate) use saved::Saved;

use crate::params::{ParamGrads, ParamId};
use crate::{Result, Tensor};

type Backward = Box<dyn FnOnce(&mut Grads) -> Result<()> + Send>;

struct Inner {
    /// What every gradient looks like.
    slots: Vec<Form>,
    nodes: Vec<Node>,
    params: HashMap<ParamId, usize>,
    /// True until the backward pass over these nodes has ended.
    alive: Arc<AtomicBool>,
}

impl Default for Inner {
    fn default() -> Self {
        let alive = Arc::new(AtomicBool::new(true));
        Self { slots: Vec::new(), nodes: Vec::new(), params: HashMap::new(), alive }
    }
}

struct Node {
    outputs: Vec<usize>,
    /// Parameters whose gradients it adds to, those of a part that it computes again among them.
    params: Vec<ParamId>,
    backward: Backward,
}

/// What was computed since the last [`backward`](Tape::backward), as far as parameters want gradients.
#[derive(Default)]
pub struct Tape {
    inner: Arc<Mutex<Inner>>,
    /// Whether it only notes which parameters are used: what it makes of them are constants.
    notes_only: bool,
}

/// Called with each parameter whose gradient is complete.
type Final<'a> = dyn FnMut(ParamId) -> Result<()> + 'a;

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A tensor, and the place of its gradient if it wants one.
///
/// A `Var` made from a tensor alone is a constant: operations on constants record nothing. A variable of a tape becomes one
/// when the next backward pass of the tape has ended: a state that is kept over [`Tape::backward`] is where truncated
/// backpropagation stops, with or without [`Var::detach`].
#[derive(Clone)]
pub struct Var {
    value: Tensor,
    place: Option<Place>,
    /// How the numbers are computed again on the way back, if operations need not keep them.
    recipe: Option<Recipe>,
}

/// Columns `from..` of a gradient on a tape. The tape is held weakly: closures on it hold variables.
#[derive(Clone)]
struct Place {
    tape: Weak<Mutex<Inner>>,
    /// Whether no backward pass has ended since the variable was made; after it the slot may be another variable's.
    alive: Arc<AtomicBool>,
    slot: usize,
    from: usize,
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
    /// The numbers.
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

    /// Where its gradient goes; none for a constant, and for a variable older than the last backward pass.
    fn place(&self) -> Option<&Place> {
        self.place.as_ref().filter(|place| place.alive.load(Ordering::Acquire))
    }

    /// The same numbers as a constant: where truncated backpropagation stops.
    pub fn detach(&self) -> Var {
        self.value.clone().into()
    }

    /// Columns `from..from + cols` of every row; its gradient is those columns of this one's.
    ///
    /// # Panics
    /// If the range is not inside the last dimension.
    pub fn columns(&self, from: usize, cols: usize) -> Var {
        let place = self.place.clone().map(|place| Place { from: place.from + from, ..place });
        Var { value: self.value.columns(from, cols), place, recipe: None }
    }

    /// The same numbers under another shape with the same last dimension (any shape for a variable not yet cut).
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Var {
        Var { value: self.value.reshape(shape), place: self.place.clone(), recipe: None }
    }
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tape that records nothing but which parameters are used.
    fn noting() -> Self {
        Self { notes_only: true, ..Self::default() }
    }

    /// Parameters that were asked for since the last [`backward`](Self::backward).
    fn noted(&self) -> Vec<ParamId> {
        let mut noted: Vec<ParamId> = lock(&self.inner).params.keys().copied().collect();
        noted.sort_unstable();
        noted
    }

    /// Notes parameters as used, on a tape that notes only.
    fn note(&self, params: Vec<ParamId>) {
        let mut inner = lock(&self.inner);
        params.into_iter().for_each(|id| _ = inner.params.entry(id).or_insert(usize::MAX));
    }

    /// Whether operations on its variables are recorded.
    pub(crate) fn records(&self) -> bool {
        !self.notes_only
    }

    /// A variable that wants a gradient and that nothing computed: an input to differentiate by.
    pub fn leaf(&self, value: Tensor) -> Var {
        let mut inner = lock(&self.inner);
        let slot = inner.new_slot(&value);
        Var { place: Some(inner.place(&self.inner, slot)), ..value.into() }
    }

    /// The variable of a parameter: the same gradient, in f32, however often it is asked for.
    pub(crate) fn param(&self, id: ParamId, value: &Tensor) -> Var {
        let mut inner = lock(&self.inner);
        let slot = match inner.params.get(&id) {
            Some(&slot) => slot,
            None => {
                let slot = inner.new_slot(value);
                (inner.slots[slot].dtype, inner.slots[slot].param) = (DType::F32, Some(id));
                inner.params.insert(id, slot);
                slot
            }
        };
        if self.notes_only {
            return value.clone().into();
        }
        Var { place: Some(inner.place(&self.inner, slot)), ..value.clone().into() }
    }

    /// Differentiates `output`, whose own gradient is `seed` everywhere, by every parameter used since the last call;
    /// gradients are added to `into`. The tape is empty afterwards.
    ///
    /// # Errors
    /// What an operation's backward says.
    pub fn backward(&self, output: &Var, seed: f32, into: &mut ParamGrads) -> Result<()> {
        self.backward_with(output, seed, into, &mut |_| Ok(()))
    }

    /// [`backward`](Self::backward), telling `is_final` of each parameter used since the last call, once, as soon as no
    /// operation that is left adds to its gradient: parameters of late layers come first. On a GPU the gradient is then
    /// in `into`, as far as the device has come; on the processor it is there at the end.
    ///
    /// # Errors
    /// What an operation's backward says, or `is_final`.
    pub fn backward_with(
        &self,
        output: &Var,
        seed: f32,
        into: &mut ParamGrads,
        is_final: &mut Final<'_>,
    ) -> Result<()> {
        // On the processor, wherever the output is: an operation may read it without waiting for a device.
        let seed = Tensor::new(vec![seed; output.value.len()], output.shape());
        self.differentiate(&[(output, seed)], into, is_final).map(drop)
    }

    /// Differentiates Σ ⟨gradient, output⟩ by every parameter, added to `into`, and by every leaf: the returned
    /// gradients still hold those of variables made by [`leaf`](Self::leaf).
    ///
    /// # Errors
    /// What an operation's backward says.
    pub fn backward_from(&self, outputs: &[(&Var, Tensor)], into: &mut ParamGrads) -> Result<Grads> {
        self.differentiate(outputs, into, &mut |_| Ok(()))
    }

    fn differentiate(
        &self,
        outputs: &[(&Var, Tensor)],
        into: &mut ParamGrads,
        is_final: &mut Final<'_>,
    ) -> Result<Grads> {
        let Inner { slots, mut nodes, params, alive } = std::mem::take(&mut *lock(&self.inner));
        let _ended = Ended(alive.clone());
        // How many operations are left that add to a parameter's gradient.
        let mut left: HashMap<ParamId, usize> = params.keys().map(|&id| (id, 0)).collect();
        nodes.iter().flat_map(|node| &node.params).for_each(|&id| *left.entry(id).or_default() += 1);
        let mut grads = Grads::new(slots, alive);
        grads.recomputed = into.alias();
        for (&id, &slot) in &params {
            if let Some(sum) = into.take(id) {
                grads.put_whole(slot, sum);
            }
        }
        for (output, gradient) in outputs {
            grads.give(output, gradient.clone())?;
        }
        while let Some(node) = nodes.pop() {
            if node.outputs.iter().any(|&slot| grads.has(slot)) {
                (node.backward)(&mut grads)?;
            }
            node.outputs.iter().for_each(|&slot| grads.forget(slot));
            for id in node.params {
                let uses = left.entry(id).or_default();
                *uses -= 1;
                if *uses == 0 {
                    left.remove(&id);
                    is_final(id)?;
                }
            }
        }
        // What was asked for and used by nothing.
        let mut unused: Vec<ParamId> = left.into_keys().collect();
        unused.sort_unstable();
        unused.into_iter().try_for_each(is_final)?;
        for (&id, &slot) in &params {
            if let Some(sum) = grads.take_whole(slot)? {
                into.put(id, sum);
            }
        }
        into.merge(std::mem::take(&mut grads.recomputed))?;
        Ok(grads)
    }
}

/// Marks the variables of a backward pass as constants when it ends, with or without an error.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Inner {
    fn output(&mut self, tape: &Arc<Mutex<Inner>>, value: Tensor) -> Var {
        let slot = self.new_slot(&value);
        Var { place: Some(self.place(tape, slot)), ..value.into() }
    }

    fn push(&mut self, inputs: &[&Var], recomputed: Vec<ParamId>, outputs: &[Var], backward: Backward) {
        let outputs = outputs.iter().filter_map(Var::place).map(|place| place.slot).collect();
        let places = inputs.iter().filter_map(|v| v.place());
        let mut params: Vec<ParamId> = places.filter_map(|place| self.slots[place.slot].param).collect();
        params.extend(recomputed);
        self.nodes.push(Node { outputs, params, backward });
    }

    fn place(&self, tape: &Arc<Mutex<Inner>>, slot: usize) -> Place {
        Place { tape: Arc::downgrade(tape), alive: self.alive.clone(), slot, from: 0 }
    }

    fn new_slot(&mut self, value: &Tensor) -> usize {
        self.slots.push(Form::of(value));
        self.slots.len() - 1
    }
}

/// Makes variables of an operation's outputs and, if an input wants a gradient, records `backward`.
///
/// `backward` gets the gradients, and the outputs without their numbers: it takes the gradients of the outputs with
/// [`Grads::take`] and writes those of the inputs with [`Grads::write`]. It is only called if a gradient arrived at one
/// output at least.
pub(crate) fn record<const N: usize>(
    inputs: &[&Var],
    outputs: [Tensor; N],
    backward: impl FnOnce(&mut Grads, &[Var; N]) -> Result<()> + Send + 'static,
) -> [Var; N] {
    let Some(tape) = tape_of(inputs) else { return outputs.map(Var::from) };
    let mut inner = lock(&tape);
    let vars = outputs.map(|value| inner.output(&tape, value));
    let kept = vars.each_ref().map(Var::without_numbers);
    inner.push(inputs, Vec::new(), &vars, Box::new(move |grads| backward(grads, &kept)));
    vars
}

/// [`record`] on a given tape, whether or not an input wants a gradient, for a number of outputs known at run time and a
/// backward that also adds to the gradients of `recomputed`.
fn record_on(
    tape: &Tape,
    inputs: &[&Var],
    recomputed: Vec<ParamId>,
    outputs: Vec<Tensor>,
    backward: impl FnOnce(&mut Grads, &[Var]) -> Result<()> + Send + 'static,
) -> Vec<Var> {
    let mut inner = lock(&tape.inner);
    let vars: Vec<Var> = outputs.into_iter().map(|value| inner.output(&tape.inner, value)).collect();
    let kept: Vec<Var> = vars.iter().map(Var::without_numbers).collect();
    inner.push(inputs, recomputed, &vars, Box::new(move |grads| backward(grads, &kept)));
    vars
}

fn tape_of(inputs: &[&Var]) -> Option<Arc<Mutex<Inner>>> {
    let tape = inputs.iter().find_map(|x| x.place())?.tape.upgrade();
    debug_assert!(
        tape.as_ref().is_none_or(|tape| inputs.iter().all(|x| x.is_of(tape))),
        "an operation on variables of two tapes"
    );
    tape
}

impl Var {
    /// Whether it is a constant or a variable of this tape.
    fn is_of(&self, tape: &Arc<Mutex<Inner>>) -> bool {
        self.place().is_none_or(|place| std::ptr::eq(place.tape.as_ptr(), Arc::as_ptr(tape)))
    }

    /// The gradient's place and the shape alone, so that a closure does not keep numbers it does not need.
    pub(crate) fn without_numbers(&self) -> Var {
        Var { value: self.value.shape_only(), place: self.place.clone(), recipe: None }
    }
}
