//! Formats of checkpoints: how other programs describe a model, and how its tensors lie in their files.
//!
//! A file for each format, chosen by `model_type`: its configuration read and written (`Codec`), and a map from elapid's
//! names of tensors to expressions over those of the file ([`stored`]), which reading evaluates and writing inverts.

mod bamba;
mod falcon_h1;
mod falcon_mamba;
mod fields;
mod fla;
mod fla_mamba2;
mod format;
mod gla;
mod gpt2;
mod gpt_neox;
mod granite_moe_hybrid;
mod hgrn2;
mod jamba;
mod kimi_linear;
mod lfm2;
mod linear_attn;
mod llama;
mod mamba;
mod mamba2;
mod minimax;
mod mistral;
mod mixtral;
pub mod names;
mod nemotron_h;
mod olmo_hybrid;
pub(crate) mod places;
mod qwen2;
mod qwen2_moe;
mod qwen3_next;
mod read;
mod recurrent_gemma;
mod retnet;
mod rwkv;
mod state_spaces;
pub mod stored;
mod table;
mod transformer;
mod values;
mod xlstm;
mod zamba;
mod zamba2;

pub use format::Format;
pub use places::Places;
pub(crate) use read::{Described, describe, parse_json};
pub use table::FORMATS;

#[cfg(test)]
mod fla_tests;
#[cfg(test)]
mod state_spaces_tests;
#[cfg(test)]
mod tests;
