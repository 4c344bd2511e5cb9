//! The decoder of a `tokenizer.json`, token by token.
//!
//! A decoder is a chain of stages, each from a list of tokens to a list of tokens; the text is the last list joined. Here a
//! stage takes one token at a time and emits what later tokens cannot change, so text can be streamed, and the joined pieces
//! equal the whole text by construction:
//!
//! ```text
//! Replace, Strip      a token by itself
//! Metaspace, WordPiece  … and whether it is the first
//! BPEDecoder          … and whether it is the last: one token is held back
//! CTC                 … and the token before it
//! ByteFallback        a run of byte tokens is held back until it ends: it is text as a whole, or not at all
//! Fuse, ByteLevel     all tokens become one; later stages see that one, in pieces
//! no decoder          tokens with spaces between
//! ```
//!
//! After `Fuse` or `ByteLevel`, a stage that needs the whole token (a regular expression, `WordPiece` with cleanup) emits it
//! at the end. Where a stage works on single tokens, the `tokenizers` crate does the work.

use std::fmt;

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{Decoder, decoders};

use super::byte;
use crate::text::Utf8Stream;

/// A decoder with its memory of the tokens so far.
#[derive(Clone)]
pub(super) struct Chain {
    tokens: Vec<TokenStage>,
    text: Vec<TextStage>,
}

/// Before tokens are joined.
#[derive(Clone)]
enum TokenStage {
    /// `Replace` by a regular expression.
    Each(DecoderWrapper),
    Literal {
        pattern: String,
        content: String,
    },
    Strip(decoders::strip::Strip),
    First {
        decoder: DecoderWrapper,
        begun: bool,
    },
    Last {
        decoder: DecoderWrapper,
        held: Option<String>,
    },
    Ctc {
        decoder: DecoderWrapper,
        previous: Option<String>,
    },
    ByteFallback {
        run: Vec<u8>,
    },
    Spaces {
        begun: bool,
    },
}

/// After tokens are joined: the single token arrives in pieces.
#[derive(Clone)]
enum TextStage {
    Fuse,
    /// The bytes of the tokens of byte-level models.
    Bytes(Utf8Stream),
    Metaspace(Metaspace),
    Literal {
        pattern: String,
        content: String,
        held: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
        held: usize,
    },
    Whole {
        decoder: DecoderWrapper,
        text: String,
    },
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("stages", &(self.tokens.len() + self.text.len())).finish()
    }
}

type Result<T, E = String> = std::result::Result<T, E>;

impl Chain {
    pub(super) fn new(decoder: Option<&DecoderWrapper>) -> Self {
        let mut chain = Self { tokens: Vec::new(), text: Vec::new() };
        match decoder {
            Some(decoder) => chain.add(decoder),
            None => chain.tokens.push(TokenStage::Spaces { begun: false }),
        }
        chain
    }

    fn add(&mut self, decoder: &DecoderWrapper) {
        if let DecoderWrapper::Sequence(sequence) = decoder {
            return sequence.get_decoders().iter().for_each(|part| self.add(part));
        }
        if self.text.is_empty() {
            match TokenStage::new(decoder) {
                Some(stage) => self.tokens.push(stage),
                None if matches!(decoder, DecoderWrapper::ByteLevel(_)) => {
                    self.text.push(TextStage::Bytes(Utf8Stream::new()));
                }
                None => self.text.push(TextStage::Fuse),
            }
        } else {
            self.text.push(TextStage::new(decoder));
        }
    }

    /// Adds a token and appends the text that is certain by now.
    pub(super) fn push(&mut self, token: String, out: &mut String) -> Result<()> {
        let mut tokens = vec![token];
        for stage in &mut self.tokens {
            let mut next = Vec::with_capacity(1);
            tokens.into_iter().try_for_each(|token| stage.push(token, &mut next))?;
            tokens = next;
        }
        match self.text.split_first_mut() {
            None => tokens.iter().for_each(|token| out.push_str(token)),
            Some((first, rest)) => {
                let text: String = tokens.iter().map(|token| first.join(token)).collect();
                out.push_str(&rest.iter_mut().fold(text, |text, stage| stage.push(text)));
            }
        }
        Ok(())
    }

    /// Ends the text: appends what was held back.
    pub(super) fn finish(mut self, out: &mut String) -> Result<()> {
        let mut tokens = Vec::new();
        for stage in &mut self.tokens {
            let mut next = Vec::new();
            tokens.into_iter().try_for_each(|token| stage.push(token, &mut next))?;
            stage.finish(&mut next)?;
            tokens = next;
        }
        let Some((first, rest)) = self.text.split_first_mut() else {
            tokens.iter().for_each(|token| out.push_str(token));
            return Ok(());
        };
        let mut text: String = tokens.iter().map(|token| first.join(token)).collect();
        text.push_str(&first.finish()?);
        for stage in rest {
            text = stage.push(text);
            text.push_str(&stage.finish()?);
        }
        out.push_str(&text);
        Ok(())
    }
}

/// The text that a decoder makes of these tokens.
fn chain(decoder: &DecoderWrapper, tokens: Vec<String>) -> Result<Vec<String>> {
    decoder.decode_chain(tokens).map_err(|error| error.to_string())
}

/// Pattern and content of a `Replace` without a regular expression.
fn literal(decoder: &DecoderWrapper) -> Option<(String, String)> {
    let DecoderWrapper::Replace(replace) = decoder else { return None };
    let json = serde_json::to_value(replace).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some((text(&json["pattern"]["String"])?, text(&json["content"])?)).filter(|(pattern, _)| !pattern.is_empty())
}

impl TokenStage {
    /// None if the stage joins all tokens.
    fn new(decoder: &DecoderWrapper) -> Option<Self> {
        Some(match decoder {
            DecoderWrapper::Fuse(_) | DecoderWrapper::ByteLevel(_) | DecoderWrapper::Sequence(_) => return None,
            DecoderWrapper::Replace(_) => match literal(decoder) {
                Some((pattern, content)) => Self::Literal { pattern, content },
                None => Self::Each(decoder.clone()),
            },
            DecoderWrapper::Strip(strip) => Self::Strip(strip.clone()),
            DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) => {
                Self::First { decoder: decoder.clone(), begun: false }
            }
            DecoderWrapper::BPE(_) => Self::Last { decoder: decoder.clone(), held: None },
            DecoderWrapper::CTC(_) => Self::Ctc { decoder: decoder.clone(), previous: None },
            DecoderWrapper::ByteFallback(_) => Self::ByteFallback { run: Vec::new() },
        })
    }

    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        match self {
            Self::Each(decoder) => out.extend(chain(decoder, vec![token])?),
            Self::Literal { pattern, content } => out.push(token.replace(pattern.as_str(), content)),
            Self::Strip(strip) => {
                let mut stage = TextStage::strip(strip);
                out.push(stage.push(token));
            }
            Self::First { decoder, begun } => {
                if std::mem::replace(begun, true) {
                    out.extend(chain(decoder, vec![String::new(), token])?.into_iter().skip(1));
                } else {
                    out.extend(chain(decoder, vec![token])?);
                }
            }
            Self::Last { decoder, held } => {
                if let Some(before) = held.replace(token) {
                    out.extend(chain(decoder, vec![before, String::new()])?.into_iter().take(1));
                }
            }
            Self::Ctc { decoder, previous } => {
                if previous.as_ref() != Some(&token) {
                    out.extend(chain(decoder, vec![token.clone()])?);
                    *previous = Some(token);
                }
            }
            Self::ByteFallback { run } => match byte_of(&token) {
                Some(byte) => run.push(byte),
                None => {
                    flush(run, out);
                    out.push(token);
                }
            },
            Self::Spaces { begun } => {
                let space = if std::mem::replace(begun, true) { " " } else { "" };
                out.push(format!("{space}{token}"));
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) -> Result<()> {
        match self {
            Self::Last { decoder, held } => {
                if let Some(last) = held.take() {
                    out.extend(chain(decoder, vec![last])?);
                }
            }
            Self::ByteFallback { run } => flush(run, out),
            _ => {}
        }
        Ok(())
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A run of byte tokens becomes their text, or a replacement character for each.
fn flush(run: &mut Vec<u8>, out: &mut Vec<String>) {
    if run.is_empty() {
        return;
    }
    match std::str::from_utf8(run) {
        Ok(text) => out.push(text.to_owned()),
        Err(_) => out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER.to_string(), run.len())),
    }
    run.clear();
}

impl TextStage {
    fn new(decoder: &DecoderWrapper) -> Self {
        match decoder {
            DecoderWrapper::Fuse(_) => Self::Fuse,
            DecoderWrapper::Metaspace(metaspace) => Self::Metaspace(metaspace.clone()),
            DecoderWrapper::Strip(strip) => Self::strip(strip),
            _ => match literal(decoder) {
                Some((pattern, content)) => Self::Literal { pattern, content, held: String::new() },
                None => Self::Whole { decoder: decoder.clone(), text: String::new() },
            },
        }
    }

    fn strip(strip: &decoders::strip::Strip) -> Self {
        Self::Strip { content: strip.content, start: strip.start, stop: strip.stop, held: 0 }
    }

    /// Adds a whole token; the first of these stages receives all tokens, one after another.
    fn join(&mut self, token: &str) -> String {
        match self {
            Self::Bytes(utf8) => match token.chars().map(byte::of_char).collect::<Option<Vec<u8>>>() {
                Some(bytes) => utf8.push(&bytes),
                // Added tokens may contain characters that stand for no byte.
                None => utf8.push(token.as_bytes()),
            },
            _ => token.to_owned(),
        }
    }

    /// Adds a piece of the single token.
    fn push(&mut self, piece: String) -> String {
        match self {
            Self::Fuse | Self::Bytes(_) => piece,
            Self::Metaspace(metaspace) => {
                let space = if metaspace.prepend_scheme == PrependScheme::Never { " " } else { "" };
                piece.replace(metaspace.get_replacement(), space)
            }
            Self::Literal { pattern, content, held } => {
                held.push_str(&piece);
                let mut done = String::new();
                while let Some(at) = held.find(pattern.as_str()) {
                    done.push_str(&held[..at]);
                    done.push_str(content);
                    held.drain(..at + pattern.len());
                }
                // The end may be the beginning of the pattern.
                let begins = |&at: &usize| held.is_char_boundary(at) && pattern.starts_with(&held[at..]);
                let from = held.len().saturating_sub(pattern.len() - 1);
                let keep = (from..held.len()).find(begins).unwrap_or(held.len());
                let kept = held.split_off(keep);
                done.push_str(&std::mem::replace(held, kept));
                done
            }
            Self::Strip { content, start, stop, held } => {
                let mut rest = piece.as_str();
                while *start > 0 && !rest.is_empty() {
                    match rest.strip_prefix(*content) {
                        Some(after) => (rest, *start) = (after, *start - 1),
                        None => *start = 0,
                    }
                }
                // Up to `stop` of them are dropped at the end if nothing follows.
                let text = rest.trim_end_matches(*content);
                let after = rest[text.len()..].chars().count();
                let before = if text.is_empty() { std::mem::take(held) } else { std::mem::replace(held, 0) };
                let waiting = if text.is_empty() { before + after } else { after };
                let sure = waiting - waiting.min(*stop);
                *held = waiting - sure;
                let these = |count: usize| content.to_string().repeat(count);
                if text.is_empty() { these(sure) } else { these(before) + text + &these(sure) }
            }
            Self::Whole { text, .. } => {
                text.push_str(&piece);
                String::new()
            }
        }
    }

    fn finish(&mut self) -> Result<String> {
        Ok(match self {
            Self::Fuse | Self::Metaspace(_) | Self::Strip { .. } => String::new(),
            Self::Bytes(utf8) => utf8.finish(),
            Self::Literal { held, .. } => std::mem::take(held),
            Self::Whole { decoder, text } => chain(decoder, vec![std::mem::take(text)])?.concat(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Every decoder there is, in several forms.
    fn parts() -> Vec<Value> {
        let replace =
            |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let strip = |content: &str, start: usize, stop: usize| json!({"type": "Strip", "content": content, "start": start, "stop": stop});
        let metaspace = |character: &str, scheme: &str| json!({"type": "Metaspace", "replacement": character, "prepend_scheme": scheme, "split": true});
        vec![
            json!({"type": "Fuse"}),
            json!({"type": "ByteFallback"}),
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            json!({"type": "BPEDecoder", "suffix": "b"}),
            json!({"type": "CTC", "pad_token": "c", "word_delimiter_token": "|", "cleanup": true}),
            json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": " ", "cleanup": false}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "WordPiece", "prefix": "a", "cleanup": false}),
            metaspace("_", "always"),
            metaspace("a", "never"),
            metaspace(" ", "first"),
            replace(json!({"String": "_"}), " "),
            replace(json!({"String": "aa"}), "a"),
            replace(json!({"String": " a "}), ""),
            replace(json!({"String": "é"}), "<0x41>"),
            replace(json!({"Regex": "a+|b$"}), "é"),
            strip(" ", 1, 0),
            strip(" ", 0, 2),
            strip("a", 2, 1),
        ]
    }

    fn by_the_crate(decoder: &DecoderWrapper, tokens: &[String]) -> Option<String> {
        // Some stages of the crate panic for no tokens, or for empty ones.
        catch_unwind(AssertUnwindSafe(|| decoder.decode(tokens.to_vec()).unwrap())).ok()
    }

    fn by_the_chain(decoder: &DecoderWrapper, tokens: &[String]) -> String {
        let mut chain = Chain::new(Some(decoder));
        let mut text = String::new();
        tokens.iter().for_each(|token| chain.push(token.clone(), &mut text).unwrap());
        chain.finish(&mut text).unwrap();
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_chain_is_the_chain_of_the_crate(
            parts in prop::collection::vec(prop::sample::select(parts()), 1..5),
            tokens in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(vec![
                        "", " ", "a", "b", "c", "_", "_a", "##a", "##", "<0x41>", "<0xC3>", "<0xA9>", "<0xé>", "é", "<pad>",
                        "|", ".", "n't", "Ġ", "Ã", "©", "do not",
                    ])
                    .prop_map(str::to_owned),
                    "[ ab_é]{0,4}",
                ],
                0..10,
            ),
        ) {
            let json = json!({"type": "Sequence", "decoders": parts});
            let decoder: DecoderWrapper = serde_json::from_value(json).unwrap();
            if let Some(wanted) = by_the_crate(&decoder, &tokens) {
                prop_assert_eq!(by_the_chain(&decoder, &tokens), wanted);
            }
        }
    }
}
