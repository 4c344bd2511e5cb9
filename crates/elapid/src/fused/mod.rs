//! Decoding steps of a whole model in few launches: the only place that depends on the family of a layer.
//!
//! A plan looks at a model, its device, dtype and sizes, and either builds a step for it or declines. A decoder asks the
//! plans in order ([`plan`]) and otherwise captures the model's operations as a graph.

mod mamba1;
mod mamba2;
mod step;

use std::sync::Arc;

use elapid_kernels::cuda::Buffer;

use crate::Result;
use crate::lm::LanguageModel;
use crate::state::State;

pub(crate) use step::FusedStep;

/// Builds the step of a model that reads the ids in a buffer and updates a state; none if the plan does not support the
/// model.
type Plan = fn(&LanguageModel, &State, &Arc<Buffer>) -> Result<Option<Box<dyn FusedStep>>>;

/// One line per family.
const PLANS: &[Plan] = &[mamba1::plan, mamba2::plan];

/// The fused step of a model, if a plan has one.
///
/// # Errors
/// If the device has too little memory.
pub(crate) fn plan(model: &LanguageModel, state: &State, ids: &Arc<Buffer>) -> Result<Option<Box<dyn FusedStep>>> {
    for plan in PLANS {
        if let Some(step) = plan(model, state, ids)? {
            return Ok(Some(step));
        }
    }
    Ok(None)
}
