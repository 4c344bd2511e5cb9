//! The tape: records operations, and runs their backward passes from last to first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use elapid_kernels::DType;

use super::slots::Grads;
use super::var::{Inner, Var, lock};
use crate::params::{ParamGrads, ParamId};
use crate::{Result, Tensor};

/// The operations since the last [`backward`](Tape::backward) that gradients depend on.
#[derive(Default)]
pub struct Tape {
    pub(super) inner: Arc<Mutex<Inner>>,
    /// Whether it only notes which parameters are used, and makes constants of them.
    notes_only: bool,
}

/// Called with each parameter whose gradient is complete.
pub type Final<'a> = dyn FnMut(ParamId) -> Result<()> + 'a;

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tape that only records which parameters are used.
    pub(super) fn noting() -> Self {
        Self { notes_only: true, ..Self::default() }
    }

    /// Parameters used since the last [`backward`](Self::backward).
    pub(super) fn noted(&self) -> Vec<ParamId> {
        let mut noted: Vec<ParamId> = lock(&self.inner).params.keys().copied().collect();
        noted.sort_unstable();
        noted
    }

    /// Marks parameters as used, on a tape that only notes them.
    pub(super) fn note(&self, params: Vec<ParamId>) {
        let mut inner = lock(&self.inner);
        params.into_iter().for_each(|id| _ = inner.params.entry(id).or_insert(usize::MAX));
    }

    /// Whether operations on its variables are recorded.
    pub(crate) fn records(&self) -> bool {
        !self.notes_only
    }

    /// A leaf: an input to differentiate with respect to.
    pub fn leaf(&self, value: Tensor) -> Var {
        let mut inner = lock(&self.inner);
        let slot = inner.new_slot(&value);
        Var { place: Some(inner.place(&self.inner, slot)), ..value.into() }
    }

    /// The variable of a parameter; all calls for the same parameter share one gradient, in f32.
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

    /// Differentiates losses, each with its weight as the gradient of every element, with respect to every parameter used
    /// since the last call; gradients are added to `into`. The tape is empty afterwards. Losses are weighted and added here,
    /// and not by an operation, because an operation that computes a loss may compute its gradients in the forward pass.
    ///
    /// `is_final` is called once for each parameter used since the last call, as soon as no remaining operation adds to its
    /// gradient; parameters of late layers come first. On a GPU the gradient is in `into` at that point of the device's
    /// work; on the CPU it is there at the end.
    ///
    /// # Errors
    /// Those of an operation's backward, or of `is_final`.
    pub fn backward(&self, losses: &[(&Var, f32)], into: &mut ParamGrads, is_final: &mut Final<'_>) -> Result<()> {
        // On the CPU, wherever the loss is, so that an operation can read its weight without waiting for a device.
        let seed = |loss: &Var, weight| Tensor::new(vec![weight; loss.value.len()], loss.shape());
        let outputs: Vec<(&Var, Tensor)> = losses.iter().map(|&(loss, weight)| (loss, seed(loss, weight))).collect();
        self.differentiate(&outputs, into, is_final).map(drop)
    }

    /// Differentiates Σ ⟨gradient, output⟩ with respect to every parameter, added to `into`, and every leaf: the returned
    /// gradients still hold those of variables made by [`leaf`](Self::leaf).
    ///
    /// # Errors
    /// Those of an operation's backward.
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
        // How many remaining operations add to a parameter's gradient.
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
        // Parameters that were requested but not used by any operation.
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

/// Makes variables of an operation's outputs and, if an input needs a gradient, records `backward`.
///
/// `backward` receives the gradients, and the outputs without their values. It takes the gradients of the outputs with
/// [`Grads::take`] and writes those of the inputs with [`Grads::write`]. It is only called if at least one output received a
/// gradient.
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

/// [`record`] on a given tape, whether or not an input needs a gradient, for a number of outputs known at run time, and a
/// backward that also adds to the gradients of `recomputed`.
pub(super) fn record_on(
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
