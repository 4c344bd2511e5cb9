//! The trainer's losses and parameters are those of a plain loop over batches, bit for bit.

use std::sync::Arc;

use elapid::autograd::Tape;
use elapid::ops::{First, Seeds, Targets};
use elapid::params::ParamGrads;
use elapid::{LanguageModel, Layout, State};
use elapid_train::config::{Mode, TrainConfig};
use elapid_train::data::{Batch, Corpus, Options, Streams, Windows};
use elapid_train::optim::{self, AdamW};
use elapid_train::tasks::{self, Sequences, Split};
use elapid_train::{Start, metrics};

use super::{SMALL_TASK, config, train};

/// Batches by number, and the model before the first step.
fn begin(config: &TrainConfig) -> (Box<dyn Fn(u64) -> Batch>, LanguageModel) {
    let (b, l, seed) = (config.train.batch, config.data.length, config.train.seed);
    if let Some(task) = tasks::open(&config.task).unwrap() {
        let model = LanguageModel::new(config.model.resolve_for(task.vocab_size()).unwrap(), seed).unwrap();
        let sequences = Sequences::new(task, l, seed, Split::Train).unwrap().with_next_tokens(config.task.next_tokens);
        return (Box::new(move |index| sequences.batch(index, b)), model);
    }
    let tokenizer = config.data.open_tokenizer().unwrap();
    let model = LanguageModel::new(config.model.resolve(&tokenizer).unwrap(), seed).unwrap();
    let (sources, held_out) = (config.data.train_sources(), config.data.held_out());
    let text = Corpus::prepare(&sources, &held_out, &tokenizer, Options::default()).unwrap().train;
    match config.data.mode {
        Mode::Windows => {
            let windows = Windows::new(text, b, l, seed, config.data.pack).unwrap();
            (Box::new(move |index| windows.batch(index).unwrap()), model)
        }
        Mode::Streams => {
            let streams = Streams::new(text, b, l, config.data.pack).unwrap();
            (Box::new(move |index| streams.batch(index).unwrap()), model)
        }
    }
}

/// The loss of every step, and the model after the last.
fn plain(config: &TrainConfig) -> (Vec<f64>, LanguageModel) {
    let (train, schedule) = (&config.train, config.train.lr_schedule().unwrap());
    let (batch, mut model) = begin(config);
    let options = optim::Options {
        beta1: train.beta1 as f32,
        beta2: train.beta2 as f32,
        eps: train.eps as f32,
        weight_decay: train.weight_decay as f32,
        decay_all: train.decay_all,
        clip: train.clip as f32,
    };
    let mut optimiser = AdamW::new(model.params(), options).unwrap();
    let (mut grads, mut losses) = (ParamGrads::of(model.params()).unwrap(), Vec::new());
    let (parts, mut carried): (u64, Option<State>) = (train.accumulate as u64, None);
    for step in 0..train.steps {
        grads.zero().unwrap();
        let mut sum = 0.0;
        for part in 0..parts {
            let batch = batch(step * parts + part);
            let layout = Layout { resets: batch.resets.map(Into::into), ..Layout::new(batch.b, batch.l) };
            let state = carried.take().unwrap_or_else(|| model.zero_state(batch.b).unwrap());
            let tape = Arc::new(Tape::new());
            let first = First::Host((step * parts + part) * batch.b as u64);
            let cx = model.training(&tape, layout).with_seeds(Seeds { seed: train.seed, first });
            let targets = Targets::from(&batch.targets).smoothed(train.label_smoothing as f32);
            let (loss, next) = model.loss(&cx, &batch.tokens, targets, &state, train.checkpoint_blocks).unwrap();
            tape.backward(&[(&loss.mean, 1.0 / parts as f32)], &mut grads, &mut |_| Ok(())).unwrap();
            carried = (config.data.mode == Mode::Streams).then(|| next.detach());
            sum += f64::from(loss.value().unwrap()) / parts as f64;
        }
        optimiser.step(model.params_mut(), &grads, schedule.lr(step) as f32).unwrap();
        losses.push(sum);
    }
    (losses, model)
}

fn agree(settings: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), settings);
    let (losses, model) = plain(&config);
    train(config, Start::New).unwrap();
    let records = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
    // JSON is read back to the last bit but one of an f64.
    let got: Vec<u32> = records.iter().map(|record| (record.loss as f32).to_bits()).collect();
    assert_eq!(got, losses.iter().map(|loss| (*loss as f32).to_bits()).collect::<Vec<_>>(), "{settings:?}");
    let trained = LanguageModel::open(&dir.path().join("resume/step-00000012")).unwrap();
    for ((_, want), (_, got)) in model.params().iter().zip(trained.params().iter()) {
        let bits = |x: &elapid::Tensor| x.as_slice().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(want.name == got.name && bits(&want.value) == bits(&got.value), "{settings:?} {}", want.name);
    }
}

#[test]
fn windows_train_as_a_plain_loop() {
    agree(&["train.accumulate=2", "train.label_smoothing=0.1"]);
    agree(&["train.accumulate=2", "model.dropout=0.2", "model.drop_path=0.5"]);
    agree(&["data.pack=true", "train.checkpoint_blocks=true"]);
}

#[test]
fn streams_train_as_a_plain_loop() {
    agree(&["data.mode=\"streams\"", "data.pack=true", "train.accumulate=2"]);
}

#[test]
fn a_task_trains_as_a_plain_loop() {
    let more = ["train.steps=12", "train.eval_every=4", "train.label_smoothing=0.1", "task.next_tokens=true"];
    agree(&[&SMALL_TASK[..], &more].concat());
}
