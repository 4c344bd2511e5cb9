use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::tempdir;

use super::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
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
    let error = tokenizer.decode_bytes(&[259]).unwrap_err();
    assert_eq!(error.to_string(), "token id 259 is not in the vocabulary of 259");
}

#[test]
fn bytes_save_and_open() {
    let dir = tempdir().unwrap();
    Tokenizer::byte().save(dir.path()).unwrap();
    assert!(matches!(Tokenizer::open(dir.path()).unwrap(), Tokenizer::Byte));
    assert!(matches!(Tokenizer::open(dir.path().join("tokenizer.json")).unwrap(), Tokenizer::Byte));
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
    // What the other library writes is recognised too.
    let dir = tempdir().unwrap();
    hf.save(dir.path().join("tokenizer.json"), true).unwrap();
    assert!(matches!(Tokenizer::open(dir.path()).unwrap(), Tokenizer::Byte));
}

#[test]
fn bpe_encodes_and_decodes() {
    let tokenizer = bpe();
    assert_eq!(tokenizer.vocab_size(), 263);
    let ids = tokenizer.encode("the thin  end").unwrap();
    let pieces: Vec<&[u8]> = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
    assert_eq!(pieces, [b"the".as_slice(), b" th", b"in", b"  ", b"e", b"n", b"d"]);
    let text = "the naïve 日本語  in\n\n it";
    assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(text).unwrap()).unwrap(), text.as_bytes());
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(261), Some(261), None));
    assert!(tokenizer.is_special(261) && !tokenizer.is_special(262));
    assert_eq!(tokenizer.token_bytes(261).unwrap(), b"<|endoftext|>");
    assert!(tokenizer.token_bytes(263).is_err());
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
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(7), Some(261)), "an id out of range is not believed");
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"bos_token": {"content": "the"}, "pad_token": "in"}"#)
        .unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.token_bytes(tokenizer.bos().unwrap()).unwrap(), b"the");
    assert_eq!(tokenizer.token_bytes(tokenizer.pad().unwrap()).unwrap(), b"in");
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
        ("{}".to_owned(), "not a tokenizer"),
        (
            definition.replace(
                r#""decoder": {"type": "ByteLevel""#,
                r#""decoder": {"type": "WordPiece", "prefix": "a", "cleanup": true"#,
            ),
            "WordPiece",
        ),
        (definition.replace(r#""the": 257"#, r#""the": 4257000000"#), "far beyond"),
    ];
    for (text, part) in wrong {
        fs::write(&file, text).unwrap();
        let error = Tokenizer::open(&file).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("tokenizer.json"), "{error}");
    }
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
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), " a aé".as_bytes());
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
