//! Breaks a tokenizer.json in ways that keep it JSON: fields dropped, emptied, made huge or negative, swapped, repeated,
//! nested, and filled with what is known to be hard.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Patterns that match nothing, everything, slowly, or not at all.
const PATTERNS: [&str; 24] = [
    "",
    "a*",
    "^",
    "$",
    "\\b",
    "(?=a)",
    "(?!a)",
    "|",
    "(a+)+$",
    "(?<=\\Ka)b",
    "\\Ka",
    ".",
    "(?s:.)",
    "\\p{L}",
    "((((((",
    "\\",
    "[",
    "(?1)",
    "(a(?1)?b)",
    "a{1000}{1000}",
    "\\G",
    "(?:)",
    "\\s+(?!\\S)|\\s+",
    "(?<n>a)\\k<n>",
];
/// Texts that are put anywhere a text stands.
const TEXTS: [&str; 18] = [
    "",
    " ",
    "  ",
    "a",
    "▁",
    "Ġ",
    "aaaaaaaaaaaaaaaa",
    "\u{0}",
    "\n",
    "é",
    "👩‍👩‍👧",
    "\u{301}",
    "<0x0A>",
    "<0xZZ>",
    "##",
    "AAAAAAAA",
    "\u{10ffff}",
    "/////w==",
];
/// What a `type` may be.
const TYPES: [&str; 36] = [
    "BPE",
    "WordPiece",
    "WordLevel",
    "Unigram",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Precompiled",
    "Replace",
    "Prepend",
    "ByteLevel",
    "Sequence",
    "BertNormalizer",
    "BertPreTokenizer",
    "Metaspace",
    "Whitespace",
    "WhitespaceSplit",
    "Split",
    "Punctuation",
    "Digits",
    "UnicodeScripts",
    "FixedLength",
    "CharDelimiterSplit",
    "TemplateProcessing",
    "BertProcessing",
    "RobertaProcessing",
    "BPEDecoder",
    "CTC",
    "Fuse",
    "ByteFallback",
    "None",
];
/// Sections whose parts are steps, with the name of a sequence's list.
const PIPELINES: [(&str, &str); 4] = [
    ("normalizer", "normalizers"),
    ("pre_tokenizer", "pretokenizers"),
    ("decoder", "decoders"),
    ("post_processor", "processors"),
];

/// File number `i`: a fixture with one to three mutations. The same for the same `i` everywhere.
pub(super) fn mutated(fixtures: &[(&'static str, Value)], i: u64) -> Value {
    let mut rng = ChaCha8Rng::seed_from_u64(i);
    let mut json = fixtures[i as usize % fixtures.len()].1.clone();
    for _ in 0..rng.random_range(1..=3) {
        // A mutation may leave no object: then parts are changed, and no sections.
        let kinds = if json.is_object() { 0..10 } else { 7..10 };
        match rng.random_range(kinds) {
            0 => repeat_step(&mut json, &mut rng),
            1 => nest(&mut json, &mut rng),
            2 => cross(&mut json, fixtures, &mut rng),
            3 => swap(&mut json, &mut rng),
            4 => vocabulary(&mut json, &mut rng),
            5 => grow(&mut json, &mut rng),
            6 => add_token(&mut json, &mut rng),
            _ => {
                let path = place(&json, &mut rng);
                change(&mut json, &path, &mut rng);
            }
        }
    }
    json
}

/// A JSON pointer to a random part: down from the top, each way with the same chance, so that a long vocabulary does not
/// draw all.
fn place(json: &Value, rng: &mut impl Rng) -> String {
    let (mut at, mut path) = (json, String::new());
    loop {
        let next = match at {
            Value::Object(fields) => {
                fields.iter().collect::<Vec<_>>().choose(rng).map(|(key, value)| ((*key).clone(), *value))
            }
            Value::Array(items) => {
                items.iter().enumerate().collect::<Vec<_>>().choose(rng).map(|(i, value)| (i.to_string(), *value))
            }
            _ => None,
        };
        let Some((key, value)) = next else { return path };
        path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        at = value;
        if rng.random_bool(0.2) {
            return path;
        }
    }
}

/// Drops a part or puts something else there.
fn change(json: &mut Value, path: &str, rng: &mut impl Rng) {
    let (parent, key) = path.rsplit_once('/').unwrap_or(("", ""));
    let key = key.replace("~1", "/").replace("~0", "~");
    if rng.random_bool(0.15) {
        match json.pointer_mut(parent) {
            Some(Value::Object(fields)) => drop(fields.shift_remove(&key)),
            Some(Value::Array(items)) if !items.is_empty() => drop(items.remove(key.parse().unwrap_or(0))),
            _ => {}
        }
        return;
    }
    let Some(value) = json.pointer_mut(path) else { return };
    *value = match (&*value, rng.random_range(0..8)) {
        (Value::String(_), 0..=2) if key == "type" => pick(&TYPES, rng).into(),
        (Value::String(_), 0..=4) if matches!(key.as_str(), "String" | "Regex") => pick(&PATTERNS, rng).into(),
        (Value::String(text), 3) => text.repeat(rng.random_range(2..50)).into(),
        (Value::String(text), 4) => text.chars().skip(1).collect::<String>().into(),
        (Value::String(_), 0..=5) => pick(&TEXTS, rng).into(),
        (Value::Bool(flag), 0..=4) => (!flag).into(),
        (Value::Number(_), 0..=5) => number(rng),
        (Value::Array(_), 0..=2) => json!([]),
        (Value::Object(_), 0..=1) => json!({}),
        (Value::Array(items), 3..=4) => items.iter().flat_map(|item| [item.clone(), item.clone()]).collect(),
        (value, 6) => json!([value]),
        (_, 5) => Value::Null,
        _ => match rng.random_range(0..4) {
            0 => number(rng),
            1 => pick(&TEXTS, rng).into(),
            2 => rng.random_bool(0.5).into(),
            _ => json!({"a": []}),
        },
    };
}

fn pick(from: &[&'static str], rng: &mut impl Rng) -> &'static str {
    from.choose(rng).copied().unwrap_or("")
}

fn number(rng: &mut impl Rng) -> Value {
    let all = [
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(255),
        json!(65_536),
        json!(u32::MAX),
        json!(1u64 << 32),
        json!(1u64 << 40),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(-1e308),
        json!(1e308),
    ];
    all.choose(rng).cloned().unwrap_or_default()
}

/// A step of a pipeline many times in a sequence.
fn repeat_step(json: &mut Value, rng: &mut impl Rng) {
    let Some((section, list)) = PIPELINES.choose(rng) else { return };
    let steps = match &json[*section][*list] {
        Value::Array(steps) => steps.clone(),
        _ => vec![json[*section].clone()],
    };
    let Some(step) = steps.choose(rng) else { return };
    json[*section] = json!({"type": "Sequence", *list: vec![step.clone(); rng.random_range(2..60)]});
}

/// A section inside sequences of one.
fn nest(json: &mut Value, rng: &mut impl Rng) {
    let Some((section, list)) = PIPELINES.choose(rng) else { return };
    for _ in 0..*[1, 2, 5, 20, 55].choose(rng).unwrap_or(&1) {
        json[*section] = json!({"type": "Sequence", *list: [json[*section].take()]});
    }
}

/// A section of another fixture.
fn cross(json: &mut Value, fixtures: &[(&'static str, Value)], rng: &mut impl Rng) {
    let sections = ["normalizer", "pre_tokenizer", "decoder", "post_processor", "model", "added_tokens"];
    let (Some(section), Some((_, other))) = (sections.choose(rng), fixtures.choose(rng)) else { return };
    json[*section] = other[*section].clone();
}

/// Two parts in each other's place.
fn swap(json: &mut Value, rng: &mut impl Rng) {
    let (first, second) = (place(json, rng), place(json, rng));
    let (Some(a), Some(b)) = (json.pointer(&first).cloned(), json.pointer(&second).cloned()) else { return };
    if let Some(value) = json.pointer_mut(&first) {
        *value = b;
    }
    if let Some(value) = json.pointer_mut(&second) {
        *value = a;
    }
}

/// A token or a merge that goes, comes, or has another id.
fn vocabulary(json: &mut Value, rng: &mut impl Rng) {
    let Some(model) = json.get_mut("model").filter(|model| model.is_object()) else { return };
    let long = "a".repeat(*[1, 100, 3000, 200_000].choose(rng).unwrap_or(&1));
    match (&mut model["vocab"], rng.random_range(0..5)) {
        (Value::Object(vocab), 0) => {
            let keys: Vec<String> = vocab.keys().cloned().collect();
            keys.choose(rng).map(|key| vocab.shift_remove(key));
        }
        (Value::Object(vocab), 1) => drop(vocab.insert(long, number(rng))),
        (Value::Object(vocab), 2) => {
            let id = number(rng);
            let keys: Vec<String> = vocab.keys().cloned().collect();
            keys.choose(rng).and_then(|key| vocab.insert(key.clone(), id));
        }
        (Value::Array(vocab), 0) if !vocab.is_empty() => drop(vocab.remove(rng.random_range(0..vocab.len()))),
        (Value::Array(vocab), 1..=3) => vocab.push(json!([long, number(rng)])),
        _ => {
            let merges = model["merges"].as_array().cloned().unwrap_or_default();
            let more =
                [merges.clone(), vec![json!(["the", "the"]), json!("e e"), json!([pick(&TEXTS, rng), "e"])]].concat();
            model["merges"] = if rng.random_bool(0.5) { more.into() } else { merges.into_iter().rev().collect() };
        }
    }
}

/// Replacements that make a text longer, in a pipeline that has them.
fn grow(json: &mut Value, rng: &mut impl Rng) {
    let (section, list) = if rng.random_bool(0.7) { PIPELINES[0] } else { PIPELINES[2] };
    let pattern = match rng.random_range(0..3) {
        0 => json!({"Regex": pick(&PATTERNS, rng)}),
        1 => json!({"String": pick(&TEXTS, rng)}),
        _ => json!({"String": "a"}),
    };
    let step = json!({"type": "Replace", "pattern": pattern, "content": pick(&TEXTS, rng)});
    let count = *[1, 2, 8, 40].choose(rng).unwrap_or(&1);
    let steps = [vec![step; count], vec![json[section].take()]].concat();
    json[section] = json!({"type": "Sequence", list: steps});
}

/// An added token that strips, is normalised, and may be nothing but spaces.
fn add_token(json: &mut Value, rng: &mut impl Rng) {
    let token = json!({"id": number(rng), "content": pick(&TEXTS, rng), "single_word": rng.random_bool(0.5),
        "lstrip": rng.random_bool(0.5), "rstrip": rng.random_bool(0.5), "normalized": rng.random_bool(0.5),
        "special": rng.random_bool(0.5)});
    if let Some(tokens) = json["added_tokens"].as_array_mut() {
        tokens.push(token);
    }
}
