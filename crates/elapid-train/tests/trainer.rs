//! Whole runs, small.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use elapid::LanguageModel;
use elapid_train::config::TrainConfig;
use elapid_train::progress::Progress;
use elapid_train::{Outcome, Result, Stopped, Trainer, metrics};

/// A run of seconds; `settings` are overrides.
fn config(dir: &Path, settings: &[&str]) -> TrainConfig {
    let mut config = TrainConfig::default();
    config.output.dir = dir.to_owned();
    let small = [
        "model.d_model=24",
        "model.n_layer=2",
        "data.length=32",
        "data.cache=\"none\"",
        "data.val_fraction=0.002",
        "train.batch=4",
        "train.steps=12",
        "train.warmup=2",
        "train.eval_every=4",
        "train.log_every=1",
        "train.save_every=0",
    ];
    small.iter().chain(settings).for_each(|assignment| config.apply_override(assignment).unwrap());
    config
}

fn train(config: TrainConfig, resume: bool) -> Result<Outcome> {
    let mut trainer = Trainer::new(config, resume, &mut |_| ())?;
    let steps = trainer.config().train.steps;
    trainer.run(&Progress::new(trainer.step(), steps, true), &AtomicBool::new(false))
}

fn bytes(dir: &Path, file: &str) -> Vec<u8> {
    std::fs::read(dir.join(file)).unwrap()
}

#[test]
fn a_run_leaves_a_model_metrics_and_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = train(config(dir.path(), &["train.steps=60", "train.eval_every=20"]), false).unwrap();
    assert_eq!((outcome.stopped, outcome.step, outcome.tokens), (Stopped::Finished, 60, 60 * 4 * 32));
    assert!(outcome.val_loss.unwrap() < 4.5, "{outcome:?}");
    let model = LanguageModel::open(dir.path()).unwrap();
    assert_eq!(model.config().padded_vocab_size() % 8, 0);
    for file in ["config.toml", "tokenizer.json", "loss.png", "loss.svg"] {
        assert!(!bytes(dir.path(), file).is_empty(), "{file}");
    }
    let records = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
    assert_eq!(records.len(), 60);
    assert_eq!(records.iter().filter(|record| record.val_loss.is_some()).count(), 3);
    assert!(records[59].loss < records[0].loss);
}

/// Stops a run after `at` steps by giving it no more, then resumes it to the end.
fn interrupted(dir: &Path, settings: &[&str], at: u64) {
    let all = config(dir, settings);
    let stop = AtomicBool::new(false);
    let mut trainer = Trainer::new(all.clone(), false, &mut |_| ()).unwrap();
    trainer.run_until(at, &Progress::new(0, all.train.steps, true), &stop).unwrap();
    drop(trainer);
    train(all, true).unwrap();
}

#[test]
fn a_resumed_run_is_the_same_bits() {
    for settings in [&["data.mode=\"windows\"", "train.accumulate=2"], &["data.mode=\"streams\"", "data.pack=true"]] {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        train(config(whole.path(), settings), false).unwrap();
        interrupted(parts.path(), settings, 7);
        for file in ["model.safetensors", "resume/step-00000012/model.safetensors"] {
            assert!(bytes(whole.path(), file) == bytes(parts.path(), file), "{settings:?} {file}");
        }
        let losses = |dir: &Path| -> Vec<f64> {
            metrics::read(&dir.join("metrics.jsonl")).unwrap().iter().map(|record| record.loss).collect()
        };
        assert_eq!(losses(whole.path()), losses(parts.path()));
    }
}

#[test]
fn the_same_seed_twice_is_the_same_bits() {
    let (one, two, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(config(one.path(), &[]), false).unwrap();
    train(config(two.path(), &[]), false).unwrap();
    train(config(other.path(), &["train.seed=2"]), false).unwrap();
    assert!(bytes(one.path(), "model.safetensors") == bytes(two.path(), "model.safetensors"));
    assert!(bytes(one.path(), "model.safetensors") != bytes(other.path(), "model.safetensors"));
}

#[test]
fn recomputed_blocks_train_alike() {
    let (kept, recomputed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = train(config(kept.path(), &[]), false).unwrap();
    let two = train(config(recomputed.path(), &["train.checkpoint_blocks=true"]), false).unwrap();
    assert!((one.loss - two.loss).abs() < 1e-3 * one.loss, "{} {}", one.loss, two.loss);
}

#[test]
fn a_run_that_diverges_names_the_step_and_the_layer_and_keeps_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["train.lr=1e30", "train.min_lr=0.0", "train.warmup=0", "train.clip=0.0", "train.save_every=1"];
    let error = train(config(dir.path(), &settings), false).unwrap_err().to_string();
    assert!(error.contains("step ") && error.contains("not finite"), "{error}");
    assert!(error.contains("parameter") || error.contains("layer") || error.contains("gradient"), "{error}");
    assert!(error.contains("resume/step-"), "{error}");
}

#[test]
fn directories_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let message = |result: Result<Outcome>| result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message(train(config(dir.path(), &[]), true)).contains("without --resume"));
    train(config(dir.path(), &["train.steps=2"]), false).unwrap();
    assert!(message(train(config(dir.path(), &[]), false)).contains("--resume"));
    assert!(message(train(config(dir.path(), &["model.n_layer=3"]), true)).contains("differ"));
    let more = train(config(dir.path(), &["train.steps=4"]), true).unwrap();
    assert_eq!(more.step, 4);
}

#[test]
fn patience_ends_a_run() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing is learned at this rate, so that the first validation stays the best or nearly so.
    let settings = ["train.lr=1e-30", "train.min_lr=0.0", "train.patience=2", "train.eval_every=1"];
    let outcome = train(config(dir.path(), &settings), false).unwrap();
    assert_eq!((outcome.stopped, outcome.step), (Stopped::Patience, 3));
}

#[test]
fn without_held_out_text_the_last_model_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = train(config(dir.path(), &["data.val_fraction=0.0"]), false).unwrap();
    assert_eq!(outcome.val_loss, None);
    assert!(bytes(dir.path(), "model.safetensors") == bytes(dir.path(), "resume/step-00000012/model.safetensors"));
}

#[test]
fn packed_validation_does_not_see_across_documents() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(files.path().join(name), text).unwrap();
        format!("{:?}", files.path().join(name))
    };
    let (one, two) = (file("one.txt", "a long snake"), file("two.txt", "eats short mice"));
    // Nothing is learned, so that all runs validate the same model.
    let validated = |val: &str, mode: &str, pack: bool| {
        let dir = tempfile::tempdir().unwrap();
        let (val, mode, pack) = (format!("data.val=[{val}]"), format!("data.mode={mode}"), format!("data.pack={pack}"));
        let settings = ["train.lr=1e-30", "train.min_lr=0.0", "train.steps=2", &val, &mode, &pack];
        train(config(dir.path(), &settings), false).unwrap().val_loss.unwrap()
    };
    for mode in ["windows", "streams"] {
        let apart = (11.0 * validated(&one, mode, true) + 14.0 * validated(&two, mode, true)) / 25.0;
        let packed = validated(&format!("{one}, {two}"), mode, true);
        assert!((apart - packed).abs() < 1e-6 * apart, "{mode}: {apart} {packed}");
        let joined = validated(&format!("{one}, {two}"), mode, false);
        assert!((joined - packed).abs() > 1e-4 * apart, "{mode}: {joined} {packed}");
    }
}
