//! What helps before and around a run: completions, manual pages, settings to change, a vocabulary of one's own.

use crate::{elapid, file};

#[test]
fn completions_know_commands_and_options() {
    for (shell, words) in [("bash", "_elapid()"), ("zsh", "#compdef elapid"), ("fish", "complete -c elapid")] {
        let run = elapid(&["completions", shell]);
        let script = run.text();
        assert!(script.contains(words) && script.contains("max-tokens"), "{shell}");
    }
    elapid(&["completions", "sh"]).fails(2, &["bash", "zsh", "fish"]);
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let object = elapid(&["man", pages.to_str().unwrap(), "--json"]).json();
    let page = |name: &str| std::fs::read_to_string(pages.join(name)).unwrap();
    assert!(object["pages"].as_array().unwrap().len() > 10, "{object}");
    assert!(page("elapid-train.1").contains("elapid\\-train") && page("elapid-train.1").contains("Peak learning rate"));
    assert!(page("elapid-bench-decode.1").contains("tokens"));
    let taken = file(&dir, "file", "");
    elapid(&["man", &taken]).fails(1, &[&taken]);
}

#[test]
fn settings_are_printed_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let all = ["train", "--print-config", "--steps", "7", "--set", "model.n_layer=3"];
    let text = elapid(&all).text().to_owned();
    assert!(text.contains("# Width of the residual stream.\nd_model = 256") && text.contains("steps = 7"), "{text}");
    let config = file(&dir, "own.toml", &text);
    assert_eq!(elapid(&["train", "--print-config", "--config", &config]).text(), text);
    let task = elapid(&["train", "--print-config", "--task", "selective-copying"]).text().to_owned();
    assert!(task.contains("name = \"selective-copying\""), "{task}");
    elapid(&["train", "--print-config", "--set", "train.lr=-1"]).fails(2, &["train.lr"]);
}

#[test]
fn a_vocabulary_from_text() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("tokenizer.json").display().to_string();
    let learn = ["tokenizer", "train", "--data", "tinyshakespeare", "--vocab", "700", "--output", &output, "--json"];
    let learned = elapid(&learn).json();
    assert_eq!(learned["vocab_size"], 700);
    assert!((1.8..3.5).contains(&learned["bytes_per_token"].as_f64().unwrap()), "{learned}");
    let first = std::fs::read(&output).unwrap();
    elapid(&learn).json();
    assert!(std::fs::read(&output).unwrap() == first, "the same text gives the same vocabulary");

    // Any text comes back, also one that it was not learned from.
    let text = "Wherefore art thou, Röméo? \u{1f339}\r\n\tno";
    let ids = elapid(&["tokenize", "--model", &output, text, "--json"]).json()["tokens"].to_string();
    let back = elapid(&["tokenize", "--model", &output, "--ids", ids.trim_matches(['[', ']']), "--json"]).json();
    assert_eq!(back["text"], text);

    let lines = file(&dir, "lines.jsonl", "{\"text\": \"a rose is a rose\"}\n{\"text\": \"is a rose\"}\n");
    let other = dir.path().join("other.json").display().to_string();
    let run = |more: &[&str]| elapid(&[&["tokenizer", "train", "--output", &other], more].concat());
    let learned = run(&["--data", &lines, "--json"]).json();
    let ids = learned["vocab_size"].as_u64().unwrap();
    assert!((260..300).contains(&ids), "so short a text has few pairs that repeat: {learned}");
    run(&["--data", "/nowhere"]).fails(2, &["/nowhere"]);
    run(&["--data", &lines, "--vocab", "256"]).fails(2, &["--vocab", "257"]);

    let model = dir.path().join("run").display().to_string();
    let tokenizer = format!("data.tokenizer={output}");
    let small =
        ["--steps", "1", "--batch", "2", "--length", "16", "--set", "model.d_model=16", "--set", "model.n_layer=1"];
    elapid(
        &[&["train", "--set", &tokenizer, "--set", "train.eval_batches=1", "--output", &model][..], &small].concat(),
    )
    .text();
    elapid(&["generate", "--model", &model, "--max-tokens", "3", "My lord"]).text();
}
