//! `elapid train`.

use crate::{elapid, file};

/// Arguments of a run of a second, and more.
fn train(dir: &str, more: &[&str]) -> crate::Run {
    let small = ["train", "--output", dir, "--json", "--batch", "2", "--length", "32", "--set", "model.d_model=24"];
    let rest = ["--set", "model.n_layer=1", "--set", "train.warmup=1", "--set", "train.save_every=2"];
    elapid(&[&small[..], &rest, more].concat())
}

fn text(dir: &tempfile::TempDir) -> String {
    file(dir, "text.txt", "The snake that has no name is long, and what it was is what it is. ".repeat(40))
}

#[test]
fn a_trained_model_can_be_used_and_a_run_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (text(&dir), dir.path().join("run").display().to_string());
    let data = ["--data", text.as_str(), "--set", "data.cache=none"];
    let first = train(&out, &[&data[..], &["--steps", "4"]].concat()).json();
    assert_eq!((&first["step"], &first["tokens"]), (&4.into(), &(4 * 2 * 32).into()));
    assert!(first["val_loss"].as_f64().unwrap().is_finite() && first["sample"].is_string());
    let on = train(&out, &[&data[..], &["--steps", "6", "--resume"]].concat()).json();
    assert_eq!(on["step"], 6);

    let generated = elapid(&["generate", "--model", &out, "The", "--max-tokens", "5", "--json"]).json();
    assert_eq!(generated["tokens"].as_array().unwrap().len(), 5);
    let evaluated = elapid(&["eval", "--model", &out, "--data", &text, "--json"]).json();
    assert_eq!(evaluated["bytes"], 67 * 40);
    for file in ["config.json", "model.safetensors", "tokenizer.json", "config.toml", "metrics.jsonl", "loss.png"] {
        assert!(dir.path().join("run").join(file).is_file(), "{file}");
    }
    train(&out, &data).fails(2, &["--resume", "--output"]);
}

#[test]
fn settings_that_do_not_fit_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run").display().to_string();
    train(&out, &["--set", "train.stepz=3"]).fails(2, &["train.stepz", "did you mean `train.steps`"]);
    train(&out, &["--config", "absent.toml"]).fails(2, &["absent.toml"]);
    let config = file(&dir, "bad.toml", "[train]\nsteps = 3\nspeed = 7\n");
    train(&out, &["--config", &config]).fails(2, &["bad.toml", "speed"]);
    train(&out, &["--resume"]).fails(2, &["without --resume"]);
    train(&out, &["--data", "absent.txt"]).fails(2, &["absent.txt"]);
    let short = file(&dir, "short.txt", "too short");
    train(&out, &["--data", &short, "--set", "data.cache=none"]).fails(2, &["too short"]);
    assert!(!dir.path().join("run/model.safetensors").exists());
}
