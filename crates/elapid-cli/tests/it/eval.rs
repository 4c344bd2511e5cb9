//! `elapid eval`.

use serde_json::Value;

use crate::{elapid, elapid_with_stdin, file, tiny};

fn nll(value: &Value) -> Vec<Vec<f64>> {
    let row = |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    value["nll"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn lists_of_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let lists = "[[1,2,3,4,5,6,7,8,9,10,11,12,13],[63,0],[],[7],[5,5,5,5,5,5,5]]";
    let path = file(&dir, "lists.json", lists);
    let model = tiny();
    let run = |more: &[&str]| {
        elapid(&[&["eval", "--model", &model, "--tokens", &path, "--per-token", "--json"], more].concat()).json()
    };
    let whole = run(&[]);
    let losses = nll(&whole);
    assert_eq!(losses.iter().map(Vec::len).collect::<Vec<_>>(), [12, 1, 0, 0, 6]);
    assert_eq!(whole["tokens"], 19);
    let mean = losses.iter().flatten().sum::<f64>() / 19.0;
    assert!((whole["loss"].as_f64().unwrap() - mean).abs() < 1e-9);
    for more in [&["--chunk", "1"][..], &["--chunk", "5"], &["--chunk", "12", "--batch", "1"]] {
        assert_eq!(nll(&run(more)), losses, "{more:?}");
    }
    let short = elapid(&["eval", "--model", &model, "--tokens", &path, "--json"]).json();
    assert_eq!(short["loss"], whole["loss"]);
    assert_eq!(short.get("nll"), None);
    let text = elapid(&["eval", "--model", &model, "--tokens", &path]);
    assert!(text.text().contains("perplexity"), "{}", text.stdout);
}

#[test]
fn files_of_tokens_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let fails = |content: &str, words: &[&str]| {
        let path = file(&dir, "lists.json", content);
        elapid(&["eval", "--model", &model, "--tokens", &path, "--json"]).fails(2, words);
    };
    fails("[[1,2],[3,64]]", &["row 1, position 1", "64"]);
    fails("[[1,2],[3,4294967295]]", &["row 1, position 1"]);
    fails("[1,2]", &["lists.json", "list of lists"]);
    fails("[[1,-2]]", &["lists.json", "line 1"]);
    fails("[[1],[]]", &["nothing to predict"]);
    fails("", &["lists.json"]);
    elapid(&["eval", "--model", &model, "--tokens", "/no/such.json"]).fails(2, &["/no/such.json"]);
}

#[test]
fn a_text_of_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let text = "Now is the winter of our discontent, made glorious summer by this sun of York.\n".repeat(9);
    let path = file(&dir, "text.txt", &text);
    let run = |more: &[&str]| elapid(&[&["eval", "--data", &path, "--json"], more].concat()).json();
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
    let whole = run(&[]);
    assert_eq!(whole["bytes"], text.len());
    assert_eq!(whole["tokens"], text.len() - 1);
    let loss = number(&whole, "loss");
    assert!((number(&whole, "perplexity") - loss.exp()).abs() < 1e-6 * loss.exp());
    let bits = loss * (text.len() - 1) as f64 / text.len() as f64 / 2f64.ln();
    assert!((number(&whole, "bits_per_byte") - bits).abs() < 1e-9);
    for more in [&["--chunk", "7"][..], &["--chunk", "4096"], &["--length", "100000"]] {
        assert_eq!(number(&run(more), "loss"), loss, "{more:?}");
    }
    // Token by token through a decoder, in one stream and in rows.
    assert!((number(&run(&["--state-dtype", "f32"]), "loss") - loss).abs() < 1e-5);
    let [rows, steps] =
        [&[][..], &["--state-dtype", "f32", "--batch", "3"]].map(|more| run(&[&["--length", "50"], more].concat()));
    assert_eq!(rows["tokens"], steps["tokens"]);
    assert!((number(&rows, "loss") - number(&steps, "loss")).abs() < 1e-5);
    elapid(&["eval", "--data", &path, "--state-dtype", "bf16", "--device", "cpu"])
        .fails(2, &["states in bf16 are for a GPU"]);
    let windows = run(&["--length", "64"]);
    assert_eq!(windows["tokens"], text.len() - 1, "every token but the first is predicted once");
    assert_ne!(number(&windows, "loss"), loss, "fresh states know less");
    assert_eq!(number(&run(&["--length", "64", "--batch", "3"]), "loss"), number(&windows, "loss"));
    assert_eq!(run(&["--val-fraction", "0.5"])["bytes"], text.len().div_ceil(2));
}

#[test]
fn texts_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    elapid(&["eval", "--data", "/no/such/text"]).fails(2, &["/no/such/text"]);
    elapid(&["eval", "--data", &file(&dir, "empty.txt", "")]).fails(2, &["empty"]);
    elapid(&["eval", "--data", &file(&dir, "one.txt", "a")]).fails(2, &["nothing to predict"]);
    elapid(&["eval", "--model", &tiny(), "--data", &file(&dir, "two.txt", "ab")]).fails(2, &["tokenizer.json"]);
    elapid(&["eval", "--val-fraction", "2"]).fails(2, &["--val-fraction"]);
}

#[test]
fn a_directory_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = "Now is the winter of our discontent.\n".repeat(20);
    let utf16: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    file(&dir, "a.txt", &text);
    file(&dir, "b.txt", utf16);
    file(&dir, "c.jsonl", format!("{{\"body\": {text:?}}}\n"));
    file(&dir, "d.txt", b"\x89PNG\r\n\x1a\n\0\0");
    file(&dir, "._a.txt", &text);
    let path = dir.path().display().to_string();
    let arguments = ["eval", "--data", &path, "--jsonl-field", "body"];
    assert_eq!(elapid(&[&arguments[..], &["--json"]].concat()).json()["bytes"], 3 * text.len());
    let run = elapid(&arguments);
    for words in ["3 files read", "decoded from UTF-16", "b.txt", "d.txt (a PNG image)"] {
        assert!(run.stderr.contains(words), "{words}: {}", run.stderr);
    }
    elapid(&["eval", "--data", &path]).fails(2, &["c.jsonl:1", "`body`"]);
    elapid(&["eval", "--data", &format!("{path}/d.txt")]).fails(2, &["d.txt", "PNG"]);
}

#[cfg(unix)]
#[test]
fn text_through_a_pipe_and_from_a_device() {
    let text = "Now is the winter of our discontent.\n".repeat(3);
    let piped = elapid_with_stdin(&["eval", "--data", "/dev/stdin", "--json"], text.as_bytes()).json();
    assert_eq!(piped["bytes"], text.len());
    elapid(&["eval", "--data", "/dev/zero"]).fails(2, &["/dev/zero", "a device"]);
    elapid(&["generate", "--prompt-file", "/dev/zero"]).fails(2, &["/dev/zero", "a device"]);
}

#[test]
fn answers_to_a_task() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let report = dir.path().join("results/answers.md").display().to_string();
    let run = |more: &[&str]| {
        let common = ["eval", "--task", "induction-heads", "--model", &model, "--sequences", "3", "--lengths", "8..64"];
        elapid(&[&common[..], &["--json"], more].concat()).json()
    };
    let counts = |value: &Value| -> Vec<(u64, u64, u64)> {
        let number = |line: &Value, key: &str| line[key].as_u64().unwrap();
        let lines = value["models"][0]["lengths"].as_array().unwrap().iter();
        lines.map(|line| (number(line, "length"), number(line, "answers"), number(line, "right"))).collect()
    };
    let whole = run(&["--report", &report]);
    assert_eq!(
        counts(&whole).iter().map(|line| (line.0, line.1)).collect::<Vec<_>>(),
        [(8, 3), (16, 3), (32, 3), (64, 3)]
    );
    assert_eq!(counts(&run(&["--chunk", "5"])), counts(&whole));
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.contains("table 11") && text.contains("answers-lengths.svg"), "{text}");
    assert!(dir.path().join("results/answers-lengths.svg").is_file());
    let several = run(&["--model", &model]);
    assert_eq!(several["models"][1]["lengths"][0]["right"], several["models"][0]["lengths"][0]["right"]);
    elapid(&["eval", "--model", &model, "--model", &model]).fails(2, &["--model", "--task"]);
    elapid(&["eval", "--task", "sorting"]).fails(2, &["`sorting`", "induction-heads"]);
    elapid(&["eval", "--task", "induction-heads"]).fails(2, &["the model inside elapid", "text", "train --task"]);
    elapid(&["eval", "--task", "induction-heads", "--model", &model, "--lengths", "2"])
        .fails(2, &["--lengths", "4 to"]);
    elapid(&["eval", "--lengths", "64"]).fails(2, &["--task"]);
    elapid(&["eval", "--task", "copying", "--lengths", "9..8"]).fails(2, &["FROM..TO"]);
}
