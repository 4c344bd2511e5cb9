//! Runs that begin from a model that is there.

use std::path::Path;

use elapid::LanguageModel;
use elapid_train::config::TrainConfig;
use elapid_train::{Outcome, Result, Start};

use super::{SMALL_TASK, bytes, config, train};

fn from(model: &Path) -> String {
    format!("model.from={:?}", model.display().to_string())
}

fn refused(result: Result<Outcome>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

/// The same weights and nothing learned: what the run saved is what it began from.
const STILL: [&str; 4] = ["train.lr=1e-60", "train.min_lr=0.0", "train.weight_decay=0.0", "train.steps=2"];

/// The settings of a run without any of `config`'s sizes.
fn unsized_config(dir: &Path, settings: &[&str]) -> TrainConfig {
    let mut all = config(dir, &[]);
    all.model = Default::default();
    STILL.iter().chain(settings).for_each(|one| all.apply_override(one).unwrap());
    all
}

#[test]
fn a_run_begins_from_the_weights_of_another() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(config(one.path(), &["train.steps=3", "model.gate=false"]), Start::New).unwrap();
    train(unsized_config(two.path(), &[&from(one.path())]), Start::New).unwrap();
    assert!(bytes(one.path(), "model.safetensors") == bytes(two.path(), "model.safetensors"));
    let written = TrainConfig::load(&two.path().join("config.toml")).unwrap();
    assert_eq!(written.model.from, one.path().display().to_string());
    let stack = &written.model.stack;
    let mamba: &elapid::layers::mamba1::Settings = stack.named["mamba1"].layer.settings().unwrap();
    assert_eq!((stack.model.d_model.get(), stack.model.n_layer.get(), mamba.gate), (24, 2, false));

    // It goes on without that model, by the settings that it wrote.
    let kept = one.path().join("model.safetensors");
    std::fs::remove_file(&kept).unwrap();
    let mut written = written;
    written.train.steps = 4;
    assert_eq!(train(written, Start::Resume).unwrap().step, 4);
}

#[test]
fn a_checkpoint_is_a_model_too() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(config(one.path(), &["train.steps=3"]), Start::New).unwrap();
    let step = one.path().join("resume/step-00000003");
    train(unsized_config(two.path(), &[&from(&step)]), Start::New).unwrap();
    assert!(bytes(&step, "model.safetensors") == bytes(two.path(), "model.safetensors"));
    // In the same directory it would be written over.
    for start in [Start::New, Start::Overwrite] {
        for model in [one.path(), &step] {
            let error = refused(train(unsized_config(one.path(), &[&from(model)]), start));
            assert!(error.contains("begins from") && error.contains("--output"), "{error}");
        }
    }
    assert!(step.is_dir());
}

#[test]
fn what_contradicts_the_model_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(config(one.path(), &["train.steps=2"]), Start::New).unwrap();
    let error = refused(train(unsized_config(two.path(), &[&from(one.path()), "model.d_model=32"]), Start::New));
    assert!(error.contains("`model.d_model`: it is 24 in ") && error.contains("was set to 32"), "{error}");
    let error = refused(train(unsized_config(two.path(), &["model.from=no/such"]), Start::New));
    assert!(error.contains("no/such"), "{error}");
    assert_eq!(std::fs::read_dir(two.path()).unwrap().count(), 0);
}

#[test]
fn a_task_begins_from_a_model_whose_vocabulary_is_large_enough() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(config(one.path(), &[&SMALL_TASK[..], &["train.steps=2", "task.vocab=8"]].concat()), Start::New).unwrap();
    let task = |vocab: &str| {
        let (base, vocab) = (from(one.path()), format!("task.vocab={vocab}"));
        let settings = [&SMALL_TASK[..], &STILL, &[&base, &vocab]].concat();
        train(unsized_config(two.path(), &settings), Start::New)
    };
    let error = refused(task("9"));
    assert!(error.contains("`task.vocab`: it has 9 token ids") && error.contains("has 8"), "{error}");
    task("5").unwrap();
    assert!(bytes(one.path(), "model.safetensors") == bytes(two.path(), "model.safetensors"));
    assert_eq!(LanguageModel::open(two.path()).unwrap().config().vocab_size, 8);
    // Text has more ids than that.
    let error = refused(train(unsized_config(one.path().join("x").as_path(), &[&from(one.path())]), Start::New));
    assert!(error.contains("`data.tokenizer`: it has 259 token ids"), "{error}");
}
