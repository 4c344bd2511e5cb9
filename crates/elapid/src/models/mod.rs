//! Models around a stack of layers. Each is the core of a language model with its own head.

mod model;
mod sequence;

pub use model::Model;
pub use sequence::{Form, Sequence, SequenceModel};
