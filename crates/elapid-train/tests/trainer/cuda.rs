//! Runs on a GPU go as on the CPU. Skipped where there is none; `ELAPID_REQUIRE_GPU` makes that a failure.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use elapid::models::Model;
use elapid::{Device, LanguageModel};
use elapid_kernels::testing::gpu;
use elapid_train::config::TrainConfig;
use elapid_train::metrics;
use elapid_train::progress::Progress;
use elapid_train::{Result, Start, Trainer};

use super::objectives::{classify, regress, small};
use super::{DROPS, SMALL_TASK, config};

/// Training losses, and the loss of the last validation.
fn losses<M: Model>(trainer: Result<Trainer<M>>, dir: &Path) -> (Vec<f64>, f64) {
    let mut trainer = trainer.unwrap();
    let steps = trainer.config().train.steps;
    let outcome = trainer.run(&Progress::new(0, steps, true), &AtomicBool::new(false)).unwrap();
    let records = metrics::read(&dir.join("metrics.jsonl")).unwrap();
    (records.iter().map(|record| record.loss).collect(), outcome.val_loss.unwrap())
}

/// Compares a run on the CPU with one on a GPU in f32: more steps than are warm-up, so that the graph is replayed.
fn alike<M: Model>(
    name: &str,
    settings: &dyn Fn(&Path) -> TrainConfig,
    run: impl Fn(TrainConfig, Device) -> Result<Trainer<M>>,
) {
    let Some(gpu) = gpu() else { return };
    let [want, got] = [Device::Cpu, Device::Cuda(gpu)].map(|device| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = settings(dir.path());
        config.apply_override("train.dtype=f32").unwrap();
        losses(run(config, device), dir.path())
    });
    assert_eq!(want.0.len(), got.0.len(), "{name}");
    for (step, (want, got)) in want.0.iter().zip(&got.0).enumerate() {
        assert!((want - got).abs() < 2e-3 * want, "{name}, step {}: {want} {got}", step + 1);
    }
    assert!((want.1 - got.1).abs() < 2e-3 * want.1, "{name}: validation {} {}", want.1, got.1);
}

#[test]
fn text_and_tasks_train_as_on_the_cpu() {
    let run = |config, device| Trainer::new(config, Start::New, device, &mut |_| ());
    let windows = ["train.accumulate=2", "data.pack=true", "train.label_smoothing=0.1"];
    let streams = ["data.mode=streams", "data.val=tinyshakespeare", "train.eval_batches=2"];
    let task = [&SMALL_TASK[..], &["train.steps=12", "train.eval_every=4"]].concat();
    let groups = [super::groups::GROUPS];
    // Norms, gates, positions and a soft cap. Documents begin inside rows, which only the device knows.
    let stack = [
        "model.ffn=[\"mlp\"]",
        "model.norm=layer",
        "model.positions=learned",
        "model.max_positions=32",
        "model.logit_softcap=5.0",
        "model.layer.mlp.scale=0.5",
        "data.pack=true",
    ];
    let sums = ["model.ffn=[\"mlp\"]", "model.norm=rms1", "model.positions=sinusoidal", "model.layer.mlp.place=output"];
    let dropped = [&DROPS[..], &["train.accumulate=2", "model.ffn=[\"mlp\"]"]].concat();
    // Losses of routers beside that of the text, of each and of all together.
    let routers = [
        "model.ffn=[\"moe\"]",
        "model.layer.moe.experts=4",
        "model.layer.moe.balance=0.05",
        "model.layer.moe.z_loss=0.01",
        "model.layer.moe.capacity=1.5",
    ];
    let together = [&routers[..4], &["model.layer.moe.balance_over=\"model\""]].concat();
    let attention = ["model.layers=[\"attention\"]", "model.layer.attention.head_dim=4", "model.ffn=[\"mlp\"]"];
    let all = [
        &windows[..],
        &streams[..],
        &task[..],
        &groups[..],
        &stack[..],
        &sums[..],
        &dropped[..],
        &routers[..],
        &together[..],
        &attention[..],
    ];
    for settings in all {
        alike::<LanguageModel>(&format!("{settings:?}"), &|dir| config(dir, settings), run);
    }
}

#[test]
fn streams_start_anew_as_on_the_cpu() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("text.txt");
    std::fs::write(&path, "The snake that has no name is long. ".repeat(8)).unwrap();
    let data = format!("data.train={path:?}");
    let settings = [&data, "data.mode=streams", "data.val=tinyshakespeare", "train.eval_batches=2", "train.batch=2"];
    let run = |config, device| Trainer::new(config, Start::New, device, &mut |_| ());
    alike::<LanguageModel>("streams", &|dir| config(dir, &settings), run);
}

#[test]
fn classes_are_learned_as_on_the_cpu() {
    let run = |config, device| Trainer::with_objective(config, Start::New, device, None, classify(), 8);
    alike("classes", &|dir| small(dir, &["train.steps=12", "train.eval_every=4"]), run);
}

#[test]
fn values_are_learned_as_on_the_cpu() {
    let run = |config, device| Trainer::with_objective(config, Start::New, device, None, regress(), 1);
    alike("values", &|dir| small(dir, &["train.steps=12", "train.eval_every=4"]), run);
}

#[test]
fn streams_are_refused_where_positions_go_on() {
    let Some(gpu) = gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let settings = ["data.mode=streams", "data.val=tinyshakespeare", "model.positions=sinusoidal"];
    let error = Trainer::new(config(dir.path(), &settings), Start::New, Device::Cuda(gpu), &mut |_| ()).err().unwrap();
    assert!(error.to_string().contains("windows"), "{error}");
}
