//! One forward pass: its parameters, its tape if gradients are wanted, and how its positions are laid out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Layout;
use crate::autograd::{Tape, Var};
use crate::params::{ParamId, Params};
use crate::trace::Trace;
use crate::{Error, Result, Tensor};

/// What a forward pass runs with: the parameters, the tape if gradients are wanted, and how the positions lie.
#[derive(Clone)]
pub struct Cx {
    params: Arc<Params>,
    tape: Option<Arc<Tape>>,
    steps: Option<Arc<Steps>>,
    trace: Option<Arc<Trace>>,
    /// What layers read beside their input: the embedding, what a pass is conditioned on.
    given: Vec<Var>,
    side_losses: Arc<Mutex<Vec<(Var, f32)>>>,
    /// Rows, positions, padding and document borders.
    pub layout: Layout,
}

impl Cx {
    /// A pass over positions laid out as `layout`; operations are recorded if there is a tape.
    pub fn new(params: Arc<Params>, tape: Option<Arc<Tape>>, layout: Layout) -> Self {
        Self { params, tape, steps: None, trace: None, given: Vec::new(), side_losses: Arc::default(), layout }
    }

    /// One of many passes over the same parameters, each from the state that the last one left: on a GPU a single position
    /// may update its state in place, and values derived from parameters alone are kept.
    pub(crate) fn stepping(self, steps: &Arc<Steps>) -> Self {
        Self { steps: Some(steps.clone()), ..self }
    }

    /// Whether the state may be updated in place.
    pub fn in_place(&self) -> bool {
        self.steps.is_some()
    }

    /// The value that `of` derives from a parameter, computed once for all passes of a decoder.
    ///
    /// # Errors
    /// Those of `of`.
    pub fn derived(&self, id: ParamId, of: impl FnOnce(&Var) -> Result<Var>) -> Result<Var> {
        let Some(steps) = &self.steps else { return of(&self.param(id)) };
        let mut kept = steps.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&id) {
            return Ok(known.clone());
        }
        Ok(kept.entry(id).insert_entry(of(&self.param(id))?).get().clone())
    }

    /// The same pass, with a trace.
    #[must_use]
    pub fn traced(self, trace: &Arc<Trace>) -> Self {
        Self { trace: Some(trace.clone()), ..self }
    }

    /// Hands one of a layer's values to the trace, once a pass; computed only if the trace wants it.
    ///
    /// # Errors
    /// Those of `value`.
    pub fn trace(&self, name: &str, value: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.trace.as_ref().map_or(Ok(()), |trace| trace.add(name, value))
    }

    /// The variable of a parameter; a constant if it is not trained.
    pub fn param(&self, id: ParamId) -> Var {
        let value = self.params.value(id);
        let tape = self.tape.as_ref().filter(|_| self.params.get(id).traits.trainable);
        tape.map_or_else(|| value.clone().into(), |tape| tape.param(id, value))
    }

    /// Whether operations are recorded. A layer must not ask: it computes the same in both passes of a recomputed segment,
    /// and only one of them records.
    pub(crate) fn tape(&self) -> Option<&Arc<Tape>> {
        self.tape.as_ref()
    }

    /// The same pass, in which layers can read these variables beside their input ([`given`](Self::given)).
    #[must_use]
    pub fn with_given(self, given: Vec<Var>) -> Self {
        Self { given, ..self }
    }

    /// Variable `i` of [`with_given`](Self::with_given).
    ///
    /// # Errors
    /// If there are not as many.
    pub fn given(&self, i: usize) -> Result<&Var> {
        let missing =
            || Error::Argument(format!("a layer reads given variable {i}; the pass has {}", self.given.len()));
        self.given.get(i).ok_or_else(missing)
    }

    /// Adds a loss of its own to that of the model, `weight` times: a scalar, such as the balance of experts.
    pub fn side_loss(&self, loss: Var, weight: f32) {
        self.side_losses.lock().unwrap_or_else(PoisonError::into_inner).push((loss, weight));
    }

    /// The side losses so far with their weights, moved out.
    pub fn take_side_losses(&self) -> Vec<(Var, f32)> {
        std::mem::take(&mut *self.side_losses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same pass over positions laid out another way.
    #[must_use]
    pub fn laid_out(&self, layout: Layout) -> Self {
        Self { layout, ..self.clone() }
    }

    /// The same pass, whose rows have read as many positions of their documents.
    pub(crate) fn starting(&self, starts: Vec<u64>) -> Self {
        let starts = Some(starts.into());
        self.laid_out(Layout { starts, ..self.layout.clone() })
    }

    /// The variables that a recomputed segment takes as inputs beside its stream.
    pub(crate) fn captured(&self) -> impl Iterator<Item = &Var> {
        self.given.iter()
    }

    /// The same pass on another tape, with side losses of its own; `captured` replaces what
    /// [`captured`](Self::captured) returned.
    pub(crate) fn on(&self, tape: &Arc<Tape>, captured: &mut impl Iterator<Item = Var>) -> Self {
        let given = self.given.iter().map(|var| captured.next().unwrap_or_else(|| var.detach())).collect();
        Self { tape: Some(tape.clone()), given, side_losses: Arc::default(), ..self.clone() }
    }
}

/// Values that passes over the same parameters share.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    derived: Mutex<HashMap<ParamId, Var>>,
}
