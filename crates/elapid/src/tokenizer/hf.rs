//! A Hugging Face tokenizer: the `tokenizers` crate encodes, a table of bytes decodes.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;

use super::byte;

/// Ids with a role.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Special {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
}

/// A tokenizer in Hugging Face's format, with what each token stands for.
#[derive(Clone)]
pub struct Hf {
    inner: tokenizers::Tokenizer,
    definition: String,
    pub(super) special: Special,
    special_ids: Vec<u32>,
    /// All tokens' bytes; token `id` has `bytes[ends[id - 1]..ends[id]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl fmt::Debug for Hf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hf").field("vocab_size", &self.vocab_size()).field("special", &self.special).finish()
    }
}

/// How the tokens of the vocabulary are written.
#[derive(Clone, Copy)]
enum Spelling {
    /// A character a byte, GPT-2's table.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
}

impl Spelling {
    /// From the `decoder` section.
    fn of(decoder: &Value) -> Result<Self, String> {
        match decoder["type"].as_str() {
            Some("ByteLevel") => Ok(Self::ByteLevel),
            Some("Metaspace" | "ByteFallback") => Ok(Self::SentencePiece),
            // SentencePiece models are a sequence of Replace, ByteFallback, Fuse, Strip.
            Some("Sequence") => decoder["decoders"]
                .as_array()
                .into_iter()
                .flatten()
                .find_map(|part| Self::of(part).ok())
                .ok_or_else(|| "no decoder of its sequence works token by token".to_owned()),
            Some(other) => {
                Err(format!("decoder `{other}` does not work token by token; wanted ByteLevel or Metaspace"))
            }
            None => Err("it has no decoder; wanted ByteLevel or Metaspace".to_owned()),
        }
    }

    /// The bytes of a token, `None` if it is not spelt this way.
    fn bytes(self, token: &str, from_char: &HashMap<char, u8>) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel => token.chars().map(|c| from_char.get(&c).copied()).collect(),
            Self::SentencePiece => {
                let code = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
                    Some(byte) => Some(vec![byte]),
                    None => Some(token.replace('▁', " ").into_bytes()),
                }
            }
        }
    }
}

impl Hf {
    /// From the parsed `tokenizer.json`; `beside` gives other files of its directory.
    pub(super) fn new(json: Value, beside: impl Fn(&str) -> Option<Value>) -> Result<Self, String> {
        let definition = json.to_string();
        let mut inner = tokenizers::Tokenizer::from_bytes(&definition).map_err(|e| format!("not a tokenizer: {e}"))?;
        inner.with_truncation(None).map_err(|e| e.to_string())?.with_padding(None);
        let spelling = Spelling::of(&json["decoder"])?;
        let from_char: HashMap<char, u8> = byte::CHARS.iter().copied().zip(0..=255).collect();

        let vocab = inner.get_vocab(true);
        let added = inner.get_added_tokens_decoder();
        let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        // A hostile file could claim an id near 2^32 and have us allocate for it.
        if size > vocab.len().saturating_mul(16).saturating_add(65_536) {
            return Err(format!("id {} is far beyond its {} tokens", size - 1, vocab.len()));
        }
        let mut tokens: Vec<Vec<u8>> = vec![Vec::new(); size];
        for (token, &id) in &vocab {
            tokens[id as usize] = match added.get(&id) {
                Some(added) => added.content.clone().into_bytes(),
                // Tokens outside the byte alphabet stand for themselves.
                None => spelling.bytes(token, &from_char).unwrap_or_else(|| token.clone().into_bytes()),
            };
        }
        let mut ends = Vec::with_capacity(size);
        let mut bytes = Vec::new();
        for token in &tokens {
            bytes.extend_from_slice(token);
            ends.push(bytes.len());
        }
        let mut special_ids: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        special_ids.sort_unstable();
        let special = special(&inner, beside);
        Ok(Self { inner, definition, special, special_ids, bytes, ends })
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
    }

    pub(super) fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let begin = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.bytes[begin..end])
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }

    pub(super) fn definition(&self) -> &str {
        &self.definition
    }

    pub(super) fn token_name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

/// Special ids: as the files beside say, else by the names that published models use.
fn special(inner: &tokenizers::Tokenizer, beside: impl Fn(&str) -> Option<Value>) -> Special {
    let named: Vec<Value> =
        ["tokenizer_config.json", "special_tokens_map.json"].iter().filter_map(|n| beside(n)).collect();
    let numbered = beside("config.json");
    let id = |key: &str, usual: &[&str]| {
        let by_name = named.iter().find_map(|json| {
            let token = &json[format!("{key}_token")];
            inner.token_to_id(token.as_str().or_else(|| token["content"].as_str())?)
        });
        let by_number = || {
            let id = numbered.as_ref()?[format!("{key}_token_id")].as_u64()?;
            u32::try_from(id).ok().filter(|&id| inner.id_to_token(id).is_some())
        };
        by_name.or_else(by_number).or_else(|| usual.iter().find_map(|name| inner.token_to_id(name)))
    };
    Special {
        bos: id("bos", &["<bos>", "<s>", "<|begin_of_text|>", "<|endoftext|>"]),
        eos: id("eos", &["<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>"]),
        pad: id("pad", &["<pad>", "<|padding|>", "[PAD]"]),
    }
}
