//! The contract of every mixer: any split of a sequence gives the same outputs, final state and gradients.

use std::sync::Arc;

use elapid::Layout;
use elapid::autograd::Tape;
use elapid::generate::{Generator, Sampling};
use elapid::lm::Positions;
use elapid::params::ParamGrads;
use elapid::{LanguageModel, State};
use elapid_kernels::selective_scan::Discretisation;

use crate::{close, ids, small_model};

pub(crate) const RULES: [Discretisation; 3] = [Discretisation::ExpEuler, Discretisation::Zoh, Discretisation::Bilinear];

/// The columns `from..from + l` of ids `[b total]`.
pub(crate) fn cut<T: Copy>(x: &[T], total: usize, from: usize, l: usize) -> Vec<T> {
    x.chunks(total).flat_map(|row| &row[from..from + l]).copied().collect()
}

/// Logits `[total]` positions of each row, computed in pieces, without a tape.
pub(crate) fn logits_in_pieces(
    model: &LanguageModel,
    tokens: &[u32],
    b: usize,
    pieces: &[usize],
) -> (Vec<Vec<f32>>, State) {
    let total = tokens.len() / b;
    let mut state = model.zero_state(b).unwrap();
    let mut rows = vec![Vec::new(); b];
    let mut from = 0;
    for &l in pieces {
        let cx = model.inference(Layout::new(b, l));
        let (logits, next) = model.logits(&cx, &cut(tokens, total, from, l), &state, Positions::All).unwrap();
        let v = logits.value().cols();
        for (row, part) in rows.iter_mut().zip(logits.value().to_vec().unwrap().chunks((l * v).max(1))) {
            row.extend_from_slice(part);
        }
        state = next;
        from += l;
    }
    assert_eq!(from, total);
    (rows, state)
}

pub(crate) fn numbers(state: &State) -> Vec<f32> {
    state.tensors().flat_map(|(_, x)| x.to_vec().unwrap()).collect()
}

#[test]
fn inference_is_the_same_bits_for_any_split() {
    for rule in RULES {
        let model = small_model(rule);
        let tokens = ids(2 * 67, 37);
        let (whole, last) = logits_in_pieces(&model, &tokens, 2, &[67]);
        let pieces: [&[usize]; 4] = [&[33, 34], &[1; 67], &[0, 5, 1, 61], &[64, 3]];
        for pieces in pieces {
            let (parts, state) = logits_in_pieces(&model, &tokens, 2, pieces);
            assert!(whole == parts, "{rule:?} {pieces:?}");
            assert_eq!(numbers(&last), numbers(&state), "{rule:?} {pieces:?}");
        }
    }
}

#[test]
fn a_row_alone_is_the_same_bits_as_in_a_batch() {
    let model = small_model(Discretisation::ExpEuler);
    let tokens = ids(3 * 41, 37);
    let (batch, state) = logits_in_pieces(&model, &tokens, 3, &[41]);
    for row in 0..3 {
        let (alone, last) = logits_in_pieces(&model, &tokens[row * 41..][..41], 1, &[41]);
        assert!(batch[row] == alone[0], "row {row}");
        assert_eq!(numbers(&state.select(&[row]).unwrap()), numbers(&last), "row {row}");
    }
}

/// Loss summed over pieces with the state carried and nothing cut off; its gradients.
pub(crate) fn gradients_in_pieces(
    model: &LanguageModel,
    tokens: &[u32],
    b: usize,
    pieces: &[usize],
    checkpoint_blocks: bool,
) -> (f64, State, ParamGrads) {
    let total = tokens.len() / b - 1;
    let tape = Arc::new(Tape::new());
    let mut state = model.zero_state(b).unwrap();
    let mut losses = Vec::new();
    let mut from = 0;
    for &l in pieces {
        let cx = model.training(&tape, Layout::new(b, l));
        let inputs = cut(tokens, total + 1, from, l);
        let targets: Vec<i32> = cut(tokens, total + 1, from + 1, l).into_iter().map(|id| id as i32).collect();
        let (loss, next) = model.loss(&cx, &inputs, &targets, &state, checkpoint_blocks).unwrap();
        losses.push((loss, l as f32 / total as f32));
        state = next;
        from += l;
    }
    assert_eq!(from, total);
    let seeds: Vec<_> =
        losses.iter().map(|(loss, share)| (&loss.mean, elapid::Tensor::new(vec![*share], &[1]))).collect();
    let mut grads = ParamGrads::of(model.params()).unwrap();
    tape.backward_from(&seeds, &mut grads).unwrap();
    let mean = losses.iter().map(|(loss, share)| f64::from(loss.value().unwrap() * share)).sum();
    (mean, state.detach(), grads)
}

fn numbers_of(grads: &ParamGrads, id: elapid::params::ParamId) -> Vec<f32> {
    grads.get(id).unwrap().to_vec().unwrap()
}

pub(crate) fn same_gradients(name: &str, model: &LanguageModel, want: &ParamGrads, got: &ParamGrads) {
    for (id, param) in model.params().iter().filter(|(_, param)| param.traits.trainable) {
        close(&format!("{name}: gradient of {}", param.name), &numbers_of(want, id), &numbers_of(got, id));
    }
}

#[test]
fn training_is_the_same_for_any_split() {
    for rule in RULES {
        let model = small_model(rule);
        let tokens = ids(2 * 48, 37);
        let (loss, state, grads) = gradients_in_pieces(&model, &tokens, 2, &[47], false);
        let pieces: [&[usize]; 3] = [&[20, 27], &[1; 47], &[1, 44, 2]];
        for pieces in pieces {
            let name = format!("{rule:?} {pieces:?}");
            let (loss_parts, state_parts, grads_parts) = gradients_in_pieces(&model, &tokens, 2, pieces, false);
            assert!((loss - loss_parts).abs() < 1e-5 * loss, "{name}: {loss} {loss_parts}");
            close(&name, &numbers(&state), &numbers(&state_parts));
            same_gradients(&name, &model, &grads, &grads_parts);
        }
    }
}

#[test]
fn checkpointed_blocks_give_the_same_gradients() {
    let model = small_model(Discretisation::ExpEuler);
    let tokens = ids(2 * 40, 37);
    let (loss, _, grads) = gradients_in_pieces(&model, &tokens, 2, &[39], false);
    for pieces in [&[39][..], &[16, 23]] {
        let (again, _, recomputed) = gradients_in_pieces(&model, &tokens, 2, pieces, true);
        assert!((loss - again).abs() < 1e-5 * loss);
        same_gradients("checkpointed", &model, &grads, &recomputed);
    }
}

/// Loss of a batch under a layout, with a weight of 1 for every target that counts.
pub(crate) fn summed(
    model: &LanguageModel,
    layout: &Layout,
    tokens: &[u32],
    targets: &[i32],
) -> (f64, ParamGrads, State) {
    let tape = Arc::new(Tape::new());
    let cx = model.training(&tape, layout.clone());
    let (loss, state) = model.loss(&cx, tokens, targets, model.zero_state(layout.b).unwrap(), false).unwrap();
    let mut grads = ParamGrads::of(model.params()).unwrap();
    let count = targets.iter().filter(|&&target| target >= 0).count() as f32;
    tape.backward(&[(&loss.mean, count)], &mut grads, &mut |_| Ok(())).unwrap();
    (f64::from(loss.value().unwrap() * count), grads, state.detach())
}

fn next_ids(tokens: &[u32]) -> Vec<i32> {
    tokens[1..].iter().map(|&id| id as i32).chain([-1]).collect()
}

#[test]
fn padding_changes_nothing() {
    let model = small_model(Discretisation::ExpEuler);
    let (long, short) = (ids(30, 37), ids(11, 37));
    let (a, grads_a, state_a) = summed(&model, &Layout::new(1, 30), &long, &next_ids(&long));
    let (b, grads_b, state_b) = summed(&model, &Layout::new(1, 11), &short, &next_ids(&short));
    let tokens: Vec<u32> = long.iter().chain(&short).copied().chain([9; 19]).collect();
    let targets: Vec<i32> = next_ids(&long).into_iter().chain(next_ids(&short)).chain([-1; 19]).collect();
    let layout = Layout { lengths: Some([30, 11].into()), ..Layout::new(2, 30) };
    let (both, grads, state) = summed(&model, &layout, &tokens, &targets);
    assert!((a + b - both).abs() < 1e-5 * both, "{a} + {b} = {both}");
    close("state of the long row", &numbers(&state_a), &numbers(&state.select(&[0]).unwrap()));
    close("state of the short row", &numbers(&state_b), &numbers(&state.select(&[1]).unwrap()));
    for (id, param) in model.params().iter() {
        let sum: Vec<f32> =
            numbers_of(&grads_a, id).iter().zip(&numbers_of(&grads_b, id)).map(|(a, b)| a + b).collect();
        close(&param.name, &sum, &numbers_of(&grads, id));
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    let model = small_model(Discretisation::ExpEuler);
    let documents = [ids(13, 37), ids(1, 37), ids(22, 37)];
    let apart: Vec<_> = documents.iter().map(|d| summed(&model, &Layout::new(1, d.len()), d, &next_ids(d))).collect();
    let tokens: Vec<u32> = documents.iter().flatten().copied().collect();
    let targets: Vec<i32> = documents.iter().flat_map(|d| next_ids(d)).collect();
    let mut resets = vec![0u8; 36];
    [0, 13, 14].iter().for_each(|&t| resets[t] = 1);
    let layout = Layout { resets: Some(resets.into()), ..Layout::new(1, 36) };
    let (packed, grads, state) = summed(&model, &layout, &tokens, &targets);
    let sum: f64 = apart.iter().map(|(loss, ..)| loss).sum();
    assert!((sum - packed).abs() < 1e-5 * sum, "{sum} {packed}");
    close("state", &numbers(&apart[2].2), &numbers(&state));
    for (id, param) in model.params().iter() {
        let mut sum = vec![0.0; param.value.len()];
        for (_, grads, _) in &apart {
            sum.iter_mut().zip(numbers_of(grads, id)).for_each(|(sum, g)| *sum += g);
        }
        close(&param.name, &sum, &numbers_of(&grads, id));
    }
}

#[test]
fn generation_does_not_depend_on_how_the_prompt_is_read() {
    let model = small_model(Discretisation::ExpEuler);
    let prompt = ids(50, 37);
    let run = |chunk: usize, pause: usize| {
        let mut sequence = Generator::new(&model, Sampling::default(), 3).unwrap().with_chunk(chunk);
        sequence.read(&prompt[..pause]).unwrap();
        sequence.read(&prompt[pause..]).unwrap();
        (0..40).map(|_| sequence.next_token().unwrap()).collect::<Vec<_>>()
    };
    let whole = run(512, 0);
    assert_eq!(whole, run(1, 17));
    assert_eq!(whole, run(7, 50));
}

#[test]
fn mistakes_are_errors() {
    let model = small_model(Discretisation::ExpEuler);
    let cx = model.inference(Layout::new(1, 3));
    let state = model.zero_state(1).unwrap();
    let failed = |tokens: &[u32], state: &State| {
        model.logits(&cx, tokens, state, Positions::All).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(failed(&[1, 2], &state).contains("2 tokens"), "{}", failed(&[1, 2], &state));
    assert!(failed(&[1, 2, 99], &state).contains("99"), "{}", failed(&[1, 2, 99], &state));
    assert!(failed(&[1, 2, 3], &model.zero_state(2).unwrap()).contains("rows"));
    let empty = model.inference(Layout { lengths: Some([0].into()), ..Layout::new(1, 3) });
    assert!(model.logits(&empty, &[1, 2, 3], &state, Positions::Last).is_err());
    assert!(Generator::new(&model, Sampling::default(), 0).unwrap().next_token().is_err());
}
