//! Selective state space models: Mamba and its relatives.
#![deny(unsafe_code)]

pub mod autograd;
mod block;
pub mod checkpoint;
pub mod config;
pub mod embedded;
mod error;
pub mod evaluate;
pub mod files;
pub mod generate;
pub mod lm;
pub mod mixer;
pub mod ops;
pub mod params;
pub mod state;
mod tensor;
pub mod text;
pub mod tokenizer;

pub use error::{Error, Result};
pub use lm::LanguageModel;
pub use state::State;
pub use tensor::{Device, Tensor};
