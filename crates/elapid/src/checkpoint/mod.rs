//! Weights on disk in the Hugging Face layout: `config.json` beside `model.safetensors`, or beside shards and
//! `model.safetensors.index.json`.
//!
//! Tensors have their Hugging Face names (`backbone.layers.0.mixer.in_proj.weight`); those of other programs are translated
//! (`names`). Files are treated as hostile: nothing is allocated, indexed or trusted before it was checked.

mod card;
mod elsewhere;
mod error;
mod header;
mod names;
mod open;
mod packed;
mod reader;
mod save;

pub use card::Card;
pub use error::CheckpointError;
pub use reader::Checkpoint;
pub use safetensors::Dtype;
pub use save::{Named, SaveDtype, SaveOptions, Values, save};

#[cfg(test)]
mod tests;
