//! Weights on the disk, in the layout of Hugging Face: `config.json` beside `model.safetensors`, or beside shards and
//! `model.safetensors.index.json`.
//!
//! Tensors go by their Hugging Face names (`backbone.layers.0.mixer.in_proj.weight`); those of other writers are translated
//! (`names`). Files are hostile until parsed: nothing is allocated, indexed or believed before it was checked.

mod card;
mod elsewhere;
mod error;
mod header;
mod names;
mod open;
mod reader;
mod save;

pub use card::Card;
pub use error::CheckpointError;
pub use reader::Checkpoint;
pub use safetensors::Dtype;
pub use save::{Named, SaveDtype, SaveOptions, save};

#[cfg(test)]
mod tests;
