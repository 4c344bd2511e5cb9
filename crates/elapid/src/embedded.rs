//! The model inside the binary.

use crate::checkpoint::Checkpoint;
use crate::lm::LanguageModel;
use crate::{Result, tokenizer::Tokenizer};

/// The byte-level model that comes with elapid; `runs/` has the command that made it.
///
/// # Errors
/// Never, unless the crate was built with a damaged asset.
pub fn model() -> Result<LanguageModel> {
    LanguageModel::load(&checkpoint()?)
}

/// Its configuration and weights, as stored.
///
/// # Errors
/// As [`model`].
pub fn checkpoint() -> Result<Checkpoint> {
    Ok(Checkpoint::from_bytes(
        include_str!("../assets/default/config.json"),
        include_bytes!("../assets/default/model.safetensors"),
    )?)
}

/// Its tokenizer: one token per byte.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::byte()
}
