//! Kills at every change to files: no checkpoint is ever lost, and what is left can be gone on from.
//!
//! The run that is killed is this test program again, in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use elapid::fault;
use elapid_train::config::TrainConfig;
use elapid_train::progress::Progress;
use elapid_train::{Result, Start, Trainer, metrics};

const DIR: &str = "ELAPID_TEST_DIR";
const OPERATIONS: &str = "ELAPID_TEST_OPERATIONS";
const STEPS: u64 = 4;

/// A run of milliseconds in `dir/run`.
fn tiny(dir: &Path) -> TrainConfig {
    let text = format!("data.train={:?}", dir.join("text.txt"));
    let (steps, run) = (format!("train.steps={STEPS}"), dir.join("run"));
    let settings = [
        "model.d_model=8",
        "model.n_layer=1",
        "model.d_state=2",
        "data.length=8",
        "data.val_fraction=0.1",
        "data.mode=streams",
        "train.batch=1",
        "train.save_every=1",
        "train.eval_every=2",
        "train.log_every=100",
        &text,
        &steps,
    ];
    super::config(&run, &settings)
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text.txt"), "The snake that has no name is long. ".repeat(8)).unwrap();
    dir
}

/// Where a run notes which step it has surely saved.
fn note(dir: &Path) -> PathBuf {
    dir.join("saved")
}

fn saved(dir: &Path) -> u64 {
    std::fs::read_to_string(note(dir)).map_or(0, |step| step.parse().unwrap())
}

/// Begins the run of a directory, or goes on with it.
fn begin(dir: &Path) -> Result<Trainer> {
    let start = |start| Trainer::new(tiny(dir), start, elapid::Device::Cpu, &mut |_| ());
    match start(Start::Resume) {
        Err(error) if saved(dir) > 0 => Err(error),
        Err(_) => start(Start::New),
        resumed => resumed,
    }
}

fn train(dir: &Path) -> Result<()> {
    let mut trainer = begin(dir)?;
    let (progress, never) = (Progress::new(0, STEPS, true), AtomicBool::new(false));
    loop {
        trainer.run_until((trainer.step() + 2).min(STEPS), &progress, &never)?;
        std::fs::write(note(dir), trainer.step().to_string()).unwrap();
        if trainer.step() == STEPS {
            return Ok(());
        }
    }
}

/// Not a test by itself: the process that is killed.
#[test]
fn a_run_that_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    fault::end_after(std::env::var(OPERATIONS).unwrap().parse().unwrap());
    train(Path::new(&dir)).unwrap();
}

/// Runs until so many changes to files were made; whether it came to its end.
fn killed_after(operations: u64, dir: &Path) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["faults::a_run_that_is_killed", "--exact", "--test-threads=1"]);
    command.env(DIR, dir).env(OPERATIONS, operations.to_string()).env("RAYON_NUM_THREADS", "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() || output.status.code() == Some(fault::CODE), "{operations}: {text}");
    assert!(text.contains("running 1 test"), "{text}");
    output.status.success()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort_unstable();
    names
}

/// What a finished run leaves.
fn result(dir: &Path) -> (Vec<u8>, Vec<u64>, Vec<String>, Vec<String>) {
    let run = dir.join("run");
    let records = metrics::read(&run.join("metrics.jsonl")).unwrap();
    let steps = records.iter().map(|record| record.step).collect();
    (std::fs::read(run.join("model.safetensors")).unwrap(), steps, names(&run), names(&run.join("resume")))
}

#[test]
fn a_kill_at_any_change_to_files_loses_no_checkpoint() {
    let whole = directory();
    train(whole.path()).unwrap();
    let wanted = result(whole.path());
    assert_eq!(wanted.3, ["step-00000004"]);
    let mut operations = 0;
    loop {
        let dir = directory();
        let finished = killed_after(operations, dir.path());
        let at_least = saved(dir.path());
        let trainer = begin(dir.path()).unwrap_or_else(|error| panic!("{operations}: {error}"));
        assert!(trainer.step() >= at_least, "{operations}: step {at_least} was saved, {} is left", trainer.step());
        drop(trainer);
        train(dir.path()).unwrap_or_else(|error| panic!("{operations}: {error}"));
        assert!(result(dir.path()) == wanted, "{operations}: {:?}", &result(dir.path()).1);
        if finished {
            break;
        }
        operations += 1;
    }
    assert!(operations > 150, "{operations} changes to files are too few for this run");
}

#[test]
fn a_run_that_is_killed_again_and_again_comes_to_its_end() {
    let whole = directory();
    train(whole.path()).unwrap();
    for operations in [110, 123] {
        let dir = directory();
        let mut rounds = 1;
        while !killed_after(operations, dir.path()) {
            rounds += 1;
            assert!(rounds < 50, "it does not get on");
        }
        assert!(rounds > 2 && result(dir.path()) == result(whole.path()), "{operations}: {rounds}");
    }
}
