//! Whose directory it is.

use std::path::Path;

use elapid_train::{Error, Outcome, Result, Start, Trainer, metrics};

use super::{bytes, config, train};

fn refused(result: Result<Outcome>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn a_run_is_gone_on_with_or_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(train(config(dir.path(), &[]), Start::Resume)).contains("without --resume"));
    assert!(!dir.path().join("config.toml").exists());
    train(config(dir.path(), &["train.steps=2"]), Start::New).unwrap();
    let error = refused(train(config(dir.path(), &[]), Start::New));
    assert!(error.contains("at step 2") && error.contains("--resume") && error.contains("--overwrite"), "{error}");
    let error = refused(train(config(dir.path(), &["model.n_layer=3"]), Start::Resume));
    assert!(error.contains("differ") && error.contains("model.n_layer=3"), "{error}");
    let more = train(config(dir.path(), &["train.steps=4", "data.cache=none"]), Start::Resume).unwrap();
    assert_eq!(more.step, 4);
    let old = bytes(dir.path(), "model.safetensors");
    train(config(dir.path(), &["train.steps=2", "train.seed=3"]), Start::Overwrite).unwrap();
    assert!(bytes(&dir.path().join("old-1"), "model.safetensors") == old);
    assert!(dir.path().join("old-1/resume/step-00000004").is_dir());
    assert!(bytes(dir.path(), "model.safetensors") != old);
}

#[test]
fn a_finished_run_without_checkpoints_stays() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config(dir.path(), &["train.steps=2"]);
    train(settings.clone(), Start::New).unwrap();
    let model = bytes(dir.path(), "model.safetensors");
    for gone in ["resume/step-00000002", "resume"] {
        std::fs::remove_dir_all(dir.path().join(gone)).unwrap();
        let error = refused(train(settings.clone(), Start::New));
        assert!(error.contains("model.safetensors") && !error.contains("config.toml"), "{error}");
        assert!(bytes(dir.path(), "model.safetensors") == model);
    }
}

#[test]
fn one_run_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config(dir.path(), &[]);
    let begin = |start| Trainer::new(settings.clone(), start, elapid::Device::Cpu, &mut |_| ());
    let first = begin(Start::New).unwrap();
    for start in [Start::New, Start::Resume, Start::Overwrite] {
        let error = begin(start).err().unwrap();
        assert!(matches!(error, Error::Directory { .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    }
    assert!(!dir.path().join("old-1").exists());
    drop(first);
    begin(Start::New).unwrap();
}

fn run(dir: &Path) -> Vec<(String, Vec<u8>)> {
    train(config(dir, &["data.mode=streams", "train.steps=5"]), Start::New).unwrap();
    let files = |dir: &Path| -> Vec<_> { std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let all = files(dir).into_iter().chain(files(&dir.join("resume/step-00000005")));
    // What tells the time differs.
    let timed = ["time.json", "metrics.jsonl", "config.toml", "loss.png", "loss.svg", ".elapid-lock"];
    let mut all: Vec<_> = all
        .filter(|path| path.is_file() && !timed.contains(&path.file_name().unwrap().to_str().unwrap()))
        .map(|path| (path.strip_prefix(dir).unwrap().display().to_string(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn equal_runs_leave_equal_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (run(one.path()), run(two.path()));
    let names: Vec<&str> = one.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["model.safetensors", "resume/step-00000005/training.safetensors", "resume/step-00000005/stream.state"]
    {
        assert!(names.contains(&name), "{names:?}");
    }
    for (one, two) in one.iter().zip(&two) {
        assert!(one == two, "{} and {} differ", one.0, two.0);
    }
}

#[test]
fn a_short_run_has_a_short_warm_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path(), &["train.steps=20"]);
    settings.apply_override("train.warmup=auto").unwrap();
    settings.validate("a.toml").unwrap();
    train(settings, Start::New).unwrap();
    let rates: Vec<f64> =
        metrics::read(&dir.path().join("metrics.jsonl")).unwrap().iter().map(|record| record.lr).collect();
    assert_eq!((rates[0], rates[1]), (1e-3, 2e-3));
    // A run that is made longer keeps the warm-up that it had.
    let written = elapid_train::config::TrainConfig::load(&dir.path().join("config.toml")).unwrap();
    assert_eq!(written.train.warmup, elapid_train::schedule::Warmup::Steps(2));
}
