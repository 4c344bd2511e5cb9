use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// So small that a short text has many windows. What is asked of them grows with the added tokens.
const TINY: Sizes = Sizes { piece: 32, overlap: 24, margin: 6, limit: 1 << 20, group: 64 };

fn tokenizer(normalizer: Value, pre_tokenizer: Value, model: Value, added: Value) -> tokenizers::Tokenizer {
    let definition = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model,
    });
    tokenizers::Tokenizer::from_bytes(definition.to_string()).unwrap()
}

/// Characters and merges of some that texts are made of.
fn bpe() -> Value {
    let merges = [
        "a b",
        "▁ a",
        "Ġ a",
        "ab ab",
        "c d",
        "▁ ▁",
        "▁▁ ▁▁",
        "Ġ Ġ",
        "a a",
        "aa aa",
        "1 2",
        "12 1",
        "▁a b",
        "d ▁",
        "ab c",
        "Ċ Ċ",
        "- -",
        "-- --",
        "<0xE6> <0x97>",
        "\n \n",
        "  a",
        "e ́",
    ];
    let merges: Vec<Vec<&str>> = merges
        .iter()
        .map(|pair| {
            let (a, b) = if *pair == "  a" { (" ", "a") } else { pair.split_once(' ').unwrap() };
            vec![a, b]
        })
        .collect();
    let mut tokens: Vec<String> = ["<unk>", "é"].map(String::from).to_vec();
    tokens.extend("abcde12▁ĠĊ- \n\"<>/s.,maskx́éA".chars().map(String::from));
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(merges.iter().map(|pair| pair.concat()));
    let mut vocab = serde_json::Map::new();
    for token in tokens {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    }
    json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    })
}

fn word_piece() -> Value {
    let vocab: serde_json::Map<_, _> =
        ["[UNK]", "a", "b", "ab", "##a", "##b", "##ab", "c", "##c", "12", "##1", "##2", "-"]
            .iter()
            .enumerate()
            .map(|(id, token)| (token.to_string(), id.into()))
            .collect();
    json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 12,
        "vocab": vocab,
    })
}

fn word_level(unk: &str) -> Value {
    json!({"type": "WordLevel", "unk_token": unk, "vocab": {"[UNK]": 0, "a": 1, "ab": 2, "12": 3, "\n": 4, "-": 5}})
}

fn unigram() -> Value {
    let mut vocab = vec![json!(["<unk>", 0.0])];
    let tokens = ["a", "b", "c", "▁", "▁a", "ab", "aba", "aa", "▁▁", "--", "-", "1", "21", "12", "d", "ab▁", "▁ab"];
    vocab.extend(tokens.iter().enumerate().map(|(i, token)| json!([token, -2.0 - 0.37 * i as f64])));
    json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false})
}

fn added() -> Value {
    let token = |id: u32, content: &str, flags: [bool; 4]| {
        let [single_word, lstrip, rstrip, normalized] = flags;
        json!({"id": id, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
               "normalized": normalized, "special": !normalized})
    };
    json!([
        token(1000, "<s>", [false; 4]),
        token(1001, "<mask>", [false, true, false, false]),
        token(1002, "</s>", [false, false, true, false]),
        token(1003, "cab", [true, false, false, true]),
        token(1004, "d  ", [false, false, false, true]),
    ])
}

/// Tokenizers of every kind, with a name each.
static TOKENIZERS: LazyLock<Vec<(&str, tokenizers::Tokenizer)>> = LazyLock::new(tokenizers);

fn tokenizers() -> Vec<(&'static str, tokenizers::Tokenizer)> {
    let none = || Value::Null;
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let llama = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let byte_level = |prefix: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: &str, behavior: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false});
    let plain = |kind: &str| json!({"type": kind});
    let sequence = |all: Value| json!({"type": "Sequence", "pretokenizers": all});
    let forms = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]});
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                      "strip_accents": null, "lowercase": true});
    let runs = split(r"\s+(?!\S)|\s+|[^\s]+", "Isolated");
    let digits = split(r"\d{1,3}(?=(?:\d{3})*(?:\D|$))", "Isolated");
    let quotes = split("\"[^\"]*\"|[^\"]+", "Isolated");
    let gaps = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    vec![
        ("Prepend, Replace", tokenizer(llama.clone(), none(), bpe(), added())),
        ("Prepend, Replace, no added", tokenizer(llama.clone(), none(), bpe(), json!([]))),
        ("Prepend and Unigram", tokenizer(llama, none(), unigram(), added())),
        ("Metaspace first", tokenizer(none(), metaspace("first", true), unigram(), added())),
        ("Metaspace always", tokenizer(none(), metaspace("always", true), bpe(), added())),
        ("Metaspace never", tokenizer(none(), metaspace("never", true), unigram(), json!([]))),
        ("Metaspace first, whole", tokenizer(none(), metaspace("first", false), bpe(), added())),
        ("Metaspace always, whole, Unigram", tokenizer(none(), metaspace("always", false), unigram(), json!([]))),
        ("ByteLevel", tokenizer(none(), byte_level(false, true), bpe(), added())),
        ("ByteLevel with a prefix", tokenizer(none(), byte_level(true, true), bpe(), json!([]))),
        ("ByteLevel without a pattern, NFC", tokenizer(plain("NFC"), byte_level(false, false), bpe(), added())),
        ("BERT", tokenizer(bert, plain("BertPreTokenizer"), word_piece(), added())),
        ("WordPiece of lines", tokenizer(none(), plain("WhitespaceSplit"), word_piece(), json!([]))),
        ("WordPiece alone", tokenizer(none(), none(), word_piece(), json!([]))),
        ("WordLevel", tokenizer(forms, plain("Whitespace"), word_level("[UNK]"), added())),
        ("Strip", tokenizer(strip, plain("Punctuation"), bpe(), added())),
        ("runs of white space", tokenizer(gaps, runs, bpe(), json!([]))),
        (
            "digits by three from the right",
            tokenizer(none(), sequence(json!([digits, byte_level(false, true)])), bpe(), added()),
        ),
        ("quotes", tokenizer(none(), quotes, bpe(), json!([]))),
        ("merged with the one before", tokenizer(plain("NFD"), split(r"\s", "MergedWithPrevious"), bpe(), added())),
        ("white space is removed", tokenizer(none(), split(r"\s+", "Removed"), unigram(), added())),
        ("fixed length", tokenizer(none(), json!({"type": "FixedLength", "length": 5}), bpe(), json!([]))),
        ("no pre-tokenizer", tokenizer(none(), none(), bpe(), added())),
        (
            "digits",
            tokenizer(
                none(),
                sequence(json!([{"type": "Digits", "individual_digits": false}, plain("UnicodeScripts")])),
                bpe(),
                added(),
            ),
        ),
    ]
}

fn in_pieces(inner: &tokenizers::Tokenizer, text: &str, sizes: Sizes, part: usize) -> Result<Encoded> {
    let mut encoder = Encoder::with(Some(Cutter::new(inner, sizes)));
    let mut all = Encoded::default();
    for part in text.as_bytes().chunks(part) {
        all.append(encoder.push(part)?);
    }
    all.append(encoder.finish()?);
    Ok(all)
}

fn check(text: &str, part: usize) {
    for (name, inner) in TOKENIZERS.iter() {
        let whole = inner.encode_fast(text, false).unwrap();
        let pieces = match in_pieces(inner, text, TINY, part) {
            // Whether a place is inside quotes depends on all quotes before it, further away than the windows overlap.
            Err(TokenizerError::TooLong { .. }) if *name == "quotes" => continue,
            pieces => pieces.unwrap_or_else(|error| panic!("{name}: {text:?}: {error}")),
        };
        assert_eq!(pieces.ids, whole.get_ids(), "{name}: {text:?}");
        let bytes: u64 = pieces.bytes.iter().sum();
        assert!(bytes == text.len() as u64 || pieces.ids.is_empty(), "{name}: {bytes} of {text:?}");
    }
}

/// What odd texts are made of.
fn fragment() -> impl Strategy<Value = String> {
    let words = ["a", "ab", "abab", "cab", "c", "d", "12", "aa", "e\u{301}", "é", "日本", "A", ".", "-", "\"", "x"];
    let odd =
        ["<s>", "<mask>", "</s>", "d  ", "<s", "  <mask>  ", "</s>   ", "\r\n", "\u{3000}", "▁", "🦀", "\u{200d}"];
    prop_oneof![
        6 => proptest::sample::select(words.to_vec()).prop_map(String::from),
        5 => Just(" ".to_owned()),
        1 => Just("\n".to_owned()),
        2 => proptest::sample::select(odd.to_vec()).prop_map(String::from),
        1 => (proptest::sample::select(vec![" ", "\n", "a", "12", "-", "ab", "日", " a", "\"", "e\u{301}"]), 1_usize..60)
            .prop_map(|(what, times)| what.repeat(times)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pieces_have_the_tokens_of_the_whole(fragments in prop::collection::vec(fragment(), 1..400), part in 1_usize..300) {
        check(&fragments.concat(), part);
    }
}

/// The longest window, and whether all tokens of all but the last windows come before the end.
fn longest_window(inner: &tokenizers::Tokenizer, text: &str, sizes: Sizes) -> usize {
    let cutter = Cutter::new(inner, sizes);
    let mut encoder = Encoder::with(Some(cutter));
    let mut longest = 0;
    for part in text.as_bytes().chunks(cutter.sizes.group) {
        encoder.push(part).unwrap();
        longest = longest.max(encoder.pending.as_ref().map_or(0, |window| window.text.len()));
    }
    longest
}

#[test]
fn ordinary_text_is_read_in_bounded_windows() {
    let english = "the cab ran past an old bridge, 12 of them; ab abab d -- and back\n".repeat(300);
    let chinese = "日本語の文章、世界。 ab 世界を見る。".repeat(300);
    let whole = ["Prepend and Unigram", "Metaspace always, whole, Unigram", "WordPiece alone", "quotes"];
    for (name, inner) in TOKENIZERS.iter() {
        // Words of characters of three bytes are as much longer.
        let large = Sizes { piece: 192, overlap: 144, margin: 12, group: 384, ..TINY };
        for (text, sizes) in [(&english, TINY), (&chinese, large)] {
            let largest = 3 * Cutter::new(inner, sizes).sizes.piece;
            let longest = longest_window(inner, text, sizes);
            assert!(whole.contains(name) || longest <= largest, "{name}: {longest} of {}", text.len());
        }
        check(&english[..3000], 100);
    }
}

#[test]
fn a_text_that_cannot_be_cut_has_a_limit() {
    let (_, inner) = TOKENIZERS.iter().find(|(name, _)| *name == "Prepend and Unigram").unwrap();
    let sizes = Sizes { limit: 2000, ..TINY };
    let text = "ab ".repeat(1000);
    assert!(in_pieces(inner, &text[..1900], sizes, 100).is_ok());
    assert!(matches!(in_pieces(inner, &text, sizes, 100), Err(TokenizerError::TooLong { limit: 2000 })));
}

/// A quotation is a word from its first to its last quote: without the last one, a window has two words.
#[test]
fn words_may_end_far_away() {
    let (name, inner) = TOKENIZERS.iter().find(|(name, _)| *name == "quotes").unwrap();
    let opened = [&"\"".repeat(59), "\u{3000}\u{3000} Ac\u{3000} A", &"\"".repeat(34), "  <mask>  "].concat();
    check(&[&opened, &"12".repeat(56), "\"12aaababa"].concat(), 1);

    // Where the first quote is a token of its own only without the last one, the text is refused or right.
    let mut model = bpe();
    model["merges"].as_array_mut().unwrap().push(json!(["\"", "a"]));
    model["vocab"].as_object_mut().unwrap().insert("\"a".to_owned(), 900.into());
    let quotes = serde_json::to_value(inner.get_pre_tokenizer().unwrap()).unwrap();
    let inner = tokenizer(Value::Null, quotes, model, json!([]));
    let mut refused = 0;
    for before in 0..300 {
        let text =
            ["d\"\"".repeat(before / 3), "d".repeat(before % 3), "\"".into(), "a1".repeat(200), "\"".into()].concat();
        match in_pieces(&inner, &text, TINY, 1) {
            Ok(pieces) => {
                assert_eq!(pieces.ids, inner.encode_fast(text.as_str(), false).unwrap().get_ids(), "{name} {before}")
            }
            Err(error) => {
                assert!(matches!(error, TokenizerError::TooLong { .. }), "{error}");
                refused += 1;
            }
        }
    }
    assert!((1..150).contains(&refused), "{refused}");
}

#[test]
fn text_that_is_not_utf8_is_located_across_parts() {
    let (_, inner) = &TOKENIZERS[0];
    let good = "日本 ab ".repeat(200);
    for (bad, at) in [(&b"\xff"[..], 0), (b"ab\xe6\x97", 2), (b"\xe6\x97 ", 0)] {
        let bytes = [good.as_bytes(), bad].concat();
        for part in [1, 2, 3, 64, 5000] {
            let mut encoder = Encoder::with(Some(Cutter::new(inner, TINY)));
            let pushed = bytes.chunks(part).try_for_each(|part| encoder.push(part).map(drop));
            let error = pushed.and_then(|()| encoder.finish()).unwrap_err();
            let TokenizerError::InvalidUtf8 { offset } = error else { panic!("{error}") };
            assert_eq!(offset, good.len() + at, "{bad:?} in parts of {part}");
        }
    }
}

#[test]
fn a_long_text_has_the_tokens_of_the_whole() {
    let inner = tokenizers::Tokenizer::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/bpe.json")).unwrap();
    let line = "“Now, good Peter,” she said; “the café’s 1234567 naïve guests...   wait!”\n\n\t日本語の文章、世界。\n";
    let text: String = (0..9000).map(|i| format!("{i} {line}")).collect();
    for text in [text.as_str(), &" ".repeat(400_000), &"ab".repeat(300_000)] {
        let whole = inner.encode_fast(text, false).unwrap();
        assert_eq!(in_pieces(&inner, text, SIZES, Encoder::PART).unwrap().ids, whole.get_ids(), "{}", &text[..10]);
    }
}
