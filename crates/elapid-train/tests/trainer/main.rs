//! Whole runs, small.

mod cuda;
mod directories;
mod faults;
mod from;
mod groups;
mod objectives;
mod plain;
mod resume;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use elapid::LanguageModel;
use elapid_train::config::TrainConfig;
use elapid_train::parallel::{Group, Timeouts, World};
use elapid_train::progress::Progress;
use elapid_train::{Outcome, Result, Start, Stopped, Trainer, metrics};

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

/// What training drops.
const DROPS: [&str; 3] = ["model.dropout=0.2", "model.embedding_dropout=0.1", "model.drop_path=0.3"];

fn train(config: TrainConfig, start: Start) -> Result<Outcome> {
    let mut trainer = Trainer::new(config, start, elapid::Device::Cpu, &mut |_| ())?;
    let steps = trainer.config().train.steps;
    trainer.run(&Progress::new(trainer.step(), steps, true), &AtomicBool::new(false))
}

fn bytes(dir: &Path, file: &str) -> Vec<u8> {
    std::fs::read(dir.join(file)).unwrap()
}

#[test]
fn a_run_leaves_a_model_metrics_and_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = train(config(dir.path(), &["train.steps=60", "train.eval_every=20"]), Start::New).unwrap();
    assert_eq!((outcome.stopped, outcome.step, outcome.tokens), (Stopped::Finished, 60, 60 * 4 * 32));
    assert!(outcome.val_loss.unwrap() < 4.5, "{outcome:?}");
    let model = LanguageModel::open(dir.path()).unwrap();
    assert_eq!(model.config().padded_vocab_size() % 8, 0);
    for file in ["config.toml", "tokenizer.json", "loss.png", "loss.svg"] {
        assert!(!bytes(dir.path(), file).is_empty(), "{file}");
    }
    let records = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
    assert_eq!(records.len(), 60);
    assert_eq!(records.iter().filter(|record| record.figure(metrics::VAL_LOSS).is_some()).count(), 3);
    assert!(records[59].loss < records[0].loss);
}

/// Stops a run after `at` steps by giving it no more, then resumes it to the end.
fn interrupted(dir: &Path, settings: &[&str], at: u64) {
    let all = config(dir, settings);
    let stop = AtomicBool::new(false);
    let mut trainer = Trainer::new(all.clone(), Start::New, elapid::Device::Cpu, &mut |_| ()).unwrap();
    trainer.run_until(at, &Progress::new(0, all.train.steps, true), &stop).unwrap();
    drop(trainer);
    train(all, Start::Resume).unwrap();
}

/// Weights are written in the formats of other programs, which name and cut parameters in other ways.
#[test]
fn runs_of_other_formats_go_on_with_the_same_bits() {
    let llama = ["model.layers=[\"attention\"]", "model.ffn=[\"mlp\"]"];
    let gpt2 = [
        "model.layers=[\"attention\"]",
        "model.layer.attention.rope=none",
        "model.layer.attention.qkv_bias=true",
        "model.layer.attention.out_bias=true",
        "model.ffn=[\"mlp\"]",
        "model.layer.mlp.gate=false",
        "model.layer.mlp.bias=true",
        "model.layer.mlp.activation=gelu-tanh",
        "model.norm=layer",
        "model.positions=learned",
        "model.max_positions=32",
    ];
    let moe = ["model.layers=[\"attention\"]", "model.ffn=[\"moe\"]", "model.layer.moe.experts=4"];
    let hybrid = ["model.layers=[\"mamba1\", \"attention\"]", "model.ffn=[\"mlp\"]"];
    let even = ["model.layer.attention.head_dim=4", "train.steps=12"];
    for settings in [&llama[..], &gpt2, &moe, &hybrid] {
        let settings = [settings, &even].concat();
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        train(config(whole.path(), &settings), Start::New).unwrap();
        interrupted(parts.path(), &settings, 7);
        for file in ["model.safetensors", "resume/step-00000012/training.safetensors"] {
            assert!(bytes(whole.path(), file) == bytes(parts.path(), file), "{file} of {settings:?}");
        }
    }
}

#[test]
fn a_resumed_run_is_the_same_bits() {
    let windows = [&DROPS[..], &["data.mode=\"windows\"", "train.accumulate=2"]].concat();
    for settings in [&windows[..], &["data.mode=\"streams\"", "data.pack=true"]] {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        train(config(whole.path(), settings), Start::New).unwrap();
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
fn recorded_losses_are_means_since_the_last_record() {
    let (each, fifth, parts) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let seldom = ["train.log_every=5", "train.eval_every=0"];
    train(config(each.path(), &["train.eval_every=0"]), Start::New).unwrap();
    train(config(fifth.path(), &seldom), Start::New).unwrap();
    interrupted(parts.path(), &seldom, 7);
    let of = |dir: &Path| -> Vec<(u64, f64)> {
        metrics::read(&dir.join("metrics.jsonl")).unwrap().iter().map(|record| (record.step, record.loss)).collect()
    };
    let losses = of(each.path());
    let mean = |steps: std::ops::Range<usize>| {
        let count = steps.len() as f64;
        losses[steps].iter().map(|one| one.1).sum::<f64>() / count
    };
    let want = [(1, mean(0..1)), (5, mean(1..5)), (10, mean(5..10)), (12, mean(10..12))];
    let got = of(fifth.path());
    assert!(
        got.iter().zip(want).all(|(got, want)| got.0 == want.0 && (got.1 - want.1).abs() < 1e-12),
        "{got:?} {want:?}"
    );
    assert_eq!((got.len(), of(parts.path())), (4, got), "a resumed run has the same means");
}

#[test]
fn the_same_seed_twice_is_the_same_bits() {
    let (one, two, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(config(one.path(), &[]), Start::New).unwrap();
    train(config(two.path(), &[]), Start::New).unwrap();
    train(config(other.path(), &["train.seed=2"]), Start::New).unwrap();
    assert!(bytes(one.path(), "model.safetensors") == bytes(two.path(), "model.safetensors"));
    assert!(bytes(one.path(), "model.safetensors") != bytes(other.path(), "model.safetensors"));
}

#[test]
fn recomputed_blocks_train_alike() {
    for drops in [&[][..], &DROPS] {
        let (kept, recomputed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = train(config(kept.path(), drops), Start::New).unwrap();
        let more = [drops, &["train.checkpoint_blocks=true"]].concat();
        let two = train(config(recomputed.path(), &more), Start::New).unwrap();
        assert!((one.loss - two.loss).abs() < 1e-3 * one.loss, "{} {}", one.loss, two.loss);
    }
}

#[test]
fn a_run_that_diverges_names_the_step_and_the_layer_and_keeps_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["train.lr=1e30", "train.min_lr=0.0", "train.warmup=0", "train.clip=0.0", "train.save_every=1"];
    let error = train(config(dir.path(), &settings), Start::New).unwrap_err().to_string();
    assert!(error.contains("step ") && error.contains("not finite"), "{error}");
    assert!(error.contains("parameter") || error.contains("layer") || error.contains("gradient"), "{error}");
    assert!(error.contains("resume/step-"), "{error}");
}

#[test]
fn patience_ends_a_run() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing is learned at this rate, so that the first validation stays the best or nearly so.
    let settings = ["train.lr=1e-30", "train.min_lr=0.0", "train.patience=2", "train.eval_every=1"];
    let outcome = train(config(dir.path(), &settings), Start::New).unwrap();
    assert_eq!((outcome.stopped, outcome.step), (Stopped::Patience, 3));
}

#[test]
fn without_held_out_text_the_last_model_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = train(config(dir.path(), &["data.val_fraction=0.0"]), Start::New).unwrap();
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
        train(config(dir.path(), &settings), Start::New).unwrap().val_loss.unwrap()
    };
    for mode in ["windows", "streams"] {
        let apart = (11.0 * validated(&one, mode, true) + 14.0 * validated(&two, mode, true)) / 25.0;
        let packed = validated(&format!("{one}, {two}"), mode, true);
        assert!((apart - packed).abs() < 1e-6 * apart, "{mode}: {apart} {packed}");
        let joined = validated(&format!("{one}, {two}"), mode, false);
        assert!((joined - packed).abs() > 1e-4 * apart, "{mode}: {joined} {packed}");
    }
}

/// Runs `f` as each of `size` ranks, in threads.
fn ranks<R: Send>(size: usize, f: impl Fn(usize, Arc<Group>) -> R + Sync) -> Vec<R> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let long = Duration::from_secs(600);
    let timeouts =
        Timeouts { handshake: long, silence: long, heartbeat: Duration::from_millis(100), ..Timeouts::default() };
    let met = std::sync::Barrier::new(size);
    let (f, met) = (&f, &met);
    std::thread::scope(|scope| {
        let rank = |rank| {
            let world = World { rank, local_rank: rank, size, address: "127.0.0.1".into(), port };
            scope.spawn(move || {
                let group = Group::join(&world, None, timeouts, &mut |_| ()).unwrap();
                met.wait();
                f(rank, group)
            })
        };
        let threads: Vec<_> = (0..size).map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A run by several ranks, to step `last`.
fn train_together(
    config: &TrainConfig,
    start: Start,
    size: usize,
    last: u64,
    stop: &AtomicBool,
) -> Vec<Result<Outcome>> {
    ranks(size, |rank, group| {
        let trained = || {
            let device = elapid::Device::Cpu;
            let mut trainer = Trainer::parallel(config.clone(), start, device, group.clone(), &mut |_| ())?;
            let outcome = trainer.run_until(last, &Progress::new(0, config.train.steps, true), stop)?;
            group.finish()?;
            Ok(outcome)
        };
        let trained: Result<Outcome> = trained();
        if let Err(error) = &trained {
            group.report_failure(&format!("rank {rank}: {error}"));
        }
        trained
    })
}

fn losses(dir: &Path) -> Vec<f64> {
    metrics::read(&dir.join("metrics.jsonl")).unwrap().iter().map(|record| record.loss).collect()
}

#[test]
fn ranks_train_as_one_with_all_their_batches() {
    let never = AtomicBool::new(false);
    for (size, accumulate) in [(2, 1), (3, 2)] {
        let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let settings = |dir: &Path, parts: usize| {
            let parts = format!("train.accumulate={parts}");
            config(dir, &[&DROPS[..], &[&parts]].concat())
        };
        let alone = train(settings(one.path(), size * accumulate), Start::New).unwrap();
        let outcomes = train_together(&settings(many.path(), accumulate), Start::New, size, 12, &never);
        let first = outcomes[0].as_ref().unwrap();
        assert_eq!((first.step, first.tokens, first.stopped), (12, alone.tokens, Stopped::Finished));
        assert!(outcomes.iter().all(|outcome| outcome.as_ref().unwrap().loss == first.loss));
        let (want, got) = (losses(one.path()), losses(many.path()));
        assert_eq!(want.len(), got.len(), "rank 0 alone writes");
        for (step, (want, got)) in want.iter().zip(&got).enumerate() {
            assert!((want - got).abs() < 1e-4 * want, "{size} ranks, step {step}: {want} {got}");
        }
        let (want, got) = (alone.val_loss.unwrap(), first.val_loss.unwrap());
        assert!((want - got).abs() < 1e-4 * want, "{want} {got}");
        assert!(outcomes[1].as_ref().unwrap().val_loss.is_none(), "rank 0 alone validates");
    }
}

#[test]
fn ranks_go_on_where_they_stopped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (never, now) = (AtomicBool::new(false), AtomicBool::new(true));
    train_together(&config(whole.path(), &[]), Start::New, 2, 12, &never)
        .into_iter()
        .for_each(|run| drop(run.unwrap()));
    let all = config(parts.path(), &[]);
    train_together(&all, Start::New, 2, 7, &never).into_iter().for_each(|run| drop(run.unwrap()));
    for outcome in train_together(&all, Start::Resume, 2, 12, &now) {
        let outcome = outcome.unwrap();
        assert_eq!((outcome.step, outcome.stopped), (7, Stopped::Interrupted), "all stop at once");
    }
    train_together(&all, Start::Resume, 2, 12, &never).into_iter().for_each(|run| drop(run.unwrap()));
    for file in ["model.safetensors", "resume/step-00000012/model.safetensors"] {
        assert!(bytes(whole.path(), file) == bytes(parts.path(), file), "{file}");
    }
    assert_eq!(losses(whole.path()), losses(parts.path()));
}

#[test]
fn patience_ends_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["train.lr=1e-30", "train.min_lr=0.0", "train.patience=2", "train.eval_every=1"];
    for outcome in train_together(&config(dir.path(), &settings), Start::New, 2, 12, &AtomicBool::new(false)) {
        let outcome = outcome.unwrap();
        assert_eq!((outcome.stopped, outcome.step), (Stopped::Patience, 3));
    }
}

#[test]
fn a_rank_that_fails_ends_all_and_the_checkpoint_stays() {
    let dir = tempfile::tempdir().unwrap();
    let all = config(dir.path(), &["train.save_every=2", "train.steps=1000", "train.eval_every=0"]);
    let gone = AtomicBool::new(false);
    let errors = ranks(3, |rank, group| {
        let trained = || {
            let device = elapid::Device::Cpu;
            let mut trainer = Trainer::parallel(all.clone(), Start::New, device, group.clone(), &mut |_| ())?;
            let (progress, never) = (Progress::new(0, 1000, true), AtomicBool::new(false));
            // The third rank leaves after 5 steps.
            let outcome = trainer.run_until(if rank == 2 { 5 } else { 1000 }, &progress, &never);
            gone.fetch_or(rank == 2, Ordering::Relaxed);
            outcome
        };
        match trained() {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    });
    assert!(gone.load(Ordering::Relaxed) && errors[2].is_empty());
    for error in &errors[..2] {
        for part in ["rank 2 of 3 was lost", "before the others", "resume/step-00000004", "--resume"] {
            assert!(error.contains(part), "{error}");
        }
    }
    LanguageModel::open(&dir.path().join("resume/step-00000004")).unwrap();
}

#[test]
fn ranks_that_train_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |different: &str, words: &[&str]| {
        let errors = ranks(2, |rank, group| {
            let settings: &[&str] = if rank == 1 { &[different] } else { &[] };
            let device = elapid::Device::Cpu;
            let trainer =
                Trainer::parallel(config(dir.path(), settings), Start::New, device, group.clone(), &mut |_| ());
            let error = trainer.err().unwrap().to_string();
            group.report_failure(&error);
            error
        });
        words.iter().for_each(|word| assert!(errors.iter().all(|error| error.contains(word)), "{errors:?}"));
    };
    refused("train.batch=3", &["rank 1 has `batch = 3`, rank 0 `batch = 4`"]);
    refused("data.val_fraction=0.5", &["rank 1", "rank 0"]);
    let errors = train_together(&config(dir.path(), &["data.mode=streams"]), Start::New, 2, 1, &AtomicBool::new(false));
    for error in errors {
        assert!(error.unwrap_err().to_string().contains("windows"));
    }
}

/// Copying two tokens from a few positions: learned in seconds.
const SMALL_TASK: [&str; 11] = [
    "task.name=copying",
    "task.tokens=2",
    "task.vocab=5",
    "data.length=4",
    "train.batch=16",
    "train.lr=1e-2",
    "train.schedule=constant",
    "train.weight_decay=0.0",
    "train.eval_batches=4",
    "train.steps=2000",
    "train.eval_every=20",
];

#[test]
fn a_task_is_learned_and_training_ends_when_all_answers_are_right() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [&SMALL_TASK[..], &["train.stop_at_accuracy=1.0", "train.stop_after=2"]].concat();
    let outcome = train(config(dir.path(), &settings), Start::New).unwrap();
    assert_eq!((outcome.stopped, outcome.figure(metrics::ACCURACY)), (Stopped::Accuracy, Some(1.0)), "{outcome:?}");
    assert_eq!(outcome.tokens, outcome.step * 16 * 8, "a row has the tokens, as many markers, and four places more");
    assert!(!dir.path().join("tokenizer.json").exists());
    assert_eq!(LanguageModel::open(dir.path()).unwrap().config().vocab_size, 5);
    assert!(!bytes(dir.path(), "accuracy.png").is_empty());
    let records = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
    let accuracies: Vec<f64> = records.iter().filter_map(|record| record.figure(metrics::ACCURACY)).collect();
    assert_eq!(accuracies.len() as u64, outcome.step / 20);
    assert!(accuracies[0] < 1.0 && accuracies.ends_with(&[1.0, 1.0]), "{accuracies:?}");
}

#[test]
fn smoothed_targets_are_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["train.label_smoothing=0.1", "train.stop_at_accuracy=1.0"];
    train(config(dir.path(), &[&SMALL_TASK[..], &more].concat()), Start::New).unwrap();
    let records = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
    let last = records.last().unwrap();
    // No loss is below the entropy of the targets, 0.92 for one of five tokens and 0.02 for the others.
    let entropy = -(0.92 * 0.92f64.ln() + 4.0 * 0.02 * 0.02f64.ln());
    assert!(records.iter().all(|record| record.loss > entropy - 1e-6), "{last:?}");
    assert!(
        records.iter().filter_map(|record| record.figure(metrics::VAL_LOSS)).all(|loss| loss > entropy - 1e-6),
        "{last:?}"
    );
    assert!(last.figure(metrics::VAL_LOSS).unwrap() < 1.5 * entropy, "{last:?} {entropy}");
}

#[test]
fn a_resumed_task_is_the_same_bits() {
    let more = ["train.steps=12", "train.eval_every=4", "train.accumulate=2", "task.eval_lengths=[4, 9]"];
    let settings = [&SMALL_TASK[..], &more, &["task.next_tokens=true"]].concat();
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(config(whole.path(), &settings), Start::New).unwrap();
    interrupted(parts.path(), &settings, 7);
    for file in ["model.safetensors", "resume/step-00000012/model.safetensors"] {
        assert!(bytes(whole.path(), file) == bytes(parts.path(), file), "{file}");
    }
    let error = train(config(parts.path(), &[&settings[..], &["task.tokens=3"]].concat()), Start::Resume).unwrap_err();
    assert!(error.to_string().contains("[task]"), "{error}");
}
