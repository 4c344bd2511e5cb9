//! Mamba-2, whose names are elapid's own.

use super::mamba;
use super::names::{Config, MAMBA2, Result, Tensors};

/// The tensors of `Mamba2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    mamba::layers(config, MAMBA2)
}
