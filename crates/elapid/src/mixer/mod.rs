//! Sequence mixers: what lets positions of a sequence see each other.
//!
//! A new one is one file here that implements [`Mixer`], one variant of [`MixerConfig`],
//! and one line of [`build`].

mod mamba1;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use mamba1::Mamba1;

use crate::autograd::{Tape, Var};
use crate::config::{MixerConfig, ModelConfig};
use crate::ops::Layout;
use crate::params::{ParamBuilder, ParamId, Params};
use crate::trace::Trace;
use crate::{Result, Tensor};

/// What a forward pass runs with: the parameters, the tape if gradients are wanted, and how the positions lie.
#[derive(Clone)]
pub struct Cx {
    params: Arc<Params>,
    tape: Option<Arc<Tape>>,
    steps: Option<Arc<Steps>>,
    trace: Option<Arc<Trace>>,
    /// Rows, positions, padding and document borders.
    pub layout: Layout,
}

impl Cx {
    /// A pass over positions laid out as `layout`; operations are recorded if there is a tape.
    pub fn new(params: Arc<Params>, tape: Option<Arc<Tape>>, layout: Layout) -> Self {
        Self { params, tape, steps: None, trace: None, layout }
    }

    /// A pass that is one of many over the same parameters, each from the state that the last one left: on a GPU a single
    /// position may leave its state in the memory of the one before, and what is made of parameters alone is kept.
    pub(crate) fn stepping(self, steps: &Arc<Steps>) -> Self {
        Self { steps: Some(steps.clone()), ..self }
    }

    /// Whether the state may be moved on where it lies.
    pub fn in_place(&self) -> bool {
        self.steps.is_some()
    }

    /// What `of` makes of a parameter.
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

    /// The same pass, looked into.
    #[must_use]
    pub fn traced(self, trace: &Arc<Trace>) -> Self {
        Self { trace: Some(trace.clone()), ..self }
    }

    /// A mixer says what one of its values is, once a pass: computed only if someone looks.
    ///
    /// # Errors
    /// Those of `value`.
    pub fn trace(&self, name: &str, value: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.trace.as_ref().map_or(Ok(()), |trace| trace.add(name, value))
    }

    /// The variable of a parameter.
    pub fn param(&self, id: ParamId) -> Var {
        let value = self.params.value(id);
        self.tape.as_ref().map_or_else(|| value.clone().into(), |tape| tape.param(id, value))
    }

    /// Whether operations are recorded.
    pub fn records(&self) -> bool {
        self.tape.as_ref().is_some_and(|tape| tape.records())
    }

    /// The same pass over positions laid out another way.
    pub(crate) fn laid_out(&self, layout: Layout) -> Self {
        Self { layout, ..self.clone() }
    }

    /// The same pass on another tape.
    pub(crate) fn on(&self, tape: &Arc<Tape>) -> Self {
        Self { tape: Some(tape.clone()), ..self.clone() }
    }
}

/// What passes over the same parameters keep for each other.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    derived: Mutex<HashMap<ParamId, Var>>,
}

/// One tensor of a mixer's state, of a single sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateTensor {
    /// Short name: `conv`, `ssm`.
    pub name: &'static str,
    /// Shape without the batch.
    pub shape: Vec<usize>,
}

/// What one position costs in the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Additions, multiplications and exponentials.
    pub flops: u64,
    /// Parameters read.
    pub params: u64,
    /// Numbers of state of one sequence, read and written.
    pub state: u64,
    /// Elements that exist at the same time: in training those kept for the backward pass, else those of one layer.
    pub kept: u64,
}

impl std::ops::Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            params: self.params + other.params,
            state: self.state + other.state,
            kept: self.kept + other.kept,
        }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |sum, cost| sum + cost)
    }
}

/// A map from sequences to sequences that carries a state.
///
/// The contract, for any split of a sequence: `forward(a ++ b, S)` equals `forward(b, state of forward(a, S))` in
/// outputs, final state and gradients; without a tape, bit for bit.
pub trait Mixer: std::fmt::Debug + Send + Sync {
    /// y and the state after the last position, from x `[b l d_model]` and the state before the first.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn forward(&self, cx: &Cx, x: &Var, state: &[Var]) -> Result<(Var, Vec<Var>)>;

    /// The tensors of its state.
    fn state(&self) -> Vec<StateTensor>;

    /// What a position costs.
    fn cost(&self) -> Cost;

    /// Mamba-1 has a step of the whole model in one launch on a GPU.
    fn as_mamba1(&self) -> Option<&Mamba1> {
        None
    }
}

/// The registry: the mixer that a configuration asks for, its parameters' names starting with `prefix`.
///
/// # Errors
/// If the source of parameters lacks one.
pub fn build(config: &ModelConfig, prefix: &str, params: &mut ParamBuilder<'_>) -> Result<Arc<dyn Mixer>> {
    match &config.mixer {
        MixerConfig::Mamba1(mamba) => Ok(Arc::new(Mamba1::new(config, mamba, prefix, params)?)),
    }
}
