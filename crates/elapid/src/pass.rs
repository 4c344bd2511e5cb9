//! One forward pass: its parameters, its tape if gradients are needed, and its layout.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use elapid_kernels::reuse::List;

use crate::Layout;
use crate::autograd::{Tape, Var};
use crate::ops::{self, Seeds, Unit};
use crate::params::{ParamId, Params};
use crate::trace::Trace;
use crate::{Error, Result, Tensor};

/// The context of a forward pass: the parameters, the tape if gradients are needed, and the layout.
#[derive(Clone)]
pub struct Cx {
    params: Arc<Params>,
    tape: Option<Arc<Tape>>,
    steps: Option<Arc<Steps>>,
    trace: Option<Arc<Trace>>,
    observed: Option<Arc<Observed>>,
    /// Inputs of layers besides the stream: the embedding, or what the pass is conditioned on.
    given: Vec<Var>,
    trains: bool,
    seeds: Option<Seeds>,
    side_losses: Arc<Mutex<Vec<Side>>>,
    /// Rows, positions, padding and document boundaries.
    pub layout: Layout,
}

impl Cx {
    /// A pass over positions with this layout; operations are recorded if there is a tape.
    pub fn new(params: Arc<Params>, tape: Option<Arc<Tape>>, layout: Layout) -> Self {
        let side_losses = Arc::default();
        Self {
            params,
            tape,
            steps: None,
            trace: None,
            observed: None,
            given: Vec::new(),
            trains: false,
            seeds: None,
            side_losses,
            layout,
        }
    }

    /// The same pass as part of training: what a layer does in training alone (capacity of experts, side losses) it does.
    #[must_use]
    pub fn in_training(self) -> Self {
        Self { trains: true, ..self }
    }

    /// Whether the pass is part of training.
    pub fn trains(&self) -> bool {
        self.trains
    }

    /// The same pass, with what random numbers of training follow from.
    #[must_use]
    pub fn with_seeds(self, seeds: Seeds) -> Self {
        Self { seeds: Some(seeds), ..self }
    }

    /// x `[b l d]` after dropout at a rate, in training; else x. `place` tells the uses of one pass apart.
    ///
    /// # Errors
    /// If the pass trains without [`with_seeds`](Self::with_seeds); those of [`ops::dropout`].
    pub(crate) fn dropout(&self, x: Var, place: u64, rate: f32, unit: Unit) -> Result<Var> {
        if !self.trains || rate == 0.0 {
            return Ok(x);
        }
        let missing = || Error::Argument("dropout in a pass of training without a seed: see `Cx::with_seeds`".into());
        ops::dropout(&x, self.seeds.as_ref().ok_or_else(missing)?, place, rate, unit, self.layout.l)
    }

    /// One of many passes over the same parameters, each continuing from the state of the previous one. On a GPU a pass over
    /// a single position may update its state in place, and values derived only from parameters are cached.
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

    /// Passes one of a layer's values to the trace, once per pass; computed only if the trace needs it.
    ///
    /// # Errors
    /// Those of `value`.
    pub fn trace(&self, name: &str, value: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.trace.as_ref().map_or(Ok(()), |trace| trace.add(name, value))
    }

    /// The same pass, which notes the mean squares of what weights are multiplied by.
    #[must_use]
    pub(crate) fn observed_by(self, observed: &Arc<Observed>) -> Self {
        Self { observed: Some(observed.clone()), ..self }
    }

    /// Notes that a weight `[n k]` is multiplied by x `[.. k]`.
    pub(crate) fn observe(&self, weight: ParamId, x: &Var) -> Result<()> {
        self.observed.as_ref().map_or(Ok(()), |observed| observed.add(weight, x.value()))
    }

    /// The variable of a parameter; a constant if the parameter is not trained.
    pub fn param(&self, id: ParamId) -> Var {
        let value = self.params.value(id);
        let tape = self.tape.as_ref().filter(|_| self.params.get(id).traits.trainable);
        tape.map_or_else(|| value.clone().into(), |tape| tape.param(id, value))
    }

    /// Whether operations are recorded. A layer must not depend on this: it must compute the same in both passes of a
    /// recomputed segment, of which only one records.
    pub(crate) fn tape(&self) -> Option<&Arc<Tape>> {
        self.tape.as_ref()
    }

    /// The same pass, in which layers can read these variables besides their input ([`given`](Self::given)).
    #[must_use]
    pub fn with_given(self, given: Vec<Var>) -> Self {
        Self { given, ..self }
    }

    /// Variable `i` of [`with_given`](Self::with_given).
    ///
    /// # Errors
    /// If there are fewer.
    pub fn given(&self, i: usize) -> Result<&Var> {
        let missing =
            || Error::Argument(format!("a layer reads given variable {i}; the pass has {}", self.given.len()));
        self.given.get(i).ok_or_else(missing)
    }

    /// Adds a scalar loss of a layer, such as the load balance of experts, to that of the model with weight `weight`.
    pub fn side_loss(&self, loss: Var, weight: f32) {
        self.add_side(Side { value: loss, weight, joint: false });
    }

    /// Adds the spread of a router ([`ops::spread`]) to those whose common load balance is a loss with weight `weight`.
    pub fn balanced_together(&self, spread: Var, weight: f32) {
        self.add_side(Side { value: spread, weight, joint: true });
    }

    pub(crate) fn add_side(&self, side: Side) {
        self.side_losses.lock().unwrap_or_else(PoisonError::into_inner).push(side);
    }

    /// Moves out what side losses are made of.
    pub(crate) fn take_sides(&self) -> Vec<Side> {
        std::mem::take(&mut *self.side_losses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Moves out the side losses so far, with their weights.
    ///
    /// # Errors
    /// If routers that are balanced together have different numbers of experts.
    pub fn take_side_losses(&self) -> Result<Vec<(Var, f32)>> {
        let (joint, alone): (Vec<Side>, Vec<Side>) = self.take_sides().into_iter().partition(|side| side.joint);
        let mut losses: Vec<(Var, f32)> = alone.into_iter().map(|side| (side.value, side.weight)).collect();
        if let Some(first) = joint.first() {
            let weight = first.weight;
            let spreads: Vec<Var> = joint.into_iter().map(|side| side.value).collect();
            losses.push((ops::balance(&spreads)?, weight));
        }
        Ok(losses)
    }

    /// The same pass with another layout.
    #[must_use]
    pub fn laid_out(&self, layout: Layout) -> Self {
        Self { layout, ..self.clone() }
    }

    /// The same pass, whose rows have read this many positions of their documents.
    pub(crate) fn starting(&self, starts: List<u64>) -> Self {
        self.laid_out(Layout { starts: Some(starts), ..self.layout.clone() })
    }

    /// The variables that a recomputed segment takes as inputs besides its stream.
    pub(crate) fn captured(&self) -> impl Iterator<Item = &Var> {
        self.given.iter()
    }

    /// The same pass on another tape, with separate side losses; `captured` replaces what [`captured`](Self::captured)
    /// returned.
    pub(crate) fn on(&self, tape: &Arc<Tape>, captured: &mut impl Iterator<Item = Var>) -> Self {
        let given = self.given.iter().map(|var| captured.next().unwrap_or_else(|| var.detach())).collect();
        Self { tape: Some(tape.clone()), given, side_losses: Arc::default(), ..self.clone() }
    }
}

/// Sums of squares of the inputs of weights, column by column.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    sums: Mutex<HashMap<ParamId, (Vec<f64>, usize)>>,
}

impl Observed {
    fn add(&self, weight: ParamId, x: &Tensor) -> Result<()> {
        let (values, k) = (x.to_vec()?, x.cols());
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let (sums, rows) = sums.entry(weight).or_insert_with(|| (vec![0.0; k], 0));
        for row in values.chunks_exact(k.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            *rows += 1;
        }
        Ok(())
    }

    /// The means, of every weight that was multiplied by something.
    pub(crate) fn means(&self) -> HashMap<ParamId, Vec<f32>> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let mean = |(sums, rows): &(Vec<f64>, usize)| sums.iter().map(|sum| (sum / *rows as f64) as f32).collect();
        sums.iter().map(|(&id, sums)| (id, mean(sums))).collect()
    }
}

/// What a side loss is made of.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// The loss, or a router's spread.
    pub(crate) value: Var,
    pub(crate) weight: f32,
    /// Whether it is one of the spreads whose common balance is a loss.
    pub(crate) joint: bool,
}

/// Values shared by passes over the same parameters.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    derived: Mutex<HashMap<ParamId, Var>>,
}
