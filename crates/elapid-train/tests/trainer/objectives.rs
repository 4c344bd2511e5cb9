//! Objectives other than text and tasks, trained to a stated loss, resumed, and by several ranks.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::models::{Form, Model, SequenceModel};
use elapid::pass::Cx;
use elapid::{Device, State};
use elapid_train::config::TrainConfig;
use elapid_train::data::{Sequential, TokenStream, Windows};
use elapid_train::metrics::{self, Record};
use elapid_train::objectives::{
    ArraySpec, Batch, Classify, Example, Inputs, Labelled, Masked, Objective, Positions, Regress, Validation,
};
use elapid_train::progress::Progress;
use elapid_train::tasks::Split;
use elapid_train::{Outcome, Result, Start, Stopped, Trainer};

use super::{bytes, config, ranks};

const SMALL: [&str; 7] = [
    "model.d_model=16",
    "model.n_layer=1",
    "train.lr=1e-2",
    "train.schedule=constant",
    "train.weight_decay=0.0",
    "train.batch=16",
    "train.eval_every=50",
];

/// A number that looks random, of a split and two others.
fn mix(split: Split, number: u64, i: u64) -> u64 {
    let mut z = number.wrapping_mul(1009).wrapping_add(i).wrapping_add((split as u64) << 60);
    for factor in [0xbf58_476d_1ce4_e5b9_u64, 0x94d0_49bb_1331_11eb] {
        z = (z.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ (z >> 30)).wrapping_mul(factor);
    }
    z ^ (z >> 31)
}

/// Tokens 0, 1 and 2 among noise; the class is which of them came last.
pub(crate) fn classify() -> Classify {
    let make = |split, number| {
        let mut tokens: Vec<u32> = (0..12).map(|i| (mix(split, number, i) % 8) as u32).collect();
        tokens[0] = (mix(split, number, 99) % 3) as u32;
        let label = tokens.iter().rev().find(|token| **token < 3).copied().unwrap_or(0);
        Example { positions: Positions::Tokens(tokens), label }
    };
    let form = Form { features: None, outputs: 3 };
    let set = Labelled { form, length: 12, vocab: 8, make: Box::new(make), held_out: 200 };
    Classify { set: Arc::new(set), rows: 16, smoothing: 0.0 }
}

/// Values between -1 and 1, one of them marked; the label is that one.
pub(crate) fn regress() -> Regress {
    let make = |split, number| {
        let value = |i| (mix(split, number, i) % 2001) as f32 / 1000.0 - 1.0;
        let marked = mix(split, number, 99) % 10;
        let positions = (0..10).flat_map(|i| [value(i), if i == marked { 1.0 } else { 0.0 }]).collect();
        Example { positions: Positions::Values(positions), label: vec![value(marked)] }
    };
    let form = Form { features: Some(2), outputs: 1 };
    let set = Labelled { form, length: 10, vocab: 1, make: Box::new(make), held_out: 200 };
    Regress { set: Arc::new(set), rows: 16 }
}

fn start<O: Objective>(config: &TrainConfig, start: Start, objective: O, ids: usize) -> Result<Trainer<O::Model>> {
    Trainer::with_objective(config.clone(), start, Device::Cpu, None, objective, ids)
}

fn run<M: Model>(trainer: &mut Trainer<M>) -> Outcome {
    let steps = trainer.config().train.steps;
    trainer.run(&Progress::new(trainer.step(), steps, true), &AtomicBool::new(false)).unwrap()
}

pub(crate) fn small(dir: &Path, more: &[&str]) -> TrainConfig {
    config(dir, &[&SMALL[..], more].concat())
}

fn records(dir: &Path) -> Vec<Record> {
    metrics::read(&dir.join("metrics.jsonl")).unwrap()
}

#[test]
fn classes_of_sequences_are_learned() {
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path(), &["train.steps=400", "train.stop_at_accuracy=0.99", "train.stop_after=1"]);
    let mut trainer = start(&settings, Start::New, classify(), 8).unwrap();
    let outcome = run(&mut trainer);
    let last = records(dir.path()).pop().unwrap();
    assert_eq!(outcome.stopped, Stopped::Accuracy, "{outcome:?}");
    assert!(last.figure(metrics::ACCURACY).unwrap() >= 0.99, "{last:?}");
    assert!(last.figure(metrics::VAL_LOSS).unwrap() < 0.1, "{last:?}");
    assert!(!bytes(dir.path(), "accuracy.png").is_empty());
    let saved = SequenceModel::load(&elapid::checkpoint::Checkpoint::open(dir.path()).unwrap()).unwrap();
    assert_eq!(saved.form(), Form { features: None, outputs: 3 });
}

#[test]
fn values_that_follow_from_sequences_are_learned() {
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path(), &["train.steps=400"]);
    let outcome = run(&mut start(&settings, Start::New, regress(), 1).unwrap());
    let last = records(dir.path()).pop().unwrap();
    // The variance of the labels is 1/3.
    assert!(outcome.val_loss.unwrap() < 0.02, "{outcome:?}");
    assert!(last.figure(metrics::R2).unwrap() > 0.94, "{last:?}");
}

#[test]
fn masked_tokens_are_predicted() {
    let dir = tempfile::tempdir().unwrap();
    // Every token is the one before and one more, so that each follows from what stands before it.
    let stream = |len: u64| TokenStream::from_tokens((0..len).map(|i| (i % 11) as u32).collect(), vec![0]);
    let (b, l) = (16, 24);
    let objective = Masked {
        windows: Windows::new(stream(4000), b, l, 1, false).unwrap(),
        shape: (b, l),
        vocab: 11,
        share: 0.15,
        seed: 1,
        held_out: Some(Sequential::new(stream(400), b, l, false).unwrap()),
    };
    let ids = objective.ids();
    let outcome = run(&mut start(&small(dir.path(), &["train.steps=300"]), Start::New, objective, ids).unwrap());
    let last = records(dir.path()).pop().unwrap();
    // Nothing stands before the first token of a row: 19 in 20 is the best.
    assert!(last.figure(metrics::ACCURACY).unwrap() > 0.85, "{last:?}");
    assert!(outcome.val_loss.unwrap() < 0.4, "{outcome:?}");
}

#[test]
fn a_resumed_objective_is_the_same_bits() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = |dir: &Path| small(dir, &["train.steps=12", "train.accumulate=2", "train.eval_every=4"]);
    run(&mut start(&settings(whole.path()), Start::New, regress(), 1).unwrap());
    let (first, stop) = (settings(parts.path()), AtomicBool::new(false));
    let mut trainer = start(&first, Start::New, regress(), 1).unwrap();
    trainer.run_until(7, &Progress::new(0, 12, true), &stop).unwrap();
    drop(trainer);
    run(&mut start(&first, Start::Resume, regress(), 1).unwrap());
    for file in ["model.safetensors", "resume/step-00000012/model.safetensors"] {
        assert!(bytes(whole.path(), file) == bytes(parts.path(), file), "{file}");
    }
}

#[test]
fn ranks_train_an_objective_together() {
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let alone = small(one.path(), &["train.steps=6", "train.accumulate=2"]);
    run(&mut start(&alone, Start::New, classify(), 8).unwrap());
    let together = small(many.path(), &["train.steps=6"]);
    ranks(2, |_, group| {
        let (device, config) = (Device::Cpu, together.clone());
        let mut trainer =
            Trainer::with_objective(config, Start::New, device, Some(group.clone()), classify(), 8).unwrap();
        run(&mut trainer);
        group.finish().unwrap();
    });
    for (want, got) in records(one.path()).iter().zip(records(many.path())) {
        assert!((want.loss - got.loss).abs() < 1e-4 * want.loss, "{want:?} {got:?}");
    }
}

/// A regression whose loss is given to the pass once more as a side loss.
struct Sided(Regress, f32);

impl Objective for Sided {
    type Model = SequenceModel;

    fn model(&self, config: ModelConfig, seed: u64) -> Result<SequenceModel> {
        self.0.model(config, seed)
    }

    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn arrays(&self) -> Vec<ArraySpec> {
        self.0.arrays()
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        self.0.batch(index)
    }

    fn loss(
        &self,
        model: &SequenceModel,
        cx: &Cx,
        batch: &Inputs<'_>,
        state: &State,
        recompute: bool,
    ) -> Result<(Var, State)> {
        let (loss, next) = self.0.loss(model, cx, batch, state, recompute)?;
        cx.side_loss(loss.clone(), self.1);
        Ok((loss, next))
    }

    fn validate(&self, _model: &SequenceModel, _step: u64) -> Result<Option<Validation>> {
        Ok(None)
    }
}

#[test]
fn side_losses_add_to_the_gradient_and_not_to_the_loss() {
    let first = |weight| {
        let dir = tempfile::tempdir().unwrap();
        let settings = small(dir.path(), &["train.steps=1", "train.warmup=0"]);
        run(&mut start(&settings, Start::New, Sided(regress(), weight), 1).unwrap());
        records(dir.path()).pop().unwrap()
    };
    let (without, with) = (first(0.0), first(1.0));
    assert!(without.grad_norm > 0.0 && without.loss == with.loss, "{without:?} {with:?}");
    assert!((with.grad_norm - 2.0 * without.grad_norm).abs() < 1e-6 * with.grad_norm, "{without:?} {with:?}");
}
