//! What a model is trained for: its batches, its loss, what a validation measures.
//!
//! An objective is one file with an [`Objective`]; the trainer knows nothing else of it. Batch `index` is a function of the
//! seed and the index alone, so that a run resumes with nothing but a number.

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
