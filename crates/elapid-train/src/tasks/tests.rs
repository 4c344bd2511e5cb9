use std::collections::HashSet;

use elapid::Layout;
use elapid::config::ModelConfig;
use elapid::ops::Targets;
use proptest::prelude::*;

use super::*;
use crate::config::TrainConfig;
use crate::data::IGNORE;

/// A task of at most 16 ids that fits into short sequences.
fn task(name: &str) -> Arc<dyn Task> {
    let small = TaskConfig { pairs: 2, curriculum: 20, first_longest: 4, ..TaskConfig::default() };
    open(&TaskConfig { name: name.into(), ..small }).unwrap().unwrap()
}

fn sequences(name: &str, length: usize, seed: u64) -> Sequences {
    Sequences::new(task(name), length, seed, Split::Train).unwrap()
}

/// Tokens and targets of one sequence.
fn one(sequences: &Sequences, number: u64) -> (Vec<u32>, Vec<i32>) {
    sequences.sequence(number).unzip()
}

#[test]
fn every_task_has_the_papers_settings() {
    for kind in KINDS {
        let config = TrainConfig::parse(kind.settings, kind.name).unwrap();
        config.validate(kind.name).unwrap();
        assert_eq!(config.task.name, kind.name);
        let (layers, width, ids) = match kind.name {
            "mqar" => (2, 128, 8192),
            "state-tracking" => (1, 64, 3),
            _ => (2, 64, 16),
        };
        let model = &config.model.stack.model;
        assert_eq!((model.n_layer.get(), model.d_model.get()), (layers, width), "{}", kind.name);
        assert_eq!(open(&config.task).unwrap().unwrap().vocab_size(), ids, "{}", kind.name);
        assert!(config.differences(&config).unwrap().is_empty());
        let figures = kind.paper.models.iter().flat_map(|(_, figures)| *figures);
        assert!(figures.clone().all(|figure| (4..=1 << 20).contains(&figure.0) && figure.1 <= 100.0), "{figures:?}");
    }
    assert!(open(&TaskConfig::default()).unwrap().is_none());
}

#[test]
fn selective_copying_asks_for_the_tokens_in_order() {
    let all = sequences("selective-copying", 50, 3);
    assert_eq!(all.positions(), 50 + 2 * 16);
    let mut seen: HashSet<u32> = HashSet::new();
    let mut places: HashSet<usize> = HashSet::new();
    for number in 0..200 {
        let (tokens, targets) = one(&all, number);
        assert_eq!(tokens.len(), 82);
        let (before, markers) = tokens.split_at(66);
        let at: Vec<usize> = (0..66).filter(|&t| before[t] != 0).collect();
        assert_eq!(at.len(), 16, "16 distinct positions");
        let data: Vec<i32> = at.iter().map(|&t| before[t] as i32).collect();
        assert_eq!(&targets[66..], data);
        assert!(targets[..66].iter().all(|&target| target == IGNORE));
        assert!(markers.iter().all(|&token| token == 15));
        assert!(before.iter().all(|&token| token < 15));
        assert!(before.iter().enumerate().all(|(t, &token)| all.task().is_data(token) == at.contains(&t)));
        seen.extend(&data.iter().map(|&x| x as u32).collect::<Vec<_>>());
        places.extend(at);
    }
    assert_eq!((seen.len(), places.len()), (14, 66), "every token and every place comes up");
}

#[test]
fn places_are_uniform() {
    let all = sequences("selective-copying", 4, 1);
    // 16 of 20 places.
    let mut counts = [0.0f64; 20];
    for number in 0..4000 {
        one(&all, number).0[..20].iter().zip(&mut counts).for_each(|(&token, count)| *count += f64::from(token != 0));
    }
    // The standard deviation of a share is sqrt(.8 * .2 / 4000) = .0063.
    assert!(counts.iter().all(|count| (count / 4000.0 - 0.8).abs() < 0.03), "{counts:?}");
}

#[test]
fn copying_begins_with_the_tokens() {
    let (tokens, targets) = one(&sequences("copying", 30, 5), 9);
    assert_eq!(tokens.len(), 62);
    assert!(tokens[..16].iter().all(|token| (1..15).contains(token)) && tokens[16..46].iter().all(|&token| token == 0));
    assert_eq!(&targets[46..], tokens[..16].iter().map(|&token| token as i32).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn induction_heads_answer_what_came_after_the_special_token(length in 4_usize..300, seed: u64, number: u64) {
        let (tokens, targets) = one(&sequences("induction-heads", length, seed), number);
        prop_assert_eq!(tokens.len(), length);
        let special: Vec<usize> = (0..length).filter(|&t| tokens[t] == 15).collect();
        prop_assert_eq!(special.len(), 2);
        prop_assert_eq!(special[1], length - 1);
        prop_assert_eq!(targets[length - 1], tokens[special[0] + 1] as i32);
        prop_assert!(special[0] + 1 < length - 1);
        prop_assert!(targets[..length - 1].iter().all(|&target| target == IGNORE));
    }

    #[test]
    fn a_batch_is_its_sequences(b in 1_usize..5, index in 0_u64..1000, half in 4_usize..20, repeat in 0_u64..9) {
        for kind in KINDS {
            let all = sequences(kind.name, 2 * half, 7);
            let batch = all.clone().repeated(repeat).batch(index, b);
            for row in 0..b {
                let number = index * b as u64 + row as u64;
                let (tokens, targets) = one(&all, if repeat == 0 { number } else { number % repeat });
                prop_assert_eq!(&batch.tokens[row * batch.l..][..batch.l], tokens);
                prop_assert_eq!(&batch.targets[row * batch.l..][..batch.l], targets);
            }
        }
    }
}

#[test]
fn a_batch_may_ask_for_every_next_token() {
    for kind in KINDS {
        let answers = sequences(kind.name, 20, 7).batch(3, 2);
        let every = sequences(kind.name, 20, 7).with_next_tokens(true).batch(3, 2);
        assert_eq!(every.tokens, answers.tokens);
        for (at, (&target, &answer)) in every.targets.iter().zip(&answers.targets).enumerate() {
            let last = (at + 1).is_multiple_of(every.l);
            let next = if last { IGNORE } else { every.tokens[at + 1] as i32 };
            assert_eq!(target, if answer == IGNORE { next } else { answer }, "{} {at}", kind.name);
        }
    }
}

#[test]
fn induction_heads_have_every_answer_and_place() {
    let all = sequences("induction-heads", 20, 2);
    let (mut answers, mut places) = ([0; 15], [0; 17]);
    for number in 0..3000 {
        let (tokens, targets) = one(&all, number);
        answers[targets[19] as usize] += 1;
        places[tokens.iter().position(|&token| token == 15).unwrap()] += 1;
    }
    // 200 and 176 are expected; five standard deviations are 68 and 64.
    assert!(answers.iter().all(|count| (130..270).contains(count)), "{answers:?}");
    assert!(places.iter().all(|count| (110..242).contains(count)), "{places:?}");
}

#[test]
fn sequences_follow_from_seed_split_and_number() {
    let all = sequences("selective-copying", 40, 1);
    assert_eq!(one(&all, 5), one(&all.clone(), 5));
    assert_ne!(one(&all, 5), one(&all, 6));
    assert_ne!(one(&all, 5), one(&sequences("selective-copying", 40, 2), 5));
    for split in [Split::HeldOut, Split::Test] {
        let other = Sequences::new(task("selective-copying"), 40, 1, split).unwrap();
        assert_ne!(one(&all, 5), one(&other, 5));
        // Only training sequences repeat.
        assert_eq!(one(&other.clone().repeated(3), 5), one(&other, 5));
    }
    assert_eq!(one(&all.clone().repeated(3), 5), one(&all, 2));
}

#[test]
fn held_out_sequences_have_no_curriculum() {
    for split in [Split::HeldOut, Split::Test] {
        let all = Sequences::new(task("state-tracking"), 30, 1, split).unwrap();
        for number in 0..50 {
            let (tokens, targets) = one(&all, number);
            assert!(tokens.iter().all(|&token| token < 2));
            assert_eq!(targets[29], (tokens.iter().sum::<u32>() % 2) as i32);
        }
    }
    let trains = sequences("state-tracking", 30, 1);
    let tokens = |number| one(&trains, number).0.iter().filter(|&&token| token < 2).count();
    assert!((0..4).map(tokens).all(|tokens| tokens <= 9), "{:?}", (0..4).map(tokens).collect::<Vec<_>>());
    assert!((20..200).map(tokens).any(|tokens| tokens > 25));
}

#[test]
fn sizes_that_cannot_be_are_named() {
    let wrong = |config: TaskConfig| open(&config).unwrap_err().to_string();
    let base = TaskConfig { name: "selective-copying".into(), ..TaskConfig::default() };
    let error = wrong(TaskConfig { name: "copy".into(), ..base.clone() });
    assert!(error.contains("`copy`") && error.contains("selective-copying"), "{error}");
    assert!(wrong(TaskConfig { tokens: 0, ..base.clone() }).contains("task.tokens"));
    assert!(wrong(TaskConfig { vocab: 2, ..base }).contains("task.vocab"));
    assert_eq!(task("induction-heads").positions(3).unwrap_err().setting, "data.length");
    assert!(task("copying").positions(usize::MAX).is_err());
}

#[test]
fn a_score_does_not_depend_on_how_sequences_are_read() {
    let config = ModelConfig { vocab_size: 16, ..ModelConfig::mamba1("16x2").unwrap() };
    let model = elapid::LanguageModel::new(config, 3).unwrap();
    for kind in KINDS {
        let all = sequences(kind.name, 40, 1);
        let read = |chunk, positions| Reader { chunk, positions }.score(&model, &all, 3..17, |_| ()).unwrap();
        let whole = read(4096, 4096);
        let asked = match kind.name {
            "induction-heads" | "state-tracking" => 1,
            "mqar" => 2,
            _ => 16,
        };
        assert_eq!((whole.sequences, whole.answers), (14, 14 * asked));
        assert!(whole.right < whole.answers, "{whole:?}");
        assert!((whole.loss() - 16f64.ln()).abs() < 1.0, "{whole:?}");
        for (chunk, positions) in [(7, 7), (1, 3), (40, 80), (13, 100)] {
            let parts = read(chunk, positions);
            assert!((parts.nats - whole.nats).abs() < 1e-9 * whole.nats, "only the order of a sum differs");
            assert!((parts.lead - whole.lead).abs() < 1e-9 * whole.nats, "{} {}", parts.lead, whole.lead);
            assert_eq!(
                Score { nats: whole.nats, lead: whole.lead, ..parts },
                whole,
                "{} {chunk} {positions}",
                kind.name
            );
        }
    }
}

#[test]
fn scores_and_training_have_the_same_loss() {
    let config = ModelConfig { vocab_size: 16, ..ModelConfig::mamba1("16x2").unwrap() };
    let model = elapid::LanguageModel::new(config, 3).unwrap();
    let all = sequences("selective-copying", 40, 1);
    let (tokens, targets) = one(&all, 3);
    let score = Reader::on(elapid::Device::Cpu).score(&model, &all, 3..4, |_| ()).unwrap();
    for smoothing in [0.0, 0.1] {
        let (cx, state) = (model.inference(Layout::new(1, tokens.len())), model.zero_state(1).unwrap());
        let asked = Targets::from(&targets).smoothed(smoothing);
        let loss = model.loss(&cx, &tokens, asked, &state, false).unwrap().0.value().unwrap();
        assert!(
            (score.smoothed_loss(smoothing.into()) - f64::from(loss)).abs() < 1e-5,
            "{smoothing}: {score:?} {loss}"
        );
    }
}

#[test]
fn a_model_of_too_few_ids_is_refused() {
    let config = ModelConfig { vocab_size: 8, ..ModelConfig::mamba1("16x1").unwrap() };
    let model = elapid::LanguageModel::new(config, 3).unwrap();
    let error = Reader::on(elapid::Device::Cpu).score(&model, &sequences("copying", 4, 1), 0..1, |_| ()).unwrap_err();
    assert!(error.to_string().contains("16 ids or more"), "{error}");
}
