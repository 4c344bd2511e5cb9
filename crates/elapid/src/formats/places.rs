//! Where the tensors of one model lie in the files of its format.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::stored::{Stored, file};

/// elapid's name of the embedding.
pub(crate) const EMBEDDING: &str = "backbone.embeddings.weight";
/// elapid's name of the head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The places of a model's tensors, by elapid's names. One that is not listed has its own name in the file.
#[derive(Debug, Clone)]
pub struct Places {
    pub(super) listed: BTreeMap<String, Stored>,
    /// What the file calls a head, which it may hold although it is the embedding.
    pub(super) head: String,
    pub(super) ignores: fn(&str) -> bool,
}

impl Default for Places {
    /// All tensors under their own names.
    fn default() -> Self {
        Self { listed: BTreeMap::new(), head: HEAD.to_owned(), ignores: |_| false }
    }
}

impl Places {
    /// Whether the files have elapid's own names.
    pub fn are_own(&self) -> bool {
        self.listed.is_empty()
    }

    /// The place of a tensor.
    pub fn of(&self, name: &str) -> Cow<'_, Stored> {
        self.listed.get(name).map_or_else(|| Cow::Owned(file(name)), Cow::Borrowed)
    }

    /// The file's names of the embedding and of the head.
    pub(crate) fn ends(&self) -> [String; 2] {
        let embedding =
            self.of(EMBEDDING).names().first().map_or_else(|| EMBEDDING.to_owned(), |name| (*name).to_owned());
        [embedding, self.head.clone()]
    }

    /// Whether a tensor of the file is no parameter.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        (self.ignores)(name)
    }
}
