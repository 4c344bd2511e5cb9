//! Trading time for memory: a segment that is recomputed in the backward pass.

use std::sync::Arc;

use super::tape::{Tape, record_on};
use super::var::Var;
use crate::{Error, Result};

/// Computes `f(inputs)` and stores only the inputs; the backward pass recomputes it on an inner tape.
///
/// The segment is recorded on `tape` even if all inputs are constants, as its parameters may need gradients. `f` receives
/// the tape to take parameters from: in the forward pass one that only notes which are used, in the backward pass the inner
/// one. It must compute the same outputs in both, and the same number of them. Variables that it captures, instead of taking
/// them from its inputs, must be constants.
///
/// # Errors
/// Those of `f`; if an input is a variable of another tape; in the backward pass, if `f` then returns another number of
/// outputs.
pub fn checkpoint(
    tape: &Tape,
    inputs: &[Var],
    f: impl Fn(&Arc<Tape>, Vec<Var>) -> Result<Vec<Var>> + Send + 'static,
) -> Result<Vec<Var>> {
    if let Some(stranger) = inputs.iter().position(|x| !x.is_of(&tape.inner)) {
        let reason = "record all of a pass on one tape, or detach it";
        return Err(Error::Argument(format!(
            "input {stranger} of a recomputed segment belongs to another tape; {reason}"
        )));
    }
    let noting = Arc::new(Tape::noting());
    let outputs = f(&noting, inputs.iter().map(Var::detach).collect())?;
    let outputs: Vec<_> = outputs.iter().map(|y| y.value().clone()).collect();
    if !tape.records() {
        // An outer segment also notes the parameters of this one.
        tape.note(noting.noted());
        return Ok(outputs.into_iter().map(Var::from).collect());
    }
    let (kept, params) = (inputs.to_vec(), noting.noted());
    Ok(record_on(tape, &inputs.iter().collect::<Vec<_>>(), params, outputs, move |grads, outputs| {
        let tape = Arc::new(Tape::new());
        let leaves: Vec<Var> = kept.iter().map(|x| tape.leaf(x.value().clone())).collect();
        let again = f(&tape, leaves.clone())?;
        if again.len() != outputs.len() {
            let reason = "a layer must compute the same with and without recording";
            let (now, before) = (again.len(), outputs.len());
            return Err(Error::Argument(format!("a recomputed segment has {now} outputs, and had {before}; {reason}")));
        }
        let mut seeds = Vec::new();
        for (y, out) in again.iter().zip(outputs) {
            seeds.extend(grads.take(out)?.map(|dy| (y, dy)));
        }
        let mut params = std::mem::take(&mut grads.recomputed);
        let mut inner = tape.backward_from(&seeds, &mut params)?;
        grads.recomputed = params;
        for (x, leaf) in kept.iter().zip(&leaves) {
            if let Some(dx) = inner.take(leaf)? {
                grads.give(x, dx)?;
            }
        }
        Ok(())
    }))
}
