//! Trading time for memory: a part that is computed again on the way back.

use std::sync::Arc;

use super::{Tape, Var, record_many};
use crate::Result;
use crate::params::ParamGrads;

/// Computes `f(inputs)` without remembering anything but the inputs; backward computes it again, on a tape of its own.
///
/// `f` gets the tape to take parameters from: none in the forward, the inner one in the backward.
///
/// # Errors
/// What `f` says.
pub fn checkpoint(
    inputs: &[Var],
    f: impl Fn(Option<&Arc<Tape>>, Vec<Var>) -> Result<Vec<Var>> + Send + 'static,
) -> Result<Vec<Var>> {
    let outputs = f(None, inputs.iter().map(Var::detach).collect())?;
    let kept = inputs.to_vec();
    let outputs = outputs.iter().map(|y| y.value().clone()).collect();
    Ok(record_many(&inputs.iter().collect::<Vec<_>>(), outputs, move |grads, outputs| {
        let tape = Arc::new(Tape::new());
        let leaves: Vec<Var> = kept.iter().map(|x| tape.leaf(x.value().clone())).collect();
        let again = f(Some(&tape), leaves.clone())?;
        let seeds: Vec<_> = again.iter().zip(outputs).filter_map(|(y, out)| Some((y, grads.take(out)?))).collect();
        let mut params = ParamGrads::default();
        let mut inner = tape.backward_from(&seeds, &mut params)?;
        grads.recomputed.merge(params);
        for (x, leaf) in kept.iter().zip(&leaves) {
            if let Some(dx) = inner.take(leaf) {
                grads.give(x, dx);
            }
        }
        Ok(())
    }))
}
