//! A trial of a tokenizer: load it, encode unusual texts, decode every kind of token.
//!
//! [`Tokenizer::open`] refuses what is known to break. Other files may still panic, abort or never end, and an abort ends
//! the process. [`run`] is for a process that may be lost: the command line calls it in a child with limits on memory and
//! CPU time before it opens an unknown file.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Result, SpecialTokens, Tokenizer, byte, check};
use crate::json;

/// Maximum number of the file's texts to try.
const OWN_TEXTS: usize = 400;
/// Maximum bytes of each of them.
const OWN_TEXT: usize = 1000;
/// Maximum tokens to decode, one after another, and each as a separate text.
const TOKENS: usize = 4096;
const ALONE: usize = 64;

/// Changes whenever a trial could have another result: with the checks and the texts.
pub const VERSION: u32 = check::VERSION << 8 | 1;

/// Whether a file's bytes can break anything: not if they are not JSON, or elapid's own byte tokenizer.
pub fn is_needed(tokenizer_json: &[u8]) -> bool {
    /// Longer than the byte tokenizer in any formatting.
    const OWN: usize = 64 << 10;
    if tokenizer_json.len() > OWN {
        return true;
    }
    parse(tokenizer_json).is_some_and(|json| !byte::is_definition(&json))
}

/// Opens a tokenizer and uses it on unusual texts. It may refuse texts with an error.
///
/// # Errors
/// As [`Tokenizer::open`]. For a hostile file this may also panic, end the process, or not return.
pub fn run(file: &Path) -> Result<()> {
    let tokenizer = Tokenizer::open(file)?;
    let json = fs::read(file).ok().and_then(|bytes| parse(&bytes)).unwrap_or_default();
    for text in texts(&json) {
        if let Ok(ids) = tokenizer.encode(&text) {
            let _ = tokenizer.decode(&ids, SpecialTokens::Show);
        }
    }
    let size = tokenizer.vocab_size();
    let ids: Vec<u32> =
        (0..size).step_by(size.div_ceil(TOKENS).max(1)).filter_map(|id| u32::try_from(id).ok()).collect();
    for &id in ids.iter().take(ALONE) {
        let _ = tokenizer.decode(&[id], SpecialTokens::Show);
    }
    let mut stream = tokenizer.stream(SpecialTokens::Show);
    ids.iter().for_each(|&id| drop(stream.push(id)));
    let _ = stream.finish();
    let _ = tokenizer.decode(&ids, SpecialTokens::Skip);
    let _ = tokenizer.decode(&[], SpecialTokens::Show);
    Ok(())
}

fn parse(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(json::without_mark(bytes)).ok()
}

/// Texts of all scripts, one character repeated many times, and strings that the file itself looks for.
// Long: a list of texts, one a line.
fn texts(json: &Value) -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "  ",
        "a",
        "A",
        "\n",
        "\t",
        "\r\n",
        "\u{0}",
        "\u{7f}",
        "é",
        "e\u{301}",
        "\u{301}",
        "ß",
        "İ",
        "ﷺ",
        "日",
        "▁",
        "▁▁a",
        "Ġ",
        "\u{feff}",
        "\u{fffd}",
        "\u{ad}",
        "\u{200d}",
        "👩‍👩‍👧",
        "\u{10ffff}",
        "0",
        "1234567",
        ".",
        "a.b",
        "<s>",
        "</s>",
        "[UNK]",
        "<0x0A>",
        "the",
        "The end.",
        " the  end ",
        "\n\n\tthe\n",
        "don't",
        "naïve café — 日本語",
        "مرحبا بالعالم",
        "नमस्ते",
        "สวัสดี",
        "한국어",
        "x = [1, 2];\r\n\tif (x) { y(\"z\"); }",
    ]
    .map(str::to_owned)
    .to_vec();
    let many = [
        ("a", 5000),
        (" ", 5000),
        ("a ", 2000),
        ("é", 2000),
        ("日", 2000),
        ("\u{301}", 500),
        ("\n", 2000),
        ("0", 2000),
    ];
    texts.extend(many.map(|(text, count)| text.repeat(count)));
    texts.push((1..0x11_0000).step_by(127).filter_map(char::from_u32).collect());
    texts.push((1..0x250).filter_map(char::from_u32).collect());

    let mut own = Vec::new();
    for section in ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        collect(&json[section], &mut own);
    }
    let model = json["model"].as_object();
    model
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != "vocab" && *key != "merges")
        .for_each(|(_, v)| collect(v, &mut own));
    texts.push(own.join(" "));
    texts.push(own.concat());
    for text in own {
        texts.push(format!("{text}{text}a"));
        texts.push(format!("a {text} \n"));
        texts.push(text.to_owned());
    }
    texts
}

/// The strings in a part of the file.
fn collect<'a>(json: &'a Value, found: &mut Vec<&'a str>) {
    match json {
        Value::String(text) if found.len() < OWN_TEXTS && text.len() <= OWN_TEXT => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| collect(item, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpe() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/bpe.json"))
    }

    #[test]
    fn a_good_tokenizer_passes() {
        run(bpe()).unwrap();
    }

    #[test]
    fn a_trial_is_needed_for_what_the_crate_reads() {
        assert!(is_needed(&fs::read(bpe()).unwrap()));
        assert!(is_needed(&vec![b' '; 1 << 20]), "too long to be looked at");
        assert!(!is_needed(Tokenizer::byte().definition().as_bytes()));
        assert!(!is_needed(b"no JSON"));
        assert!(is_needed(b"\xef\xbb\xbf{}"), "a byte order mark is passed over");
    }

    #[test]
    fn the_file_s_own_strings_are_tried() {
        let json = serde_json::json!({
            "added_tokens": [{"id": 0, "content": "<mask>"}],
            "normalizer": {"type": "Replace", "pattern": {"String": "xyz"}, "content": "w"},
            "model": {"unk_token": "<u>", "vocab": {"not this": 0}},
        });
        let texts = texts(&json);
        for wanted in ["<mask><mask>a", "a xyz \n", "<u>"] {
            assert!(texts.iter().any(|text| text == wanted), "{wanted:?}");
        }
        assert!(!texts.iter().any(|text| text.contains("not this")));
    }
}
