//! Trading time for memory: a part that is computed again on the way back.

use std::sync::Arc;

use super::{Tape, Var, record_many};
use crate::Result;

/// Computes `f(inputs)` without remembering anything but the inputs; backward computes it again, on a tape of its own.
///
/// `f` gets the tape to take parameters from: in the forward one that only notes which they are, in the backward the
/// inner one.
///
/// # Errors
/// What `f` says.
pub fn checkpoint(
    inputs: &[Var],
    f: impl Fn(&Arc<Tape>, Vec<Var>) -> Result<Vec<Var>> + Send + 'static,
) -> Result<Vec<Var>> {
    let noting = Arc::new(Tape::noting());
    let outputs = f(&noting, inputs.iter().map(Var::detach).collect())?;
    let (kept, params) = (inputs.to_vec(), noting.noted());
    let outputs = outputs.iter().map(|y| y.value().clone()).collect();
    Ok(record_many(&inputs.iter().collect::<Vec<_>>(), params, outputs, move |grads, outputs| {
        let tape = Arc::new(Tape::new());
        let leaves: Vec<Var> = kept.iter().map(|x| tape.leaf(x.value().clone())).collect();
        let again = f(&tape, leaves.clone())?;
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
