//! From text to token ids and back: raw bytes, or a Hugging Face `tokenizer.json`.
//!
//! Ids of a [`Tokenizer`] are below [`Tokenizer::vocab_size`]; a model may pad its vocabulary beyond that. Text comes from
//! the tokenizer's own decoder, whole ([`Tokenizer::decode`]) or while tokens arrive ([`Tokenizer::stream`]).
//!
//! One rule decides which tokens surround a text, for prompts, training and evaluation alike:
//!
//! - **before**: the tokens of the `post_processor` of `tokenizer.json`. `add_bos_token` of `tokenizer_config.json`, if
//!   present, overrides it: true is only the beginning token, false is nothing ([`Tokenizer::document_prefix`]);
//! - **after** a document, never after a prompt: the same with `add_eos_token` ([`Tokenizer::document_suffix`]);
//! - **end of a text**: any of the `eos_token_id` of `generation_config.json`, else of `config.json`, and the tokenizer's
//!   own end token ([`Tokenizer::end_ids`]).
//!
//! `transformers` 5 reads the same post-processor and end ids, but ignores `add_bos_token` and `add_eos_token` of a
//! directory with a `tokenizer.json` (5.24; as arguments of `from_pretrained` they take effect, and in version 4 some models
//! follow the file). [`Tokenizer::save`] therefore writes the post-processor that was used.

mod byte;
mod check;
mod decoder;
mod error;
mod hf;
mod kinds;
mod pieces;
mod special;
mod stream;
pub mod train;
pub mod trial;

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

pub use pieces::{Encoded, Encoder};
pub use special::stated_end_ids;
pub use stream::TextStream;

use crate::files::{self, FileError, atomic_write, limit};
use crate::{content, json};
use hf::Hf;
use special::{Beside, CONFIG, Template};

use error::FILE;
pub use error::{Result, TokenizerError};

use kinds::Kind;
pub use kinds::{SpecialTokens, Tokenizer};

impl Tokenizer {
    /// The byte tokenizer: one id per byte, then 256 = `<bos>`, 257 = `<eos>`, 258 = `<pad>`. Text never becomes a special
    /// id, and there are no tokens around a text.
    pub fn byte() -> Self {
        Self { kind: Kind::Byte, roles: byte::ROLES, template: Template::default(), end_ids: vec![byte::EOS] }
    }

    /// Reads the tokenizer of a model directory, or a `tokenizer.json` itself.
    ///
    /// Special ids come from the files beside it (`tokenizer_config.json`, `special_tokens_map.json`, `config.json`), else
    /// from the usual names among the tokens. The tokens around a text follow [the rule](self). `dropout` is off, and texts
    /// are not truncated or padded, whatever the file says.
    ///
    /// Files known to break the `tokenizers` crate are refused with the field and the fix. This does not cover everything:
    /// for files of unknown origin see [`trial`].
    ///
    /// # Errors
    /// If the file is missing, unreadable or not a tokenizer, or if a file beside it is not JSON or has impossible values.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
        let bytes = files::read(&file, limit::TOKENIZER).map_err(|error| match error {
            FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                TokenizerError::Missing { path: path.to_owned() }
            }
            error => error.into(),
        })?;
        let wrong = |what: String| TokenizerError::Definition { path: file.clone(), what };
        let json: Value =
            serde_json::from_slice(json::without_mark(&bytes)).map_err(|e| wrong(content::not_json(&bytes, &e)))?;
        let from_file = Template::of(&json["post_processor"]).map_err(wrong)?;
        let (kind, vocab_size) = if byte::is_definition(&json) {
            (Kind::Byte, byte::VOCAB_SIZE)
        } else {
            let hf = Hf::new(json).map_err(wrong)?;
            let vocab_size = hf.vocab_size();
            (Kind::Hf(Box::new(hf)), vocab_size)
        };
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let beside = Beside::read(dir)?;
        let stated = beside.end_ids(dir)?;
        let roles = match &kind {
            Kind::Byte => byte::ROLES,
            Kind::Hf(hf) => beside.roles(stated.as_deref(), |name| hf.id(name), |id| hf.name(id).is_some()),
        };
        let in_config = |what: String| TokenizerError::Definition { path: dir.join(CONFIG), what };
        let template = beside.template(from_file.clone(), roles).map_err(in_config)?;
        let mut ids = template.prefix.iter().chain(&template.suffix);
        if let Some(id) = ids.find(|&&id| id as usize >= vocab_size) {
            return Err(wrong(format!("post_processor: it adds the id {id}, and the vocabulary has {vocab_size}")));
        }
        let mut end_ids = stated.unwrap_or_default();
        end_ids.extend(roles.eos);
        end_ids.sort_unstable();
        end_ids.dedup();
        Self { kind, roles, template: from_file, end_ids }.with_template(template)
    }

    /// The ids of a text, without special tokens around it.
    ///
    /// # Errors
    /// If a Hugging Face tokenizer is given bytes that are not UTF-8; the error has the byte's position.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        let bytes = text.as_ref();
        match &self.kind {
            Kind::Byte => Ok(bytes.iter().map(|&byte| u32::from(byte)).collect()),
            Kind::Hf(_) if bytes.len() > pieces::WHOLE => Ok(self.encode_counted(bytes)?.ids),
            Kind::Hf(hf) => {
                let text =
                    std::str::from_utf8(bytes).map_err(|e| TokenizerError::InvalidUtf8 { offset: e.valid_up_to() })?;
                hf.encode(text).map_err(|what| TokenizerError::Encode { what })
            }
        }
    }

    /// The ids of a text, without special tokens around it, and the number of its bytes that each stands for.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_counted(&self, text: impl AsRef<[u8]>) -> Result<Encoded> {
        pieces::encode(self, text.as_ref())
    }

    /// An encoder for a text that arrives in parts.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder::new(self)
    }

    /// The ids of a text that is to be continued, after [`document_prefix`](Self::document_prefix).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        Ok([self.document_prefix(), &self.encode(text)?].concat())
    }

    /// The ids of a whole document, between [`document_prefix`](Self::document_prefix) and
    /// [`document_suffix`](Self::document_suffix).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_document(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        Ok([self.document_prefix(), &self.encode(text)?, self.document_suffix()].concat())
    }

    /// The ids before a prompt and before each document; often none or one.
    pub fn document_prefix(&self) -> &[u32] {
        &self.template.prefix
    }

    /// The ids after each document; often none.
    pub fn document_suffix(&self) -> &[u32] {
        &self.template.suffix
    }

    /// The same tokenizer with other ids before a document. [`definition`](Self::definition),
    /// [`fingerprint`](Self::fingerprint) and [`save`](Self::save) follow.
    ///
    /// # Errors
    /// Never, unless the definition was damaged in memory.
    pub fn with_document_prefix(self, prefix: impl Into<Vec<u32>>) -> Result<Self> {
        let suffix = self.template.suffix.clone();
        self.with_template(Template { prefix: prefix.into(), suffix })
    }

    /// The same tokenizer with other ids after a document, as [`with_document_prefix`](Self::with_document_prefix).
    ///
    /// # Errors
    /// Never, unless the definition was damaged in memory.
    pub fn with_document_suffix(self, suffix: impl Into<Vec<u32>>) -> Result<Self> {
        let prefix = self.template.prefix.clone();
        self.with_template(Template { prefix, suffix: suffix.into() })
    }

    fn with_template(mut self, template: Template) -> Result<Self> {
        if let Kind::Hf(hf) = &mut self.kind
            && template != self.template
        {
            hf.set_template(&template).map_err(|what| TokenizerError::Definition { path: FILE.into(), what })?;
        }
        self.template = template;
        Ok(self)
    }

    /// The ids that end a text, ascending: those of the model's files ([`stated_end_ids`]) and the tokenizer's own.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// The text of some ids, by the tokenizer's own decoder. An id without a token has no text.
    ///
    /// # Errors
    /// If the decoder fails.
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> Result<String> {
        let mut stream = self.stream(special);
        let mut text = ids.iter().map(|&id| stream.push(id)).collect::<Result<String>>()?;
        text.push_str(&stream.finish()?);
        Ok(text)
    }

    /// The text of some ids as bytes, without special tokens. For the byte tokenizer these are all bytes unchanged, even if
    /// they are not UTF-8.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        match &self.kind {
            Kind::Byte => Ok(ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect()),
            Kind::Hf(_) => Ok(self.decode(ids, SpecialTokens::Skip)?.into_bytes()),
        }
    }

    /// The text of ids that arrive one after another.
    pub fn stream(&self, special: SpecialTokens) -> TextStream<'_> {
        TextStream::new(self, special)
    }

    /// Whether this is the byte tokenizer, which accepts and returns any bytes.
    pub fn is_byte(&self) -> bool {
        matches!(self.kind, Kind::Byte)
    }

    /// The largest id plus one.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Byte => byte::VOCAB_SIZE,
            Kind::Hf(hf) => hf.vocab_size(),
        }
    }

    /// The id that begins a text, if the tokenizer has one. Whether it is put before texts is
    /// [`document_prefix`](Self::document_prefix).
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The id that ends a text, if the tokenizer has one; [`end_ids`](Self::end_ids) has all such ids.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The id that pads rows, if the tokenizer has one.
    pub fn pad(&self) -> Option<u32> {
        self.roles.pad
    }

    /// Whether the id is a special token, which is left out of text for users.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.kind {
            Kind::Byte => byte::special_name(id).is_some(),
            Kind::Hf(hf) => hf.is_special(id),
        }
    }

    /// The id of a token by its name in the vocabulary.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        match &self.kind {
            Kind::Byte => byte::special_id(name),
            Kind::Hf(hf) => hf.id(name),
        }
    }

    /// `tokenizer.json` as text, with the post-processor that is used, and without dropout, truncation and padding.
    pub fn definition(&self) -> Cow<'_, str> {
        match &self.kind {
            Kind::Byte => Cow::Owned(byte::definition(&self.template).to_string()),
            Kind::Hf(hf) => Cow::Borrowed(hf.definition()),
        }
    }

    /// BLAKE3 of the definition, ignoring white space. Two tokenizers with the same fingerprint give documents the same ids.
    pub fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(self.definition().as_bytes()).as_bytes()
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a directory, as `transformers` reads them.
    ///
    /// # Errors
    /// If a file cannot be written; the error names it.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let write = |name: &str, text: &str| atomic_write(&dir.as_ref().join(name), |w| w.write_all(text.as_bytes()));
        write(FILE, &self.definition())?;
        let mut config = serde_json::Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        for (key, id) in [("bos_token", self.bos()), ("eos_token", self.eos()), ("pad_token", self.pad())] {
            if let Some(name) = id.and_then(|id| self.token_name(id)) {
                config.insert(key.into(), name.into());
            }
        }
        // Redundant with the post-processor, for other programs that look here.
        let sides = [
            ("add_bos_token", self.bos(), &self.template.prefix),
            ("add_eos_token", self.eos(), &self.template.suffix),
        ];
        for (key, id, side) in sides {
            match side.as_slice() {
                [] => config.insert(key.into(), false.into()),
                [one] if Some(*one) == id => config.insert(key.into(), true.into()),
                _ => None,
            };
        }
        write(CONFIG, &format!("{:#}\n", Value::Object(config)))?;
        Ok(())
    }

    fn token_name(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Byte => byte::name(id),
            Kind::Hf(hf) => hf.name(id),
        }
    }
}

#[cfg(test)]
mod tests;
