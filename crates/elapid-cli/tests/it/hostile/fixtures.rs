//! Small tokenizers that have, together, every kind of model, normalizer, pre-tokenizer, post-processor and decoder.

use serde_json::{Map, Value, json};

/// All of them, with names.
pub(super) fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("byte-level", byte_level()),
        ("sentencepiece-bpe", sentencepiece_bpe()),
        ("unigram", unigram()),
        ("bert", bert()),
        ("words", words()),
        ("suffix-bpe", suffix_bpe()),
        ("pieces", pieces()),
    ]
}

fn file(sections: Value) -> Value {
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
    });
    if let (Value::Object(file), Value::Object(sections)) = (&mut file, sections) {
        file.extend(sections);
    }
    file
}

fn added(id: usize, content: &str, normalized: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": normalized, "special": !normalized})
}

fn vocab(tokens: &[&str]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect()
}

fn template(token: &str, id: usize) -> Value {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
}

fn byte_level() -> Value {
    let part = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let model = vocab(&["<|end|>", "t", "h", "e", "Ġ", "i", "n", "d", ".", "Ã", "©", "th", "the", "Ġt", "in"]);
    file(json!({
        "truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<|end|>"},
        "added_tokens": [added(0, "<|end|>", false), added(15, "  ", true)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": part, "post_processor": part, "decoder": part,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": model, "merges": [["t", "h"], ["th", "e"], ["Ġ", "t"], ["i", "n"]]},
    }))
}

fn sentencepiece_bpe() -> Value {
    file(json!({
        "added_tokens": [added(0, "<unk>", false), added(1, "<s>", false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": template("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab(&["<unk>", "<s>", "<0xC3>", "<0xA9>", "<0x0A>", "▁", "a", "e", "t", "h", "▁t", "he", "▁the"]),
            "merges": ["▁ t", "h e", "▁t he"]},
    }))
}

/// A character map of SentencePiece that makes `A` an `a`.
fn charsmap() -> String {
    let mut units = vec![0u32; 512];
    units[0] = 0x100 << 10;
    units[0x141] = (0x141 ^ 0x102) << 10 | 1 << 8 | 0x41;
    units[0x102] = 1 << 31;
    let mut bytes = (4 * units.len() as u32).to_le_bytes().to_vec();
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend_from_slice(b"a\0");
    base64::encode(bytes)
}

fn unigram() -> Value {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    file(json!({
        "added_tokens": [added(0, "<unk>", false), added(1, "</s>", false), added(2, "<mask>", true)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": charsmap()},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}, {"type": "Nmt"}]},
        "pre_tokenizer": metaspace, "decoder": metaspace,
        "post_processor": template("</s>", 1),
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [
            ["<unk>", 0.0], ["</s>", 0.0], ["<mask>", 0.0], ["▁", -2.0], ["▁the", -3.0], ["a", -4.0], ["e", -4.5],
            ["n", -5.0], ["the", -5.5], ["é", -7.0]]},
    }))
}

fn bert() -> Value {
    file(json!({
        "added_tokens": [added(0, "[UNK]", false), added(1, "[CLS]", false), added(2, "[SEP]", false)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab(&["[UNK]", "[CLS]", "[SEP]", "the", "th", "##e", "##n", "a", "##a", "e", ".", "日"])},
    }))
}

fn words() -> Value {
    file(json!({
        "added_tokens": [added(0, "<unk>", false), added(5, "new york", true)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"},
            {"type": "NFD"}, {"type": "StripAccents"}, {"type": "Strip", "strip_left": true, "strip_right": true}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"},
            {"type": "Digits", "individual_digits": true}, {"type": "Punctuation", "behavior": "Isolated"},
            {"type": "Split", "pattern": {"Regex": "\\d+|[a-z]+"}, "behavior": "MergedWithPrevious", "invert": true}]},
        "post_processor": {"type": "Sequence", "processors": [template("<unk>", 0)]},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab(&["<unk>", "the", "end", ".", "1"])},
    }))
}

fn suffix_bpe() -> Value {
    file(json!({
        "added_tokens": [added(0, "<unk>", false)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "CharDelimiterSplit", "delimiter": "|"},
            {"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed", "invert": false}]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 0], "cls": ["<s>", 0], "trim_offsets": true,
            "add_prefix_space": true},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab(&["<unk>", "t", "h", "e", "e</w>", "n", "d</w>", "th", "the</w>", "en"]),
            "merges": ["t h", "th e</w>", "e n"]},
    }))
}

fn pieces() -> Value {
    file(json!({
        "added_tokens": [added(0, "<pad>", false)],
        "normalizer": {"type": "ByteLevel"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "UnicodeScripts"}, {"type": "FixedLength", "length": 2},
            {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": false}]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}, template("<pad>", 0)]},
        "decoder": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true},
        "model": {"type": "WordLevel", "unk_token": "<pad>", "vocab": vocab(&["<pad>", "th", "e", "|", "en", "d"])},
    }))
}
