//! The kinds of tokenizers.

use super::hf::Hf;
use super::special::{Roles, Template};

/// Turns text into token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) kind: Kind,
    pub(super) roles: Roles,
    /// The tokens around a text, as in the definition.
    pub(super) template: Template,
    pub(super) end_ids: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// One id per byte, then 256 = `<bos>`, 257 = `<eos>`, 258 = `<pad>`. Text never becomes a special id.
    Byte,
    /// A tokenizer in Hugging Face's format.
    Hf(Box<Hf>),
}

/// Whether the names of special tokens are part of a text; otherwise special tokens have no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecialTokens {
    /// They are left out.
    #[default]
    Skip,
    /// They are shown.
    Show,
}
