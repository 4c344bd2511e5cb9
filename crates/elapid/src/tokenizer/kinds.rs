//! What a tokenizer is made of.

use super::hf::Hf;
use super::special::{Roles, Template};

/// Turns text into token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) kind: Kind,
    pub(super) roles: Roles,
    /// What stands around a text; the definition says the same.
    pub(super) template: Template,
    pub(super) end_ids: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// One id a byte, then 256 = `<bos>`, 257 = `<eos>`, 258 = `<pad>`. Text never becomes a special id.
    Byte,
    /// A tokenizer in Hugging Face's format.
    Hf(Box<Hf>),
}

/// Whether special tokens are part of a text, by their names. No special token of the files has text otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecialTokens {
    /// They are left out.
    #[default]
    Skip,
    /// They are shown.
    Show,
}
