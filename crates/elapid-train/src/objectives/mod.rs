//! What a model is trained for: its batches, its loss, its validation.
//!
//! An objective is one file with an [`Objective`]; the trainer uses nothing else of it. Batch `index` is a function of the
//! seed and the index alone, so a run needs only a step number to resume.

mod batch;
mod classify;
mod labelled;
mod language;
mod masked;
mod objective;
mod regress;
mod task;

pub use batch::{Array, ArraySpec, Batch, Inputs, Kind};
pub use classify::Classify;
pub use labelled::{Example, Labelled, Positions};
pub use language::{Feed, HeldOut, Language};
pub use masked::Masked;
pub use objective::{Objective, ObjectiveOf, Validation};
pub use regress::Regress;
pub use task::SyntheticTask;
