//! The byte tokenizer, and its form as a `tokenizer.json`.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::special::{Roles, Template};

pub(super) const BOS: u32 = 256;
pub(super) const EOS: u32 = 257;
pub(super) const PAD: u32 = 258;
pub(super) const ROLES: Roles = Roles { bos: Some(BOS), eos: Some(EOS), pad: Some(PAD) };
pub(super) const VOCAB_SIZE: usize = 259;
const SPECIAL: [&str; 3] = ["<bos>", "<eos>", "<pad>"];

pub(super) fn special_name(id: u32) -> Option<&'static str> {
    id.checked_sub(BOS).and_then(|i| SPECIAL.get(i as usize).copied())
}

pub(super) fn name(id: u32) -> Option<String> {
    special_name(id).map(str::to_owned).or_else(|| CHARS.get(id as usize).map(char::to_string))
}

pub(super) fn special_id(name: &str) -> Option<u32> {
    (BOS..).zip(SPECIAL).find(|(_, special)| *special == name).map(|(id, _)| id)
}

/// The characters that byte-level tokenizers use for bytes, GPT-2's table: printable Latin-1 is itself, the 68 others are
/// U+0100 and up.
pub(super) static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => char::from_u32(code).unwrap_or_default(),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        }
    })
});

/// The byte that a character of [`CHARS`] stands for.
pub(super) fn of_char(c: char) -> Option<u8> {
    static OF_CHAR: LazyLock<HashMap<char, u8>> = LazyLock::new(|| CHARS.iter().copied().zip(0..=255).collect());
    OF_CHAR.get(&c).copied()
}

/// A byte-level BPE without merges. Hugging Face's `tokenizers` returns the same ids, except for special tokens spelled out
/// in the text, which elapid keeps as bytes.
pub(super) fn definition(template: &Template) -> Value {
    let vocab: Map<String, Value> = CHARS.iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .zip(BOS..)
        .map(|(name, id)| {
            json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": template.post_processor(&Value::Null, name),
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}

/// Whether a definition has the byte tokenizer's ids, even after another program has rewritten the file.
pub(super) fn is_definition(json: &Value) -> bool {
    let own = definition(&Template::default());
    let same = |pointer: &str| json.pointer(pointer) == own.pointer(pointer);
    let added = |json: &Value| -> Option<Vec<(Value, Value)>> {
        json["added_tokens"]
            .as_array()
            .map(|all| all.iter().map(|token| (token["id"].clone(), token["content"].clone())).collect())
    };
    same("/model/vocab")
        && same("/model/merges")
        && same("/model/type")
        && added(json) == added(&own)
        && json["normalizer"].is_null()
        && json.pointer("/pre_tokenizer/type") == own.pointer("/pre_tokenizer/type")
        && json.pointer("/pre_tokenizer/add_prefix_space") == own.pointer("/pre_tokenizer/add_prefix_space")
}
