//! Models: what stands around a stack of layers. Each is a language model's core with a head of its own.

mod model;
mod sequence;

pub use model::Model;
pub use sequence::{Form, Sequence, SequenceModel};
