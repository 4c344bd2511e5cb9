//! What a run goes on from, and what it does not.

use std::fs;
use std::path::{Path, PathBuf};

use elapid_train::{Outcome, Result, Start, Trainer, metrics};

use super::{SMALL_TASK, bytes, config, train};

fn refused(result: Result<Outcome>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

/// What was said of a run that goes on.
fn notices(settings: &elapid_train::config::TrainConfig) -> (u64, String) {
    let trainer = Trainer::new(settings.clone(), Start::Resume, elapid::Device::Cpu, &mut |_| ()).unwrap();
    (trainer.step(), trainer.notices().join("\n"))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn step(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("resume/step-{step:08}"))
}

#[test]
fn other_data_is_refused() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("text.txt");
    let data = format!("data.train={path:?}");
    let text = "The snake that has no name is long. ".repeat(60);
    for (mode, val) in
        [("data.mode=windows", "data.val_fraction=0.1"), ("data.mode=streams", "data.val=tinyshakespeare")]
    {
        let dir = tempfile::tempdir().unwrap();
        fs::write(&path, &text).unwrap();
        let settings =
            |steps: &str| config(dir.path(), &[&data, mode, val, "train.batch=2", "train.eval_batches=2", steps]);
        train(settings("train.steps=2"), Start::New).unwrap();
        let before = bytes(dir.path(), "model.safetensors");
        // Of the same length, and one character longer.
        for other in [text.replacen('s', "z", 1), format!("{text}.")] {
            fs::write(&path, other).unwrap();
            let error = refused(train(settings("train.steps=4"), Start::Resume));
            for word in ["text", "elapid train --from", "step-00000002"] {
                assert!(error.contains(word), "{error}");
            }
            assert!(bytes(dir.path(), "model.safetensors") == before);
        }
        fs::write(&path, &text).unwrap();
        assert_eq!(train(settings("train.steps=4"), Start::Resume).unwrap().step, 4);
    }
}

/// A run of two steps in streams, and the settings to go on by.
fn streams(dir: &Path) -> elapid_train::config::TrainConfig {
    let settings = config(dir, &["data.mode=streams", "train.steps=2"]);
    train(settings.clone(), Start::New).unwrap();
    let mut longer = settings;
    longer.train.steps = 4;
    longer
}

#[test]
fn damage_is_named_and_an_older_checkpoint_is_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let longer = streams(dir.path());
    let newest = step(dir.path(), 2);
    let spare = dir.path().join("spare");
    copy(&newest, &spare);
    let damage = |file: &str, change: &dyn Fn(&mut Vec<u8>)| {
        copy(&spare, &newest);
        let mut bytes = fs::read(newest.join(file)).unwrap();
        change(&mut bytes);
        fs::write(newest.join(file), bytes).unwrap();
    };
    let training = "training.safetensors";
    let middle = |bytes: &mut Vec<u8>| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
    };
    // One bit anywhere.
    for (file, parts) in [(training, 23), ("model.safetensors", 7), ("stream.state", 7)] {
        for part in 0..parts {
            damage(file, &|bytes| {
                let at = (bytes.len() - 1) * part / (parts - 1);
                bytes[at] ^= 1;
            });
            let error = refused(train(longer.clone(), Start::Resume));
            assert!(error.contains("step-00000002"), "{file} {part}: {error}");
        }
        damage(file, &|bytes| bytes.truncate(bytes.len() / 2));
        assert!(refused(train(longer.clone(), Start::Resume)).contains("damaged"), "{file}");
        copy(&spare, &newest);
        fs::remove_file(newest.join(file)).unwrap();
        let error = refused(train(longer.clone(), Start::Resume));
        assert!(error.contains("damaged") && error.contains("step-00000002"), "{file}: {error}");
    }
    damage("time.json", &|bytes| *bytes = b"{\"seconds\": 1e999}".to_vec());
    assert!(refused(train(longer.clone(), Start::Resume)).contains("time.json"));
    assert!(newest.is_dir(), "where there is no other, it stays as it is");

    // An older one: it is gone on from, and the damaged one is kept.
    damage(training, &middle);
    train_to_one(dir.path());
    let (at, said) = notices(&longer);
    assert_eq!(at, 1);
    for word in ["training.safetensors", "damaged", "from step 1", "step-00000002.damaged"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(dir.path().join("resume/step-00000002.damaged").is_dir());
    assert_eq!(train(longer, Start::Resume).unwrap().step, 4);
    let steps: Vec<u64> =
        metrics::read(&dir.path().join("metrics.jsonl")).unwrap().iter().map(|record| record.step).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

/// Puts the checkpoint of step 1 of the same run into its directory.
fn train_to_one(dir: &Path) {
    let other = tempfile::tempdir().unwrap();
    train(config(other.path(), &["data.mode=streams", "train.steps=1", "train.warmup=1"]), Start::New).unwrap();
    copy(&step(other.path(), 1), &step(dir, 1));
}

#[test]
fn what_is_not_of_this_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let longer = streams(dir.path());
    // An older one does not help: the newest is whole, and something else.
    train_to_one(dir.path());
    let newest = step(dir.path(), 2);

    let wider = tempfile::tempdir().unwrap();
    let settings = ["data.mode=streams", "train.steps=2", "model.d_model=32"];
    train(config(wider.path(), &settings), Start::New).unwrap();
    let spare = dir.path().join("spare");
    fs::rename(&newest, &spare).unwrap();
    copy(&step(wider.path(), 2), &newest);
    let error = refused(train(longer.clone(), Start::Resume));
    assert!(error.contains("model.d_model = 32") && error.contains("model.d_model = 24"), "{error}");
    // The model alone.
    fs::remove_dir_all(&newest).unwrap();
    copy(&spare, &newest);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(step(wider.path(), 2).join(file), newest.join(file)).unwrap();
    }
    let error = refused(train(longer.clone(), Start::Resume));
    assert!(error.contains("model.d_model = 32"), "{error}");

    fs::remove_dir_all(&newest).unwrap();
    copy(&spare, &step(dir.path(), 3));
    let error = refused(train(longer.clone(), Start::Resume));
    assert!(error.contains("of step 2, and its name says 3"), "{error}");
    fs::remove_dir_all(step(dir.path(), 3)).unwrap();

    copy(&spare, &newest);
    let mut rows = longer.clone();
    rows.train.batch = 3;
    let error = refused(train(rows, Start::Resume));
    assert!(error.contains("4 rows") && error.contains("train.batch is 3"), "{error}");
    assert_eq!(train(longer, Start::Resume).unwrap().step, 4);
}

#[test]
fn streams_need_their_state() {
    let (dir, windows) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let longer = streams(dir.path());
    // A whole checkpoint of the same text, but without a state.
    train(config(windows.path(), &["train.steps=2"]), Start::New).unwrap();
    fs::remove_dir_all(step(dir.path(), 2)).unwrap();
    copy(&step(windows.path(), 2), &step(dir.path(), 2));
    let error = refused(train(longer, Start::Resume));
    assert!(error.contains("no stream.state") && error.contains("data.mode"), "{error}");
}

#[test]
fn an_unfinished_checkpoint_that_is_whole_is_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let longer = streams(dir.path());
    let (whole, partial) = (step(dir.path(), 2), dir.path().join("resume/step-00000002.partial"));
    fs::rename(&whole, &partial).unwrap();
    let mut again = longer.clone();
    again.train.steps = 2;
    let error = refused(train(again, Start::New));
    assert!(error.contains("at step 2"), "{error}");
    fs::create_dir(dir.path().join("resume/step-00000003.partial")).unwrap();
    fs::write(dir.path().join("resume/step-00000003.partial/.elapid-x.tmp"), "cut").unwrap();
    fs::write(dir.path().join(".elapid-x.tmp"), "cut").unwrap();
    let (at, said) = notices(&longer);
    assert!(at == 2 && said.contains("step-00000002 was not renamed"), "{said}");
    let names: Vec<_> =
        fs::read_dir(dir.path().join("resume")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["step-00000002"]);
    assert!(!dir.path().join(".elapid-x.tmp").exists());
}

#[test]
fn a_checkpoint_that_is_there_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let longer = streams(dir.path());
    let file = step(dir.path(), 2).join("training.safetensors");
    let written = fs::metadata(&file).unwrap().modified().unwrap();
    let mut same = longer;
    same.train.steps = 2;
    assert_eq!(train(same, Start::Resume).unwrap().step, 2);
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);
}

#[test]
fn losses_of_another_kind_begin_a_new_best() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |steps: &str, smoothing: &str| {
        let more = [steps, smoothing, "train.eval_every=2", "train.lr=1e-30", "train.min_lr=0.0"];
        config(dir.path(), &[&SMALL_TASK[..], &more].concat())
    };
    let first = train(settings("train.steps=2", "train.label_smoothing=0.0"), Start::New).unwrap();
    let model = bytes(dir.path(), "model.safetensors");
    // The same way to measure: the old best stays to be beaten.
    let same = settings("train.steps=3", "train.label_smoothing=0.0");
    assert_eq!(notices(&same).1, "");
    // Smoothed losses are higher than the best before, and yet there is a best.
    let smoothed = settings("train.steps=4", "train.label_smoothing=0.3");
    let (_, said) = notices(&smoothed);
    assert!(said.contains("train.label_smoothing = 0.3") && said.contains("train.label_smoothing = 0"), "{said}");
    let second = train(smoothed, Start::Resume).unwrap();
    assert!(second.val_loss.is_some() && second.val_loss != first.val_loss, "{second:?}");
    assert!(bytes(dir.path(), "model.safetensors").len() == model.len());
    let records = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
    assert_eq!(second.val_loss, records.last().unwrap().figure(metrics::VAL_LOSS));
}
