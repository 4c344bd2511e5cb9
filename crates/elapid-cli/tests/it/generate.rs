//! `elapid generate`.

use serde_json::Value;

use crate::{elapid, elapid_with_stdin, file, ids, tiny};

/// Greedy tokens of the small model after some ids.
fn greedy(more: &[&str]) -> Value {
    let model = tiny();
    elapid(&[&["generate", "--model", &model, "--greedy", "--json"], more].concat()).json()
}

#[test]
fn ids_in_ids_out_without_a_tokenizer() {
    let found = greedy(&["--prompt-tokens", "1,2,3", "--max-tokens", "32"]);
    assert_eq!(ids(&found["tokens"]).len(), 32);
    assert!(ids(&found["tokens"]).iter().all(|&id| id < 64));
    assert_eq!(found["text"], Value::Null);
    assert_eq!(found["prompt_tokens"], 3);
    assert_eq!(found["stop_reason"], "max_tokens");
    for rate in ["tokens_per_second", "prompt_tokens_per_second"] {
        assert!(found[rate].as_f64().unwrap() > 0.0);
    }
    let model = tiny();
    let run = elapid(&["generate", "--model", &model, "--greedy", "--prompt-tokens", "1,2,3", "--max-tokens", "32"]);
    let printed: Vec<u64> = run.text().split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(printed, ids(&found["tokens"]));
    assert!(run.stderr.contains("tokens/s"), "{}", run.stderr);
}

#[test]
fn the_recorded_greedy_tokens() {
    let prompt = "62,21,2,7,36,20,40,14,54,40,49,33,36,51,10,15,39";
    let found = greedy(&["--prompt-tokens", prompt, "--max-tokens", "32"]);
    assert_eq!(ids(&found["tokens"]), [39; 32]);
}

#[test]
fn a_saved_state_goes_on_as_if_never_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (prompt, more) = ("5,9,33,60,2,17,17,8", "41,3,22");
    // A penalty, so that what was read lately matters too.
    let tokens = |more: &[&str]| ids(&greedy(&[&["--repetition-penalty", "1.3"], more].concat())["tokens"]);
    let whole = tokens(&["--prompt-tokens", prompt, "--max-tokens", "24"]);

    let read = path("read");
    assert!(tokens(&["--prompt-tokens", prompt, "--max-tokens", "0", "--save-state", &read]).is_empty());
    assert_eq!(tokens(&["--load-state", &read, "--max-tokens", "24"]), whole);
    assert_eq!(tokens(&["--load-state", &read, "--max-tokens", "24"]), whole, "loading changes nothing");

    let midway = path("midway");
    let first = tokens(&["--prompt-tokens", prompt, "--max-tokens", "10", "--save-state", &midway]);
    let second = tokens(&["--load-state", &midway, "--max-tokens", "14"]);
    assert_eq!([first, second].concat(), whole);

    let longer = format!("{prompt},{more}");
    let want = tokens(&["--prompt-tokens", &longer, "--max-tokens", "24"]);
    assert_eq!(tokens(&["--load-state", &read, "--prompt-tokens", more, "--max-tokens", "24"]), want);
    let both = path("both");
    let nothing = ["--load-state", &read, "--prompt-tokens", more, "--max-tokens", "0", "--save-state", &both];
    assert!(tokens(&nothing).is_empty());
    assert_eq!(tokens(&["--load-state", &both, "--max-tokens", "24"]), want);
}

#[test]
fn the_chunk_of_reading_changes_nothing() {
    let prompt = (0..50).map(|i| (i * 13 % 64).to_string()).collect::<Vec<_>>().join(",");
    let run = |chunk: &str| greedy(&["--prompt-tokens", &prompt, "--chunk", chunk])["tokens"].clone();
    let want = run("512");
    for chunk in ["1", "7", "50"] {
        assert_eq!(run(chunk), want, "{chunk}");
    }
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state").display().to_string();
    greedy(&["--prompt-tokens", "1", "--max-tokens", "1", "--save-state", &path]);
    elapid(&["generate", "--load-state", &path, "x"]).fails(2, &["another model"]);
    let model = tiny();
    let load = |path: &str| elapid(&["generate", "--model", &model, "--load-state", path]);
    load(&file(&dir, "text", "no state")).fails(2, &["not a state file"]);
    let whole = std::fs::read(&path).unwrap();
    load(&file(&dir, "cut", &whole[..whole.len() - 9])).fails(2, &["damaged"]);
    load(&dir.path().join("none").display().to_string()).fails(2, &["none"]);
    let nowhere = dir.path().join("no/such/state").display().to_string();
    elapid(&["generate", "--model", &model, "--prompt-tokens", "1", "--max-tokens", "0", "--save-state", &nowhere])
        .fails(2, &["no/such"]);
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let model = tiny();
    elapid(&["generate", "--model", &model, "--prompt-tokens", "1,64"]).fails(2, &["64", "63"]);
    elapid(&["generate", "--model", &model, "--prompt-tokens", "1,x"]).fails(2, &["--prompt-tokens"]);
    elapid(&["generate", "--model", &model, "text"]).fails(2, &["tokenizer.json"]);
    elapid(&["generate", "--model", &model, "--prompt-tokens", "1", "--stop", "x"]).fails(2, &["tokenizer.json"]);
    elapid(&["generate", "--prompt-file", "/no/such/file"]).fails(2, &["/no/such/file"]);
}

/// The model inside the binary, a few sampled tokens.
fn built_in(more: &[&str]) -> Value {
    elapid(&[&["generate", "--json", "--max-tokens", "40"], more].concat()).json()
}

#[test]
fn prompts_come_from_an_argument_a_file_or_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "prompt", "ROMEO:");
    let want = built_in(&["ROMEO:"]);
    assert_eq!(want["prompt_tokens"], 6);
    assert_eq!(built_in(&["--prompt-file", &path])["text"], want["text"]);
    assert_eq!(built_in(&["--prompt-tokens", "82,79,77,69,79,58"])["text"], want["text"]);
    for dash in [&["-"][..], &[]] {
        let run = elapid_with_stdin(&[&["generate", "--json", "--max-tokens", "40"], dash].concat(), b"ROMEO:");
        assert_eq!(run.json()["text"], want["text"]);
    }
    assert_eq!(built_in(&[])["prompt_tokens"], 1, "without any, a text begins");
}

#[test]
fn the_seed_decides() {
    let text = |seed: &str| built_in(&["--temperature", "1.5", "--seed", seed, "A"])["text"].clone();
    assert_eq!(text("0"), built_in(&["--temperature", "1.5", "A"])["text"]);
    assert_ne!(text("0"), text("1"));
}

#[test]
fn streamed_text_is_the_text_of_the_object() {
    let want = built_in(&["--temperature", "2", "--ignore-eos", "A"])["text"].as_str().unwrap().to_owned();
    let arguments = ["generate", "--max-tokens", "40", "--temperature", "2", "--ignore-eos", "A"];
    let run = elapid(&[&arguments[..], &["--quiet"]].concat());
    assert_eq!(run.text().trim_end_matches('\n'), want.trim_end_matches('\n'));
    assert_eq!(run.stderr, "", "quiet");
    let echoed = elapid(&[&arguments[..], &["--echo"]].concat());
    assert_eq!(echoed.text(), format!("A{}", run.stdout));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let arguments = ["--temperature", "1", "--ignore-eos", "--max-tokens", "60", "A"];
    let run = |more: &[&str]| elapid(&[&["generate", "--json"], &arguments[..], more].concat()).json();
    let whole = run(&[])["text"].as_str().unwrap().to_owned();
    // A piece of that very text, with a border of characters.
    let from = (whole.len() / 2..).find(|&at| whole.is_char_boundary(at)).unwrap();
    let stop: String = whole[from..].chars().take(2).collect();
    let want = &whole[..whole.find(&stop).unwrap()];
    let found = run(&["--stop", "never in there", "--stop", &stop]);
    assert_eq!(found["text"], want);
    assert_eq!(found["stop_reason"], "stop_string");
    assert!(ids(&found["tokens"]).len() < 60);
    let printed = elapid(&[&["generate", "-q"], &arguments[..], &["--stop", &stop]].concat());
    assert_eq!(printed.text().trim_end_matches('\n'), want.trim_end_matches('\n'));
}
