use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;

/// A file of every section, none of it unusual.
fn good() -> Value {
    json!({
        "added_tokens": [added("<s>", false, false), added("<mask>", true, false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            {"type": "Precompiled", "precompiled_charsmap": charsmap(|_| {}, "a\0")},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(?=(\\d{3})+(?!\\d))"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
    })
}

fn added(content: &str, lstrip: bool, rstrip: bool) -> Value {
    json!({"id": 0, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": rstrip, "normalized": false,
        "special": true})
}

/// A character map that makes `A` the first replacement, after a change of its units.
fn charsmap(change: impl FnOnce(&mut Vec<u32>), replacements: &str) -> String {
    let mut units = vec![0u32; 512];
    units[0] = 0x100 << 10; // the root's children stand around 0x100
    units[0x141] = (0x141 ^ 0x102) << 10 | 1 << 8 | 0x41; // A, whose children stand around 0x102, and a text ends here
    units[0x102] = 1 << 31; // that text's replacement: from byte 0
    change(&mut units);
    let mut bytes = (4 * units.len() as u32).to_le_bytes().to_vec();
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend_from_slice(replacements.as_bytes());
    base64::encode(bytes)
}

/// Changes the good file at a JSON pointer, and checks that the error has all of `words`.
fn refused(pointer: &str, value: Value, words: &[&str]) {
    let mut json = good();
    *json.pointer_mut(pointer).unwrap() = value;
    let error = check(&json).expect_err(pointer);
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

fn accepted(pointer: &str, value: Value) {
    let mut json = good();
    *json.pointer_mut(pointer).unwrap() = value;
    assert_eq!(check(&json), Ok(()), "{json}");
}

#[test]
fn usual_files_pass() {
    assert_eq!(check(&good()), Ok(()));
    let bpe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bpe.json");
    assert_eq!(check(&serde_json::from_slice(&fs::read(bpe).unwrap()).unwrap()), Ok(()));
    assert_eq!(check(&json!({})), Ok(()), "the crate says what is missing");
    for section in ["/normalizer", "/pre_tokenizer", "/post_processor", "/decoder", "/model"] {
        accepted(section, Value::Null);
    }
}

#[test]
fn the_good_character_map_is_read_by_the_crate() {
    let normalizer: tokenizers::NormalizerWrapper =
        serde_json::from_value(good()["normalizer"]["normalizers"][3].clone()).unwrap();
    let mut text = tokenizers::NormalizedString::from("bAb");
    tokenizers::Normalizer::normalize(&normalizer, &mut text).unwrap();
    assert_eq!(text.get(), "bab");
}

#[test]
fn character_maps_that_are_broken() {
    let map = "/normalizer/normalizers/3/precompiled_charsmap";
    let field = "normalizer.normalizers[3].precompiled_charsmap";
    let all = |what| [field, what, "convert the tokenizer again"];
    refused(map, Value::Null, &all("is not a string"));
    refused(map, "".into(), &all("is empty"));
    refused(map, "not base64!".into(), &all("not base64"));
    refused(map, base64::encode([255, 255, 255, 255, 0]).into(), &all("cut short: its trie has 4294967292 bytes"));
    refused(map, base64::encode([0, 0, 0, 0]).into(), &all("has no trie"));
    refused(map, base64::encode([0, 0, 0, 0, 255]).into(), &all("not UTF-8"));
    refused(map, charsmap(|units| units.truncate(0x180), "a\0").into(), &all("goes to unit 511"));
    refused(map, charsmap(|units| units[0] = 0x200 << 10, "a\0").into(), &all("goes to unit 767"));
    refused(map, charsmap(|units| units[0x141] = 0x7fff << 10 | 0x41, "a\0").into(), &all("goes to unit"));
    refused(map, charsmap(|units| units[0x102] |= 3, "a\0").into(), &all("begins at byte 3 of 2"));
    refused(map, charsmap(|units| units[0x102] |= 1, "é\0").into(), &all("begins at byte 1 of 3"));
    // A cycle in the trie ends with the text.
    accepted(map, charsmap(|units| units[0x142] = (0x142 ^ 0x100) << 10 | 0x42, "a\0").into());
}

#[test]
fn patterns_of_nothing() {
    let replace = "/normalizer/normalizers/2/pattern";
    refused(replace, json!({"String": ""}), &["normalizer.normalizers[2].pattern", "is an empty string"]);
    for regex in ["", "a*", "^", "\\b", "(?=a)", "a|", "(a?)", "(?:a{0,3})+", "\\s*$", "(?<!a)"] {
        refused(replace, json!({"Regex": regex}), &["normalizer.normalizers[2].pattern", "can match nothing"]);
    }
    for regex in ["a", " {2,}", "[ab]+", "\\s+$", "(?=a)a", ".", "\\p{L}"] {
        accepted(replace, json!({"Regex": regex}));
    }
    let last = json!([{"type": "Replace", "pattern": {"Regex": "^"}, "content": "▁"}]);
    refused("/normalizer/normalizers", last.clone(), &["a later step rewrites"]);
    let mut json = good();
    json["normalizer"]["normalizers"] = last;
    json["pre_tokenizer"] = Value::Null;
    assert_eq!(check(&json), Ok(()), "nothing rewrites the text after it");
    refused("/decoder/decoders/0/pattern", json!({"String": ""}), &["decoder.decoders[0].pattern", "empty string"]);
    refused("/normalizer/normalizers/1/prepend", "".into(), &["normalizers[1].prepend is empty"]);
    let decoder = "/decoder/decoders/0";
    refused(decoder, json!({"type": "BPEDecoder", "suffix": ""}), &["decoder.decoders[0].suffix is an empty string"]);
    let ctc = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "", "cleanup": true});
    refused(decoder, ctc, &["word_delimiter_token is an empty string"]);
}

#[test]
fn matches_whose_start_moves() {
    let split = "/pre_tokenizer/pretokenizers/0/pattern";
    refused(split, json!({"Regex": "(?<=\\Ka)b"}), &["pre_tokenizer.pretokenizers[0].pattern", "\\K", "look-behind"]);
    accepted(split, json!({"Regex": "\\\\K"}));
    accepted(split, json!({"String": ""}));
}

#[test]
fn pieces_of_no_characters() {
    let split = "/pre_tokenizer/pretokenizers/0";
    refused(split, json!({"type": "FixedLength", "length": 0}), &["pretokenizers[0].length is 0"]);
    accepted(split, json!({"type": "FixedLength", "length": 1}));
}

#[test]
fn growing_replacements() {
    let replace =
        |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let double = || vec![replace("a", "aa"); 6];
    accepted("/normalizer/normalizers", double().into());
    let more = [double(), vec![replace("a", "aa")]].concat();
    refused("/normalizer/normalizers", more.into(), &["normalizers[6]: makes \"a\" more than 64 times"]);
    refused("/decoder/decoders", vec![replace("▁", "▁▁"); 40].into(), &["decoder.decoders[6]: makes \"▁\""]);
    let pair = |i: usize| if i.is_multiple_of(2) { replace("a", "bb") } else { replace("b", "aa") };
    refused("/normalizer/normalizers", (0..200).map(pair).collect(), &["more than 64 times"]);
    let regex = json!({"type": "Replace", "pattern": {"Regex": "[xy]"}, "content": "xyx"});
    refused("/normalizer/normalizers", vec![regex; 9].into(), &["more than 64 times"]);
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    refused("/pre_tokenizer/pretokenizers", vec![byte_level; 30].into(), &["pre_tokenizer.pretokenizers[", "as long"]);
    refused("/normalizer/normalizers/1/prepend", "▁".repeat(99).into(), &["normalizers[1]: makes"]);
    refused(
        "/normalizer/normalizers/2/content",
        "x".repeat(5000).into(),
        &["normalizers[2].content has more than 4096"],
    );
    // Many independent replacements are fine.
    accepted(
        "/normalizer/normalizers",
        ('a'..='z').map(|c| replace(&c.to_string(), &c.to_uppercase().to_string())).collect(),
    );
}

#[test]
fn sequences_in_sequences() {
    let nested =
        |depth| (0..depth).fold(json!({"type": "NFC"}), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}));
    accepted("/normalizer", nested(16));
    refused("/normalizer", nested(17), &["normalizer.normalizers[0]", "nested more than 16 deep"]);
    let steps = |n| json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); n]});
    accepted("/normalizer", steps(1000));
    refused("/normalizer", steps(1001), &["more than 1000 steps"]);
    refused("/decoder", json!(["Fuse"]), &["decoder is not an object"]);
    refused("/normalizer/normalizers/0", json!("NFC"), &["normalizer.normalizers[0] is not an object"]);
}

#[test]
fn templates_of_what_is_not_there() {
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let single = "/post_processor/single";
    refused(single, json!([text("B")]), &["post_processor.single has the sequence B"]);
    refused(single, json!([text("A"), text("A")]), &["has the text 2 times"]);
    refused("/post_processor/special_tokens", json!({}), &["post_processor.single", "\"<s>\"", "special_tokens"]);
    refused("/post_processor/special_tokens/<s>/ids", json!([0, 1]), &["2 ids and 1 tokens for \"<s>\""]);
    let twice = json!({"type": "Sequence", "processors": [good()["post_processor"], good()["post_processor"]]});
    refused("/post_processor", twice, &["post_processor.processors[1]: a second template"]);
    accepted(single, json!([text("A")]));
}

#[test]
fn spaces_that_two_tokens_take() {
    let tokens = |left: Value, right: Value| json!([left, right]);
    refused(
        "/added_tokens",
        tokens(added("<s>", false, true), added("  ", true, false)),
        &["added_tokens[1].lstrip", "added_tokens[0]", "set lstrip to false"],
    );
    accepted("/added_tokens", tokens(added("<s>", false, true), added("<mask>", true, false)));
    accepted("/added_tokens", tokens(added("<s>", false, false), added("  ", true, false)));
}

#[test]
fn merges_longer_than_any_token() {
    let merges = "/model/merges";
    refused(merges, json!(["a b", "ab ab"]), &["model.merges[1]", "\"abab\"", "longer than any token"]);
    refused(merges, json!([["ab", "ab"]]), &["model.merges[0]"]);
    accepted(merges, json!([["a", "b"]]));
    refused(
        "/model/continuing_subword_prefix",
        "##".into(),
        &["model.merges[0]", "\"b\"", "continuing_subword_prefix"],
    );
    let mut json = good();
    json["model"]["continuing_subword_prefix"] = "é".into();
    json["model"]["vocab"] = json!({"a": 0, "日": 1, "aé": 2});
    json["model"]["merges"] = json!(["a 日"]);
    assert!(check(&json).unwrap_err().contains("does not begin with"), "the prefix would end inside a character");
}

#[test]
fn models_that_take_without_end() {
    let model = |more: Value| {
        let mut model = json!({"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0}});
        model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        model
    };
    let max = |n: u64| model(json!({"max_input_chars_per_word": n}));
    refused("/model", max(u64::MAX), &["model.max_input_chars_per_word", "10000 or less"]);
    accepted("/model", max(100));
    let prefix = |n| model(json!({"continuing_subword_prefix": "#".repeat(n)}));
    refused("/model", prefix(65), &["model.continuing_subword_prefix has 65 bytes"]);
    accepted("/model", prefix(2));
    let unigram = |n| json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a".repeat(n), -1]]});
    refused("/model", unigram(2049), &["model.vocab[1] has 2049 bytes"]);
    accepted("/model", unigram(2048));
    refused("/model", json!([1]), &["model is not an object"]);
}

/// The longest token that the checks let pass must fit the stack of a thread that drops the model.
#[test]
fn long_unigram_tokens_are_dropped() {
    let json = json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a".repeat(2048), -1]]}});
    let tokenizer = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    drop(tokenizer.clone());
}

#[test]
fn added_tokens_that_become_nothing() {
    let mut token = added("  ", false, false);
    token["normalized"] = true.into();
    let json = json!({
        "added_tokens": [token],
        "normalizer": {"type": "Strip", "strip_left": true, "strip_right": true},
        "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}},
    });
    let tokenizer = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    let error = check_loaded(&tokenizer).unwrap_err();
    assert!(error.contains("added_tokens") && error.contains("normalized"), "{error}");
}
