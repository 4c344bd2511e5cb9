//! Selective state space models: Mamba and its relatives.
//!
//! Mamba (Gu and Dao 2023) replaces attention by a linear recurrence whose parameters depend on the input,
//! h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t, y_t = C_t h_t + D x_t. It trains in time linear in the length of a sequence
//! and runs with a state of constant size.
//!
//! # Load and generate
//!
//! ```
//! use elapid::embedded;
//! use elapid::generate::{Generator, Sampling};
//! use elapid::tokenizer::SpecialTokens;
//!
//! # fn main() -> elapid::Result<()> {
//! let (model, tokenizer) = (embedded::model()?, embedded::tokenizer());
//! let mut sequence = Generator::new(&model, Sampling { temperature: 0.8, ..Sampling::default() }, 1)?;
//! sequence.read(&tokenizer.encode_prompt("ROMEO:\n")?)?;
//! let ids: Vec<u32> = (0..20).map(|_| sequence.next_token()).collect::<Result<_, _>>()?;
//! println!("{}", tokenizer.decode(&ids, SpecialTokens::Skip)?);
//! # Ok(())
//! # }
//! ```
//!
//! # State is a value
//!
//! Everything that a model remembers of its sequences is a [`State`]. It can be cloned, selected by row, stacked, saved,
//! loaded, and differentiated through. For any split of a sequence, outputs, final state and gradients are the same; without
//! a tape they are the same bit for bit, and a row of a batch equals the row alone.
//!
//! ```
//! use elapid::lm::Positions;
//! use elapid::Layout;
//!
//! # fn main() -> elapid::Result<()> {
//! let model = elapid::embedded::model()?;
//! let read = |tokens: &[u32], state: &elapid::State| {
//!     model.logits(&model.inference(Layout::new(1, tokens.len())), tokens, state, Positions::Last)
//! };
//! let (whole, _) = read(&[84, 111, 32, 98, 101], &model.zero_state(1)?)?;
//! let (_, state) = read(&[84, 111], &model.zero_state(1)?)?;
//! let (parts, _) = read(&[32, 98, 101], &state)?;
//! assert_eq!(whole.value().as_slice(), parts.value().as_slice());
//! # Ok(())
//! # }
//! ```
//!
//! # Train
//!
//! [`LanguageModel::loss`] under a [`Tape`](autograd::Tape) yields the gradients of every parameter;
//! `examples/train_tiny.rs` is a complete loop. `elapid-train` adds data, schedules and checkpoints.
//!
//! # A layer of your own
//!
//! A layer is one file that implements [`Layer`](layer::Layer); `examples/new_mixer.rs` is a complete one.
//! [`layers::Mamba1`] is the paper's algorithm 2 in the same form.
#![forbid(unsafe_code)]

pub mod autograd;
pub mod checkpoint;
pub mod config;
mod content;
pub mod decode;
pub mod embedded;
mod embedding;
mod error;
pub mod evaluate;
#[doc(hidden)]
pub mod fault;
pub mod files;
pub mod formats;
mod fused;
pub mod generate;
mod hippo;
mod json;
pub mod layer;
pub mod layers;
mod layout;
pub mod linear;
pub mod lm;
pub mod memory;
pub mod models;
pub mod ops;
pub mod params;
pub mod pass;
pub mod settings;
pub mod stack;
pub mod state;
mod tensor;
pub mod text;
pub mod tokenizer;
pub mod trace;

pub use elapid_kernels::DType;
pub use error::{Error, Result};
pub use layout::{Layout, OnDevice};
pub use lm::LanguageModel;
pub use state::State;
pub use tensor::{Device, Tensor};

/// The snippets of the README, compiled and run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
