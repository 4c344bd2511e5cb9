//! What text a model reads and writes, by the files beside it.

use std::fs;
use std::path::Path;

use elapid::LanguageModel;
use elapid::checkpoint::{Checkpoint, Named, SaveOptions, save};
use elapid::config::ModelConfig;
use elapid::layers::mamba1::Settings;
use elapid::settings::Size;
use serde_json::{Value, json};

use crate::{Run, elapid, elapid_with_stdin, ids};

/// A model that follows an id by the next one: `a b c d …`.
fn counting(dir: &Path, size: usize) {
    let mut config = ModelConfig { vocab_size: size, ..ModelConfig::default() };
    let mixer: &mut Settings = config.stack.settings_mut("mamba1").unwrap();
    (mixer.d_state, mixer.d_conv) = (Size::new(2), Size::new(2));
    let model = &mut config.stack.model;
    (model.d_model, model.n_layer, model.tie_embeddings) = (Size::new(size), Size::new(1), false);
    LanguageModel::new(config.clone(), 0).unwrap().save(dir, &SaveOptions::default()).unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    let tensor = |name: &str| {
        let shape = checkpoint.shape(name).unwrap().to_vec();
        let mut data = checkpoint.tensor(name, &shape).unwrap();
        let identity = |shift: usize| (0..size * size).map(move |i| f32::from((i / size) == (i % size + shift) % size));
        match name {
            "backbone.embeddings.weight" => data = identity(0).collect(),
            "lm_head.weight" => data = identity(1).collect(),
            _ if name.ends_with("out_proj.weight") => data.fill(0.0),
            _ => {}
        }
        (name.to_owned(), shape, data)
    };
    let tensors: Vec<_> = checkpoint.names().map(tensor).collect();
    let tensors = tensors.iter().map(|(name, shape, values)| Named {
        name: name.clone(),
        shape: shape.clone(),
        values: elapid::checkpoint::Values::Numbers(values),
        precise: false,
    });
    save(dir, &config, tensors, &SaveOptions { card: None, ..SaveOptions::default() }).unwrap();
}

const WORDS: [&str; 10] = ["<s>", "</s>", "<turn>", "a", "b", "c", "d", "e", "f", "g"];

/// A tokenizer of ten tokens, the first three special, that cuts text at every character.
fn words(decoder: Value, spell: impl Fn(&str) -> String) -> Value {
    let added = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let spelt = |(id, word): (usize, &&str)| (if id < 3 { (*word).to_owned() } else { spell(word) }, json!(id));
    let vocab: serde_json::Map<String, Value> = WORDS.iter().enumerate().map(spelt).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0), added(1), added(2)],
        "normalizer": null, "post_processor": null, "decoder": decoder,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
    })
}

fn plain() -> Value {
    words(json!({"type": "Fuse"}), str::to_owned)
}

/// A counting model with these files beside it.
fn model(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    counting(dir.path(), WORDS.len());
    files.iter().for_each(|(name, json)| fs::write(dir.path().join(name), json.to_string()).unwrap());
    dir
}

fn generate(dir: &tempfile::TempDir, more: &[&str]) -> Run {
    let path = dir.path().display().to_string();
    elapid(&[&["generate", "--model", &path, "--greedy", "-q", "--device", "cpu"], more].concat())
}

#[test]
fn text_comes_from_the_decoder_of_the_file() {
    let metaspace = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true});
    let mut spaced = words(metaspace.clone(), |word| format!("_{word}"));
    spaced["pre_tokenizer"] = metaspace;
    let replace = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "~"}, "content": " "}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let mut replaced = words(replace, |word| format!("~{word}"));
    replaced["normalizer"] = json!({"type": "Prepend", "prepend": "~"});
    replaced["pre_tokenizer"] = Value::Null;
    let wordpiece = words(json!({"type": "WordPiece", "prefix": "##", "cleanup": false}), str::to_owned);
    let suffix = words(json!({"type": "BPEDecoder", "suffix": "</w>"}), str::to_owned);
    for (name, tokenizer, text) in [
        ("metaspace", spaced, "a b c d"),
        ("replace", replaced, "a b c d"),
        ("none", words(Value::Null, str::to_owned), "a b c d"),
        ("wordpiece", wordpiece, "a b c d"),
        ("suffix", suffix, "abcd"),
        ("fuse", plain(), "abcd"),
    ] {
        let dir = model(&[("tokenizer.json", tokenizer)]);
        let run = generate(&dir, &["a", "--echo", "--max-tokens", "3"]);
        assert_eq!(run.text(), format!("{text}\n"), "{name}");
        let run = generate(&dir, &["a", "--max-tokens", "3"]);
        assert_eq!(run.text(), format!("{}\n", &text[1..]), "{name}: the continuation alone");
        let run = generate(&dir, &["--prompt-tokens", "3", "--echo", "--max-tokens", "3"]);
        assert_eq!(run.text(), format!("{text}\n"), "{name}: of ids");
        let found = generate(&dir, &["a", "--max-tokens", "3", "--json"]).json();
        assert_eq!(found["text"], text[1..], "{name}");
    }
}

#[test]
fn a_tokenizer_that_cannot_be_used_fails_only_where_text_is_wanted() {
    for (name, text) in [("tokenizer.json", "{}"), ("tokenizer_config.json", "{\"bos_token\": ")] {
        let dir = model(&[("tokenizer.json", plain())]);
        fs::write(dir.path().join(name), text).unwrap();
        let found = generate(&dir, &["--prompt-tokens", "3", "--max-tokens", "2", "--json"]).json();
        assert_eq!((ids(&found["tokens"]), &found["text"]), (vec![4, 5], &Value::Null));
        let path = dir.path().display().to_string();
        generate(&dir, &["a"]).fails(2, &[name]);
        generate(&dir, &["--prompt-tokens", "3", "--stop", "x"]).fails(2, &[name]);
        let lists = dir.path().join("lists.json");
        fs::write(&lists, "[[3,4,5]]").unwrap();
        elapid(&["eval", "--model", &path, "--tokens", &lists.display().to_string(), "--json"]).json();
        let inspected = elapid(&["inspect", "--model", &path, "--json"]).json();
        assert!(inspected["tokenizer"].as_str().unwrap().starts_with("unusable: "), "{inspected}");
    }
}

#[test]
fn any_of_the_end_ids_ends_a_text() {
    let named = ("tokenizer_config.json", json!({"eos_token": "g"}));
    let until = |eos: Value, files: &[(&str, Value)]| {
        let dir = model(&[&[("tokenizer.json", plain()), named.clone()], files].concat());
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["eos_token_id"] = eos;
        fs::write(path, config.to_string()).unwrap();
        let found = generate(&dir, &["a", "--max-tokens", "9", "--json"]).json();
        (found["text"].as_str().unwrap().to_owned(), found["stop_reason"].as_str().unwrap().to_owned())
    };
    let ends = |text: &str| (text.to_owned(), "end_of_text".to_owned());
    let generation = |ids: Value| ("generation_config.json", json!({"eos_token_id": ids}));
    assert_eq!(until(Value::Null, &[]), ends("bcdef"));
    assert_eq!(until(json!(5), &[]), ends("b"));
    assert_eq!(until(json!([8, 6]), &[]), ends("bc"));
    assert_eq!(until(json!([8, 6]), &[generation(json!(7))]), ends("bcd"));
    assert_eq!(until(json!(5), &[generation(json!([1, 7]))]), ends("bcd"));
    assert_eq!(until(json!(5), &[generation(Value::Null)]), ends("b"));

    // Ids alone end so too.
    let dir = model(&[generation(json!([6]))]);
    let found = generate(&dir, &["--prompt-tokens", "3", "--max-tokens", "9", "--json"]).json();
    assert_eq!((ids(&found["tokens"]), &found["stop_reason"]), (vec![4, 5, 6], &json!("end_of_text")));
    let found = generate(&dir, &["--prompt-tokens", "3", "--max-tokens", "4", "--json", "--ignore-eos"]).json();
    assert_eq!(ids(&found["tokens"]), [4, 5, 6, 7]);
}

#[test]
fn a_stop_string_may_be_a_special_token() {
    let dir = model(&[("tokenizer.json", plain())]);
    let found = generate(&dir, &["f", "--stop", "<turn>", "--ignore-eos", "--max-tokens", "9", "--json"]).json();
    assert_eq!((&found["text"], &found["stop_reason"]), (&json!("g"), &json!("stop_string")));
    let run = generate(&dir, &["f", "--special", "--ignore-eos", "--max-tokens", "4"]);
    assert_eq!(run.text(), "g<s></s><turn>\n");
}

#[test]
fn what_the_files_put_before_a_text_is_before_prompts_and_documents() {
    let mut tokenizer = plain();
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    let flag = |add: bool| ("tokenizer_config.json", json!({"bos_token": "<s>", "add_bos_token": add}));
    let text = tempfile::tempdir().unwrap();
    let book = text.path().join("book.txt");
    fs::write(&book, "abcdefg").unwrap();
    let book = book.display().to_string();
    for (files, added) in [(vec![], 1), (vec![flag(false)], 0), (vec![flag(true)], 1)] {
        let dir = model(&[&[("tokenizer.json", tokenizer.clone())], files.as_slice()].concat());
        let path = dir.path().display().to_string();
        let count = |more: &[&str]| {
            let prompt = generate(&dir, &[&["abc", "--max-tokens", "0", "--json"], more].concat()).json();
            let document =
                elapid(&[&["eval", "--model", &path, "--data", &book, "--json", "--device", "cpu"], more].concat());
            (prompt["prompt_tokens"].as_u64().unwrap() - 3, document.json()["tokens"].as_u64().unwrap() - 6)
        };
        assert_eq!(count(&[]), (added, added), "{files:?}");
        assert_eq!(count(&["--no-bos"]), (0, 0), "{files:?}");
        let found = generate(&dir, &["--prompt-tokens", "3", "--max-tokens", "0", "--json"]).json();
        assert_eq!(found["prompt_tokens"], 1, "ids are taken as they are");
    }
    let dir = model(&[("tokenizer.json", tokenizer), ("tokenizer_config.json", json!({"eos_token": "</s>"}))]);
    assert_eq!(generate(&dir, &["", "--max-tokens", "1", "--special"]).text(), "", "an end is not printed");
    assert_eq!(generate(&dir, &["", "--max-tokens", "3", "--special", "--ignore-eos"]).text(), "</s><turn>a\n");
}

#[test]
fn a_run_saves_what_stood_around_its_documents() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("a.txt"), "the miller slept and the river ran past the old bridge\n".repeat(20)).unwrap();
    let train = |output: &str, more: &[&str]| {
        let arguments = [
            "train",
            "--data",
            &path("a.txt"),
            "--steps",
            "2",
            "--batch",
            "1",
            "--length",
            "16",
            "--set",
            "train.warmup=0",
            "--set",
            "model.d_model=8",
            "--set",
            "model.n_layer=1",
            "--set",
            "data.cache=none",
            "--device",
            "cpu",
            "-q",
        ];
        let output = path(output);
        let run = elapid(&[&arguments[..], &["--output", &output], more].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let count = |more: &[&str]| {
            let prompt = ["generate", "--model", &output, "abc", "--max-tokens", "0", "--json", "--device", "cpu"];
            elapid(&[&prompt, more].concat()).json()["prompt_tokens"].as_u64().unwrap()
        };
        (count(&[]), count(&["--no-bos"]))
    };
    assert_eq!(train("none", &[]), (3, 3));
    assert_eq!(train("bos", &["--set", "data.separator=bos"]), (4, 3));
    assert_eq!(train("without", &["--set", "data.separator=bos", "--no-bos"]), (3, 3));
    let read = |name: &str| fs::read_to_string(dir.path().join("bos").join(name)).unwrap();
    let generation: Value = serde_json::from_str(&read("generation_config.json")).unwrap();
    assert_eq!(generation, json!({"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}));
    let card = read("README.md");
    for part in ["library_name: transformers", "elapid train --config config.toml", "2 steps", "a.txt"] {
        assert!(card.contains(part), "no `{part}` in {card}");
    }
}

#[test]
fn tokenize_goes_both_ways() {
    let mut tokenizer = plain();
    tokenizer["post_processor"] = json!({"type": "BertProcessing", "cls": ["<s>", 0], "sep": ["</s>", 1]});
    let dir = model(&[("tokenizer.json", tokenizer)]);
    let path = dir.path().display().to_string();
    let run = |more: &[&str]| elapid(&[&["tokenize", "--model", &path], more].concat()).text().to_owned();
    assert_eq!(run(&["abc"]), "0 3 4 5\n");
    assert_eq!(run(&["abc", "--document", "--json"]), "{\"tokens\":[0,3,4,5,1]}\n");
    assert_eq!(run(&["abc", "--no-bos"]), "3 4 5\n");
    assert_eq!(run(&["--ids", "0,3,4,1"]), "ab\n");
    assert_eq!(run(&["--ids", "0,3,4,1", "--special"]), "<s>ab</s>\n");
    let lines = "\"ab\"\n[3,0,4]\n";
    let run = elapid_with_stdin(&["tokenize", "--model", &path, "--lines"], lines.as_bytes());
    assert_eq!(run.text(), "{\"tokens\":[0,3,4]}\n{\"text\":\"ab\",\"pieces\":[\"a\",\"\",\"b\",\"\"]}\n");
    let run = elapid_with_stdin(&["tokenize", "--model", &path, "--lines"], b"{}\n");
    run.fails(2, &["line 1"]);
    assert_eq!(elapid(&["tokenize", "hi"]).text(), "104 105\n", "bytes without a model");
}
