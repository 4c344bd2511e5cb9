//! Formats of checkpoints: how the tensors of a model lie in the files that other programs write.
//!
//! [`stored`] says where one tensor lies, and reads and writes it; a file for each format maps elapid's names to such
//! expressions, from the format's own configuration.

mod bamba;
mod falcon_h1;
mod gpt2;
mod gpt_neox;
mod granite_moe_hybrid;
mod jamba;
mod kimi_linear;
mod lfm2;
mod llama;
mod mamba;
mod mamba2;
mod minimax;
mod mixtral;
pub mod names;
mod nemotron_h;
mod olmo_hybrid;
mod qwen2_moe;
mod qwen3_next;
mod recurrent_gemma;
mod rwkv;
pub mod stored;
mod xlstm;
mod zamba;
mod zamba2;

use names::{Config, Result, Tensors};

/// How a format lays out tensors.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// The `model_type` of its configuration.
    pub model_type: &'static str,
    /// elapid's tensors for a configuration, each with its place in the file.
    pub tensors: fn(&Config<'_>) -> Result<Tensors>,
    /// Tensors of the file that are no parameters.
    pub ignores: fn(&str) -> bool,
}

const fn layout(model_type: &'static str, tensors: fn(&Config<'_>) -> Result<Tensors>) -> Layout {
    Layout { model_type, tensors, ignores: |_| false }
}

/// All that are known, by `model_type`.
pub static LAYOUTS: &[Layout] = &[
    layout("bamba", bamba::tensors),
    layout("falcon_h1", falcon_h1::tensors),
    layout("falcon_mamba", mamba::tensors),
    layout("gpt2", gpt2::tensors),
    layout("gpt_neox", gpt_neox::tensors),
    layout("granitemoehybrid", granite_moe_hybrid::tensors),
    layout("jamba", jamba::tensors),
    layout("kimi_linear", kimi_linear::tensors),
    layout("lfm2", lfm2::tensors),
    layout("llama", llama::tensors),
    layout("mamba", mamba::tensors),
    layout("mamba2", mamba2::tensors),
    Layout { ignores: minimax::ignores, ..layout("minimax", minimax::tensors) },
    layout("mistral", llama::tensors),
    layout("mixtral", mixtral::tensors),
    Layout { ignores: nemotron_h::ignores, ..layout("nemotron_h", nemotron_h::tensors) },
    layout("olmo_hybrid", olmo_hybrid::tensors),
    layout("qwen2_moe", qwen2_moe::tensors),
    layout("qwen3_next", qwen3_next::tensors),
    layout("recurrent_gemma", recurrent_gemma::tensors),
    layout("rwkv", rwkv::tensors),
    layout("xlstm", xlstm::tensors),
    layout("zamba", zamba::tensors),
    layout("zamba2", zamba2::tensors),
];

#[cfg(test)]
mod tests;
