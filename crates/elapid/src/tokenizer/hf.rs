//! A Hugging Face tokenizer: the `tokenizers` crate encodes, [`Chain`] decodes.

use std::fmt;

use serde_json::Value;

use super::check;
use super::decoder::Chain;
use super::special::Template;

/// A tokenizer in Hugging Face's format.
#[derive(Clone)]
pub(super) struct Hf {
    inner: tokenizers::Tokenizer,
    definition: String,
    vocab_size: usize,
    special_ids: Vec<u32>,
    decoder: Chain,
}

impl fmt::Debug for Hf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hf").field("vocab_size", &self.vocab_size).field("decoder", &self.decoder).finish()
    }
}

impl Hf {
    /// From the parsed `tokenizer.json`.
    pub(super) fn new(mut json: Value) -> Result<Self, String> {
        // They are for training a tokenizer, or for batches of equal length. Here a text always has all its tokens, and the
        // same ones.
        for pointer in ["/model/dropout", "/truncation", "/padding"] {
            json.pointer_mut(pointer).map(Value::take);
        }
        check::check(&json)?;
        let definition = json.to_string();
        let inner = tokenizers::Tokenizer::from_bytes(&definition).map_err(|e| format!("not a tokenizer: {e}"))?;
        check::check_loaded(&inner)?;

        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        // A hostile file could claim an id near 2^32 and have a model allocate for it.
        if vocab_size > vocab.len().saturating_mul(16).saturating_add(65_536) {
            return Err(format!("id {} is far beyond its {} tokens", vocab_size - 1, vocab.len()));
        }
        let added = inner.get_added_tokens_decoder();
        let mut special_ids: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        special_ids.sort_unstable();
        let decoder = Chain::new(inner.get_decoder());
        Ok(Self { inner, definition, vocab_size, special_ids, decoder })
    }

    /// The tokenizer of the `tokenizers` crate.
    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
    }

    /// A decoder at the beginning of a text.
    pub(super) fn decoder(&self) -> Chain {
        self.decoder.clone()
    }

    /// A token in the form that the decoder takes; none if no token has the id, or if it is special and special tokens are
    /// left out.
    pub(super) fn token(&self, id: u32, special: bool) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        let token = added.simple_id_to_token(id).or_else(|| {
            use tokenizers::Model;
            self.inner.get_model().id_to_token(id)
        });
        token.filter(|token| special || !added.is_special_token(token))
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }

    pub(super) fn definition(&self) -> &str {
        &self.definition
    }

    /// Writes the tokens around a text into `tokenizer.json`.
    pub(super) fn set_template(&mut self, template: &Template) -> Result<(), String> {
        let mut json: Value = serde_json::from_str(&self.definition).map_err(|e| e.to_string())?;
        json["post_processor"] = template.post_processor(&json["post_processor"], |id| self.name(id));
        self.definition = json.to_string();
        Ok(())
    }

    pub(super) fn name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }
}
