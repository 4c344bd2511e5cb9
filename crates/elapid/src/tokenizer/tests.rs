use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;
use tempfile::tempdir;

use super::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A directory with that tokenizer, some sections of its file replaced, and files beside it.
fn with_files(sections: &[(&str, Value)], files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempdir().unwrap();
    let mut json: Value = serde_json::from_str(&fs::read_to_string(fixture("bpe.json")).unwrap()).unwrap();
    sections.iter().for_each(|(name, section)| json[*name] = section.clone());
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    files.iter().for_each(|(name, json)| fs::write(dir.path().join(name), json.to_string()).unwrap());
    dir
}

/// `tests/data/bpe.json`: the 256 bytes, merges of "the", "in" and the like, `<|endoftext|>` and a token of two spaces.
fn bpe() -> Tokenizer {
    Tokenizer::open(fixture("bpe.json")).unwrap()
}

#[test]
fn bytes_take_anything() {
    let tokenizer = Tokenizer::byte();
    let all: Vec<u8> = (0..=255).collect();
    let ids = tokenizer.encode(&all).unwrap();
    assert_eq!(ids, (0..256).collect::<Vec<u32>>());
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), all);
    assert_eq!(tokenizer.encode("<bos>").unwrap().len(), 5, "text never becomes a special id");
}

#[test]
fn special_bytes_are_silent() {
    let tokenizer = Tokenizer::byte();
    assert_eq!(tokenizer.vocab_size(), 259);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(256), Some(257), Some(258)));
    assert_eq!(tokenizer.decode_bytes(&[256, 65, 257]).unwrap(), b"A");
    assert!(tokenizer.is_special(257) && !tokenizer.is_special(65));
    assert_eq!(tokenizer.decode(&[256, 65, 257, 259], SpecialTokens::Show).unwrap(), "<bos>A<eos>");
    assert_eq!((tokenizer.document_prefix(), tokenizer.document_suffix()), ([].as_slice(), [].as_slice()));
    assert_eq!(tokenizer.end_ids(), [257]);
}

#[test]
fn bytes_save_and_open() {
    let dir = tempdir().unwrap();
    Tokenizer::byte().save(dir.path()).unwrap();
    assert!(Tokenizer::open(dir.path()).unwrap().is_byte());
    assert!(Tokenizer::open(dir.path().join("tokenizer.json")).unwrap().is_byte());
}

#[test]
fn bytes_are_the_same_in_hugging_face() {
    let hf = tokenizers::Tokenizer::from_bytes(Tokenizer::byte().definition().as_bytes()).unwrap();
    let text = "Naïve café — 日本語\r\n\t  \u{0}\u{7f} ends";
    let ids = hf.encode_fast(text, false).unwrap().get_ids().to_vec();
    assert_eq!(ids, Tokenizer::byte().encode(text).unwrap());
    assert_eq!(hf.decode(&ids, false).unwrap(), text);
    for (id, name) in [(256, "<bos>"), (257, "<eos>"), (258, "<pad>")] {
        assert_eq!(hf.token_to_id(name), Some(id));
    }
    // Files that the other library writes are recognised too.
    let dir = tempdir().unwrap();
    hf.save(dir.path().join("tokenizer.json"), true).unwrap();
    assert!(Tokenizer::open(dir.path()).unwrap().is_byte());
}

#[test]
fn bpe_encodes_and_decodes() {
    let tokenizer = bpe();
    assert_eq!(tokenizer.vocab_size(), 263);
    let ids = tokenizer.encode("the thin  end").unwrap();
    let piece = |&id| tokenizer.decode(&[id], SpecialTokens::Show).unwrap();
    assert_eq!(ids.iter().map(piece).collect::<Vec<_>>(), ["the", " th", "in", "  ", "e", "n", "d"]);
    let text = "the naïve 日本語  in\n\n it";
    assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(text).unwrap()).unwrap(), text.as_bytes());
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(261), Some(261), None));
    assert!(tokenizer.is_special(261) && !tokenizer.is_special(262));
    assert_eq!(tokenizer.decode(&[261], SpecialTokens::Show).unwrap(), "<|endoftext|>");
    assert_eq!(tokenizer.decode(&[261, 263], SpecialTokens::Skip).unwrap(), "");
}

#[test]
fn bpe_saves_and_opens() {
    let dir = tempdir().unwrap();
    let tokenizer = bpe();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    assert_eq!(again.eos(), tokenizer.eos());
    assert_ne!(again.fingerprint(), Tokenizer::byte().fingerprint());
}

#[test]
fn special_ids_come_from_the_files_beside() {
    let dir = tempdir().unwrap();
    fs::copy(fixture("bpe.json"), dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"bos_token_id": 7, "eos_token_id": 999999}"#).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(7), None), "an id out of range is not believed");
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"bos_token": {"content": "the"}, "pad_token": "in"}"#)
        .unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.bos(), tokenizer.token_id("the"));
    assert_eq!(tokenizer.pad(), tokenizer.token_id("in"));
}

#[test]
fn what_stands_around_a_text_comes_from_the_post_processor() {
    let template = |single: Value| {
        json!({
            "type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [261, 7], "tokens": ["x", "y"]}, "e": {"id": "e", "ids": [0], "tokens": ["e"]}},
        })
    };
    let (text, x, e) = (
        json!({"Sequence": {"id": "A", "type_id": 0}}),
        json!({"SpecialToken": {"id": "x", "type_id": 0}}),
        json!({"SpecialToken": {"id": "e", "type_id": 0}}),
    );
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let bert = json!({"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 2]});
    let roberta = json!({"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 2], "trim_offsets": true,
        "add_prefix_space": true});
    let both = json!({"type": "Sequence", "processors": [bert, byte_level, template(json!([x, text, e]))]});
    let cases: [(Value, &[u32], &[u32]); 7] = [
        (Value::Null, &[], &[]),
        (byte_level.clone(), &[], &[]),
        (template(json!([x, text])), &[261, 7], &[]),
        (template(json!([e, text, x, e])), &[0], &[261, 7, 0]),
        (bert.clone(), &[2], &[1]),
        (roberta, &[2], &[1]),
        (both, &[261, 7, 2], &[1, 0]),
    ];
    for (processor, prefix, suffix) in cases {
        let dir = with_files(&[("post_processor", processor.clone())], &[]);
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((tokenizer.document_prefix(), tokenizer.document_suffix()), (prefix, suffix), "{processor}");
        // The library's own words about it.
        let library = tokenizers::Tokenizer::from_bytes(tokenizer.definition().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode_document("the end").unwrap(), library.encode("the end", true).unwrap().get_ids());
        assert_eq!(tokenizer.encode_prompt("in").unwrap(), [prefix, &tokenizer.encode("in").unwrap()].concat());
    }
    for (processor, part) in [
        (template(json!([{"SpecialToken": {"id": "lost", "type_id": 0}}, text])), "`lost`"),
        (template(json!([x])), "no place for the text"),
        (json!({"type": "BertProcessing", "sep": ["b", 9000], "cls": ["a", 2]}), "9000"),
    ] {
        let dir = with_files(&[("post_processor", processor)], &[]);
        let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("post_processor"), "{error}");
    }
}

#[test]
fn the_config_overrules_the_post_processor() {
    let bert = json!({"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 2]});
    let open = |processor: &Value, config: Value| {
        let dir = with_files(&[("post_processor", processor.clone())], &[("tokenizer_config.json", config)]);
        Tokenizer::open(dir.path())
    };
    let around = |processor: &Value, config: Value| {
        let tokenizer = open(processor, config).unwrap();
        (tokenizer.document_prefix().to_vec(), tokenizer.document_suffix().to_vec())
    };
    let named = |add: Value| {
        let mut config = json!({"bos_token": "the", "eos_token": "in"});
        config.as_object_mut().unwrap().extend(add.as_object().unwrap().clone());
        config
    };
    let (the, end) = (bpe().token_id("the").unwrap(), bpe().token_id("in").unwrap());
    assert_eq!(around(&bert, named(json!({}))), (vec![2], vec![1]));
    assert_eq!(around(&bert, named(json!({"add_bos_token": false}))), (vec![], vec![1]));
    assert_eq!(around(&bert, named(json!({"add_bos_token": true, "add_eos_token": false}))), (vec![the], vec![]));
    assert_eq!(
        around(&Value::Null, named(json!({"add_bos_token": true, "add_eos_token": true}))),
        (vec![the], vec![end])
    );
    assert_eq!(around(&bert, named(json!({"add_bos_token": null}))), (vec![2], vec![1]));
    let error = open(&bert, json!({"add_bos_token": "yes"})).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("add_bos_token"), "{error}");

    // The saved file has it in itself, without the flag, also for other programs.
    let tokenizer = open(&bert, named(json!({"add_bos_token": true, "add_eos_token": false}))).unwrap();
    let library = tokenizers::Tokenizer::from_bytes(tokenizer.definition().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode_document("end").unwrap(), library.encode("end", true).unwrap().get_ids());
    let dir = tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((again.document_prefix(), again.document_suffix()), ([the].as_slice(), [].as_slice()));
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    assert_ne!(again.fingerprint(), again.with_document_prefix([]).unwrap().fingerprint());
}

#[test]
fn a_prefix_of_bytes_is_saved() {
    let dir = tempdir().unwrap();
    let tokenizer = Tokenizer::byte().with_document_prefix([256]).unwrap().with_document_suffix([257, 10]).unwrap();
    assert_eq!(tokenizer.encode_document("a").unwrap(), [256, 97, 257, 10]);
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::open(dir.path()).unwrap();
    assert!(again.is_byte());
    assert_eq!((again.document_prefix(), again.document_suffix()), ([256].as_slice(), [257, 10].as_slice()));
}

#[test]
fn end_ids_are_those_of_the_files_and_the_tokenizers_own() {
    let ends = |files: &[(&str, Value)]| {
        let dir = with_files(&[], files);
        (Tokenizer::open(dir.path()).unwrap().end_ids().to_vec(), stated_end_ids(dir.path()).unwrap())
    };
    let config = |ids: Value| ("config.json", json!({"eos_token_id": ids}));
    let generation = |ids: Value| ("generation_config.json", json!({"eos_token_id": ids}));
    assert_eq!(ends(&[]), (vec![261], None), "by its usual name");
    assert_eq!(ends(&[config(json!(7))]), (vec![7], Some(vec![7])));
    assert_eq!(ends(&[config(json!([9, 7]))]), (vec![7, 9], Some(vec![9, 7])));
    assert_eq!(ends(&[config(json!([9, 7])), generation(json!(3))]), (vec![3], Some(vec![3])));
    assert_eq!(ends(&[config(json!(7)), generation(Value::Null)]), (vec![7], Some(vec![7])));
    assert_eq!(ends(&[config(json!(7)), ("generation_config.json", json!({}))]), (vec![7], Some(vec![7])));
    assert_eq!(ends(&[config(Value::Null)]), (vec![], Some(vec![])), "the usual name counts where no file says");
    let named = ("tokenizer_config.json", json!({"eos_token": "the"}));
    assert_eq!(
        ends(&[generation(json!([3, 4])), named]),
        (vec![3, 4, bpe().token_id("the").unwrap()], Some(vec![3, 4]))
    );
    let dir = with_files(&[], &[generation(json!("</s>"))]);
    let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("eos_token_id"), "{error}");
}

#[test]
fn files_beside_that_are_no_json_are_named() {
    for name in ["tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"] {
        for text in ["{\"eos_token\": ", "[]", "version https://git-lfs.github.com/spec/v1"] {
            let dir = with_files(&[], &[]);
            fs::write(dir.path().join(name), text).unwrap();
            let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
    let dir = with_files(&[], &[]);
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 7, "time_step_limit": [0.0, Infinity]}"#).unwrap();
    assert_eq!(Tokenizer::open(dir.path()).unwrap().end_ids(), [7]);
}

#[test]
fn dropout_truncation_and_padding_are_off() {
    let mut json: Value = serde_json::from_str(&fs::read_to_string(fixture("bpe.json")).unwrap()).unwrap();
    json["model"]["dropout"] = json!(0.5);
    json["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "x"});
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let text = "the thin end in the thing";
    for _ in 0..20 {
        assert_eq!(tokenizer.encode(text).unwrap(), bpe().encode(text).unwrap());
    }
    assert_eq!(tokenizer.fingerprint(), bpe().fingerprint(), "the same ids");
}

#[test]
fn text_that_is_not_utf8_is_refused_with_its_place() {
    let error = bpe().encode(b"the \xff end").unwrap_err();
    assert!(matches!(error, TokenizerError::InvalidUtf8 { offset: 4 }), "{error}");
}

#[test]
fn files_that_are_no_tokenizer_are_refused() {
    let dir = tempdir().unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing { .. }), "{error}");
    let file = dir.path().join("tokenizer.json");
    let definition = fs::read_to_string(fixture("bpe.json")).unwrap();
    let wrong = [
        ("{\"a\":".to_owned(), "not JSON"),
        ("".to_owned(), "an empty file"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2113710\n".to_owned(), "Git LFS pointer"),
        ("<!doctype html><html></html>".to_owned(), "a web page (HTML)"),
        ("{}".to_owned(), "not a tokenizer"),
        (definition.replace(r#""decoder": {"#, r#""decoder": 7, "other": {"#), "decoder is not an object"),
        (definition.replace(r#""the": 257"#, r#""the": 4257000000"#), "far beyond"),
    ];
    for (text, part) in wrong {
        fs::write(&file, text).unwrap();
        let error = Tokenizer::open(&file).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("tokenizer.json"), "{error}");
    }
    // Compressed: not even text.
    fs::write(&file, b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xff\xfe").unwrap();
    assert!(Tokenizer::open(&file).unwrap_err().to_string().contains("gzip"));
    // A byte order mark is skipped, here and in the files beside it.
    fs::write(&file, format!("\u{feff}{definition}")).unwrap();
    let config = dir.path().join("tokenizer_config.json");
    fs::write(&config, "\u{feff}{}").unwrap();
    Tokenizer::open(&file).unwrap();
    fs::write(&config, "<html></html>").unwrap();
    let error = Tokenizer::open(&file).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: wanted JSON, got a web page"), "{error}");
}

#[test]
fn sentence_piece_spelling() {
    let dir = tempdir().unwrap();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "</s>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": {"</s>": 0, "▁": 1, "a": 2, "▁a": 3, "<0xC3>": 4, "<0xA9>": 5}, "merges": ["▁ a"]},
    });
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let ids = tokenizer.encode("a aé").unwrap();
    assert_eq!(ids, [3, 3, 4, 5]);
    assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip).unwrap(), "a aé");
    assert_eq!(tokenizer.eos(), Some(0));
}

/// The tokenizer of the published Mamba models, when the machine has it (`ELAPID_GPT_NEOX` is its path).
#[test]
fn gpt_neox_if_present() {
    let path = std::env::var_os("ELAPID_GPT_NEOX")
        .map_or_else(|| fixture("../../../../../shared/data/tokenizers/gpt-neox-20b/tokenizer.json"), PathBuf::from);
    if !path.exists() {
        eprintln!("skipped: {} is absent; set ELAPID_GPT_NEOX to the GPT-NeoX tokenizer.json", path.display());
        return;
    }
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.vocab_size(), 50_277);
    assert_eq!(tokenizer.encode("Mamba is the").unwrap(), [46, 31834, 310, 253]);
    assert_eq!(tokenizer.eos(), Some(0));
    assert_eq!(tokenizer.pad(), Some(1));
    let text = "\tfn main() {\n        println!(\"日本語 é\");\n}\n\n";
    assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(text).unwrap()).unwrap(), text.as_bytes());
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(text in "(\\PC|the|in| |\n){0,40}") {
        let tokenizer = bpe();
        prop_assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(&text).unwrap()).unwrap(), text.as_bytes());
    }
}

/// Ids, and their text without and with special tokens.
type Text = (Vec<u32>, [String; 2]);

/// A small tokenizer for each decoder, and texts of ids by the `tokenizers` library for Python
/// (`tests/python/hf_tokenizers.py --record`).
fn recorded() -> Vec<(String, Tokenizer, Vec<Text>)> {
    let mut files: Vec<_> = fs::read_dir(fixture("tokenizers")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let one = |path: PathBuf| {
        let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let texts = serde_json::from_value::<Vec<(Vec<u32>, String, String)>>(json["texts"].clone()).unwrap();
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), json["tokenizer"].to_string()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let texts = texts.into_iter().map(|(ids, skipped, shown)| (ids, [skipped, shown])).collect();
        (name, Tokenizer::open(dir.path()).unwrap(), texts)
    };
    files.into_iter().map(one).collect()
}

const BOTH: [SpecialTokens; 2] = [SpecialTokens::Skip, SpecialTokens::Show];

fn streamed(stream: TextStream<'_>, ids: &[u32]) -> String {
    let mut stream = stream;
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap();
    text
}

/// The rest of a text after a prefix.
fn beyond<'a>(text: &'a str, known: &str) -> &'a str {
    let same: usize = text.chars().zip(known.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &text[same..]
}

#[test]
fn text_is_that_of_the_library() {
    let all = recorded();
    assert_eq!(all.len(), 28);
    for (name, tokenizer, texts) in all {
        assert!(texts.len() >= 20, "{name}");
        for (ids, wanted) in texts {
            for (special, wanted) in BOTH.into_iter().zip(wanted) {
                assert_eq!(tokenizer.decode(&ids, special).unwrap(), wanted, "{name} {special:?} {ids:?}");
            }
        }
    }
}

#[test]
fn a_continuation_is_the_text_of_all_without_that_of_the_beginning() {
    for (name, tokenizer, texts) in recorded() {
        for (ids, wanted) in texts {
            for at in 0..=ids.len() {
                let (first, last) = ids.split_at(at);
                let known = tokenizer.decode(first, SpecialTokens::Skip).unwrap();
                let stream = tokenizer.stream(SpecialTokens::Skip).after(first).unwrap();
                assert_eq!(streamed(stream, last), beyond(&wanted[0], &known), "{name} {first:?} {last:?}");
            }
        }
    }
}

#[test]
fn text_comes_as_soon_as_it_is_sure() {
    let pieces = |name: &str, tokens: &[&str]| -> Vec<String> {
        let (_, tokenizer, _) = recorded().into_iter().find(|(found, ..)| found == name).unwrap();
        let mut stream = tokenizer.stream(SpecialTokens::Skip);
        let ids = tokens.iter().map(|token| tokenizer.token_id(token).unwrap());
        let mut pieces: Vec<String> = ids.map(|id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    };
    assert_eq!(pieces("none", &["a", "b", "."]), ["a", " b", " .", ""]);
    assert_eq!(pieces("llama", &["▁a", "▁", "<0xE2>", "<0x82>", "<0xAC>", "b"]), ["a", " ", "", "", "", "€b", ""]);
    assert_eq!(pieces("llama", &["a", "<0xE2>", "<0x82>"]), ["a", "", "", "\u{fffd}\u{fffd}"]);
    assert_eq!(pieces("byte-level", &["a", "â", "Ĥ", "¬", "Ġa"]), ["a", "", "", "€", " a", ""]);
    assert_eq!(pieces("bpe-suffix", &["a</w>", "c</w>"]), ["", "a ", "c"]);
    assert_eq!(pieces("metaspace-always", &["_a", "_b", "c"]), ["a", " b", "c", ""]);
    assert_eq!(pieces("wordpiece-cleanup", &["do", "n't", "##c", "."]), ["do", "n't", "c", ".", ""]);
    assert_eq!(pieces("fuse-replace", &["a", "b", "c", "ab", "a"]), ["", "", "abc", "", "<>", ""]);
    assert_eq!(pieces("strip-both", &["_", "a", "_", "_", "_b", "_"]), ["", "a", "", "", "   b", "", ""]);
}

/// The text from the crate's own decoder, unless it panics, as it does for some empty tokens.
fn by_the_crate(tokenizer: &tokenizers::Tokenizer, ids: &[u32], special: SpecialTokens) -> Option<String> {
    let decode = || tokenizer.decode(ids, special == SpecialTokens::Skip).unwrap();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_stream_is_the_whole_for_any_ids(ids in prop::collection::vec(0_u32..60, 0..24)) {
        static ALL: LazyLock<Vec<(String, Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
            let library = |tokenizer: &Tokenizer| tokenizers::Tokenizer::from_bytes(tokenizer.definition().as_bytes());
            recorded().into_iter().map(|(name, ours, _)| (name, ours.clone(), library(&ours).unwrap())).collect()
        });
        for (name, ours, library) in ALL.iter() {
            for special in BOTH {
                if let Some(wanted) = by_the_crate(library, &ids, special) {
                    prop_assert_eq!(streamed(ours.stream(special), &ids), wanted, "{}", name);
                }
            }
        }
    }
}
