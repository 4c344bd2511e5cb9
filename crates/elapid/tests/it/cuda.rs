//! The same model on a GPU. Skipped where there is none; `ELAPID_REQUIRE_GPU` makes that a failure.

use std::sync::Arc;

use elapid::Layout;
use elapid::config::{ModelConfig, Named, Placement};
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::{Generator, Sampling};
use elapid::layers::LayerConfig;
use elapid::layers::attention::{Rope, Settings};
use elapid::lm::Positions;
use elapid::settings::{Auto, Size};
use elapid::state::State;
use elapid::{DType, Device, LanguageModel};
use elapid_kernels::selective_scan::Discretisation;
use elapid_kernels::testing::{err_ratio, gpu, wide};

use crate::contract::{RULES, gradients_in_pieces, logits_in_pieces, numbers, same_gradients, summed};
use crate::{close, ids, small_model};

/// A model of even sizes, as published ones are: vector paths of kernels.
fn even_model() -> LanguageModel {
    let mut config = ModelConfig::mamba1("64x3").unwrap();
    config.stack.model.initializer_range = 0.2;
    LanguageModel::new(config, 5).unwrap()
}

fn models() -> Vec<LanguageModel> {
    RULES.map(small_model).into_iter().chain([even_model()]).collect()
}

fn vocabulary(model: &LanguageModel) -> u32 {
    model.config().vocab_size as u32
}

#[test]
fn logits_and_states_are_the_processors() {
    let Some(gpu) = gpu() else { return };
    for model in models() {
        let device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
        for l in [1, 2, 63, 300, 2048] {
            let tokens = ids(2 * l, vocabulary(&model));
            let (want, state) = logits_in_pieces(&model, &tokens, 2, &[l]);
            let (got, on_device) = logits_in_pieces(&device, &tokens, 2, &[l]);
            close(&format!("logits at {l}"), &want.concat(), &got.concat());
            close(&format!("state at {l}"), &numbers(&state), &numbers(&on_device));
        }
    }
}

#[test]
fn any_split_gives_the_same_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    for model in models() {
        let model = model.to_train(Device::Cuda(gpu), DType::F32).unwrap();
        let tokens = ids(2 * 67, vocabulary(&model));
        let (whole, last) = logits_in_pieces(&model, &tokens, 2, &[67]);
        let (loss, _, grads) = gradients_in_pieces(&model, &tokens, 2, &[66], false);
        let pieces: [&[usize]; 4] = [&[33, 34], &[1; 67], &[5, 1, 61], &[64, 3]];
        for pieces in pieces {
            let (parts, state) = logits_in_pieces(&model, &tokens, 2, pieces);
            close(&format!("logits {pieces:?}"), &whole.concat(), &parts.concat());
            close(&format!("state {pieces:?}"), &numbers(&last), &numbers(&state));
        }
        for (pieces, checkpointed) in [(&[30, 36][..], false), (&[1, 2, 63], false), (&[66], true), (&[30, 36], true)] {
            let (loss_parts, _, grads_parts) = gradients_in_pieces(&model, &tokens, 2, pieces, checkpointed);
            assert!((loss - loss_parts).abs() <= 1e-5 * loss.abs(), "{loss} {loss_parts}");
            same_gradients(&format!("{pieces:?} {checkpointed}"), &model, &grads, &grads_parts);
        }
    }
}

#[test]
fn gradients_are_the_processors_with_lengths_and_resets() {
    let Some(gpu) = gpu() else { return };
    for model in models() {
        let device = model.to_train(Device::Cuda(gpu), DType::F32).unwrap();
        let (b, l, v) = (3, 37, vocabulary(&model));
        let tokens = ids(b * l, v);
        let targets: Vec<i32> = (0..b * l).map(|i| if i % 5 == 0 { -1 } else { (i as u32 * 7 % v) as i32 }).collect();
        let resets: Arc<[u8]> = (0..b * l).map(|i| u8::from(i % 11 == 4)).collect();
        let layouts = [
            Layout::new(b, l),
            Layout { resets: Some(resets.clone()), ..Layout::new(b, l) },
            Layout { lengths: Some(Arc::new([37, 1, 20])), resets: Some(resets), ..Layout::new(b, l) },
        ];
        for (i, layout) in layouts.iter().enumerate() {
            let targets: Vec<i32> = targets
                .iter()
                .enumerate()
                .map(|(at, &target)| if at % l < layout.segments().len(at / l, l) { target } else { -1 })
                .collect();
            let (want, grads, state) = summed(&model, layout, &tokens, &targets);
            let (got, on_device, state_on_device) = summed(&device, layout, &tokens, &targets);
            assert!((want - got).abs() <= 1e-5 * want.abs(), "{want} {got}");
            same_gradients(&format!("layout {i}"), &model, &grads, &on_device);
            close("state", &numbers(&state), &numbers(&state_on_device));
        }
    }
}

/// Mamba-1 and attention in turn.
fn hybrid() -> LanguageModel {
    let mut config = ModelConfig::mamba1("64x2").unwrap();
    let settings =
        Settings { heads: Size::new(4), kv_heads: Auto::Is(Size::new(2)), rope: Rope::None, ..Settings::default() };
    let layer = LayerConfig::attention(settings);
    config.stack.model.layers = vec!["mamba1".into(), "seen".into()];
    config.stack.named = [("seen".to_owned(), Named { layer, placement: Placement::default() })].into();
    config.stack.model.initializer_range = 0.2;
    LanguageModel::new(config, 6).unwrap()
}

#[test]
fn attention_trains_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let model = hybrid();
    let device = model.to_train(Device::Cuda(gpu), DType::F32).unwrap();
    let (b, l, v) = (3, 70, vocabulary(&model));
    let (tokens, targets) = (ids(b * l, v), ids(b * l + 1, v)[1..].iter().map(|&id| id as i32).collect::<Vec<_>>());
    let resets: Arc<[u8]> = (0..b * l).map(|i| u8::from(i % 31 == 4)).collect();
    for layout in [Layout::new(b, l), Layout { resets: Some(resets), ..Layout::new(b, l) }] {
        let (want, grads, own) = summed(&model, &layout, &tokens, &targets);
        let (got, on_device, state) = summed(&device, &layout, &tokens, &targets);
        assert!((want - got).abs() <= 1e-5 * want.abs(), "{want} {got}");
        same_gradients("attention", &model, &grads, &on_device);
        let next = |model: &LanguageModel, state: State| {
            let cx = model.inference(Layout::new(b, 1));
            model.logits(&cx, &tokens[..b], state, Positions::All).map(|(logits, _)| logits.value().to_vec().unwrap())
        };
        let want = next(&model, own).unwrap();
        close("the next logits", &want, &next(&device, state.detach()).unwrap());
        // The CPU goes on from it.
        close("the next logits", &want, &next(&model, state.to(Device::Cpu).unwrap()).unwrap());
    }
}

#[test]
fn a_product_adds_to_a_gradient_that_is_there_in_part() {
    let Some(gpu) = gpu() else { return };
    crate::autograd::products_add_to_what_is_there(Device::Cuda(gpu));
}

#[test]
fn what_is_computed_again_is_not_kept_and_changes_no_bit() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        crate::autograd::computed_again_is_not_kept_and_changes_no_bit(Device::Cuda(gpu), dtype);
    }
}

#[test]
fn greedy_tokens_are_the_processors() {
    let Some(gpu) = gpu() else { return };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    for model in models() {
        let device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
        let draw = |model: &LanguageModel| -> Vec<u32> {
            let mut sequence = Generator::new(model, greedy, 0).unwrap();
            sequence.read(&ids(40, vocabulary(model))).unwrap();
            (0..64).map(|_| sequence.next_token().unwrap()).collect()
        };
        assert_eq!(draw(&model), draw(&device));
    }
    let model = elapid::embedded::model().unwrap();
    let device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
    let draw = |model: &LanguageModel| -> Vec<u32> {
        let mut sequence = Generator::new(model, greedy, 0).unwrap();
        sequence.read(b"ROMEO:\n".map(u32::from).as_slice()).unwrap();
        (0..200).map(|_| sequence.next_token().unwrap()).collect()
    };
    assert_eq!(draw(&model), draw(&device));
}

#[test]
fn a_decoder_draws_what_a_generator_draws() {
    let Some(gpu) = gpu() else { return };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let model = elapid::embedded::model().unwrap().to(Device::Cuda(gpu), DType::F32).unwrap();
    let prompts: [&[u8]; 3] = [b"It was a dark", b"Once", b"The old man of the sea said"];
    let want: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| {
            let mut sequence = Generator::new(&model, greedy, 0).unwrap();
            sequence.read(&prompt.iter().map(|&byte| u32::from(byte)).collect::<Vec<_>>()).unwrap();
            (0..50).map(|_| sequence.next_token().unwrap()).collect()
        })
        .collect();
    let mut decoder = Decoder::new(&model, 3).unwrap();
    let draws = Draws { sampling: greedy, ..Draws::default() };
    for prompt in prompts {
        let head: Vec<u32> = prompt[..prompt.len() - 1].iter().map(|&byte| u32::from(byte)).collect();
        let cx = model.inference(Layout::new(1, head.len()));
        let state = model.logits(&cx, &head, model.zero_state(1).unwrap(), Positions::Last).unwrap().1;
        decoder.admit(&state, Next::Token(u32::from(prompt[prompt.len() - 1])), &draws).unwrap();
    }
    let mut got = vec![Vec::new(); 3];
    for _ in 0..50 {
        decoder.step().unwrap();
        got.iter_mut().zip(decoder.tokens().unwrap()).for_each(|(row, (_, id))| row.push(id));
    }
    assert_eq!(want, got);
    assert!(decoder.launches() > 0);
}

/// A decoder of rows that have read nothing: row `i` begins with token `start[i]` and is sample `i` of the seed.
fn beginning(model: &LanguageModel, start: &[u32], sampling: Sampling, seed: u64) -> Decoder {
    let mut decoder = Decoder::new(model, start.len()).unwrap();
    let state = model.zero_state(1).unwrap();
    for (&token, sample) in start.iter().zip(0..) {
        let draws = Draws { sampling, seed, sample, ..Draws::default() };
        decoder.admit(&state, Next::Token(token), &draws).unwrap();
    }
    decoder
}

#[test]
fn sampled_decoding_is_a_function_of_the_seed() {
    let Some(gpu) = gpu() else { return };
    let model = elapid::embedded::model().unwrap();
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, repetition_penalty: 1.1, ..Sampling::default() };
    for dtype in [DType::F32, DType::Bf16] {
        let model = model.to(Device::Cuda(gpu), dtype).unwrap();
        let draw = |seed: u64| -> Vec<Vec<u32>> {
            let mut decoder = beginning(&model, &[u32::from(b'\n'); 3], sampling, seed);
            let step = |_| {
                decoder.step().unwrap();
                decoder.tokens().unwrap().into_iter().map(|(_, id)| id).collect()
            };
            (0..40).map(step).collect()
        };
        let first = draw(1);
        assert_eq!(first, draw(1));
        assert_ne!(first, draw(2));
        // Samples have their own numbers.
        assert!(first.iter().any(|tokens| tokens[0] != tokens[1]));
    }
}

#[test]
fn a_decoder_draws_from_its_logits() {
    use elapid_kernels::sampling::{Past, Scratch, philox, sample};
    let Some(gpu) = gpu() else { return };
    let model = elapid::embedded::model().unwrap();
    let sampling =
        Sampling { temperature: 0.9, top_k: 50, repetition_penalty: 1.3, presence_penalty: 0.2, ..Sampling::default() };
    for dtype in [DType::F32, DType::Bf16] {
        let model = model.to(Device::Cuda(gpu), dtype).unwrap();
        let mut read = [vec![u32::from(b'a')], vec![u32::from(b'b')]];
        let mut decoder = beginning(&model, &[read[0][0], read[1][0]], sampling, 7);
        let mut counts = vec![vec![0u16; model.config().padded_vocab_size()]; 2];
        let mut others = 0;
        for position in 1..=300u64 {
            decoder.step().unwrap();
            for (row, (id, token)) in decoder.tokens().unwrap().into_iter().enumerate() {
                let logits = decoder.logits(id).unwrap().unwrap();
                let past = Past { recent: &read[row][read[row].len().saturating_sub(256)..], counts: &counts[row] };
                let uniform = philox::uniform(7, row as u64, position);
                others +=
                    u32::from(token != sample(&sampling, &logits, past, uniform, &mut Scratch::default()).unwrap());
                counts[row][token as usize] += 1;
                read[row].push(token);
            }
        }
        // A number can lie at the border between two tokens.
        assert!(others <= 1, "{others} of 600 tokens in {dtype}");
    }
}

#[test]
fn a_generator_on_a_gpu_draws_from_its_logits() {
    use elapid_kernels::sampling::{Past, Scratch, philox, sample};
    let Some(gpu) = gpu() else { return };
    let model = elapid::embedded::model().unwrap().to(Device::Cuda(gpu), DType::F32).unwrap();
    let sampling = Sampling { temperature: 0.8, top_p: 0.9, repetition_penalty: 1.2, ..Sampling::default() };
    let prompt: Vec<u32> = b"ROMEO:\n".map(u32::from).to_vec();
    let mut sequence = Generator::new(&model, sampling, 3).unwrap();
    sequence.read(&prompt).unwrap();
    let drawn: Vec<u32> = (0..30).map(|_| sequence.next_token().unwrap()).collect();
    // Another that reads those tokens has the logits that they were drawn from.
    let mut reader = Generator::new(&model, sampling, 3).unwrap();
    let mut read = prompt;
    reader.read(&read).unwrap();
    for &id in &drawn {
        let uniform = philox::uniform(3, 0, read.len() as u64);
        let logits = reader.logits().unwrap();
        let want = sample(&sampling, logits, Past::recent(&read), uniform, &mut Scratch::default()).unwrap();
        assert_eq!(want, id, "after {} tokens", read.len());
        reader.read(&[id]).unwrap();
        read.push(id);
    }
    // Asking for logits or reading more in between changes no token.
    assert!(!sequence.logits().unwrap().is_empty());
    let (one, other) = (sequence.next_token().unwrap(), reader.next_token().unwrap());
    assert_eq!(one, other);
    for sequence in [&mut sequence, &mut reader] {
        sequence.read(&[u32::from(b'\n')]).unwrap();
    }
    assert_eq!(sequence.next_token().unwrap(), reader.next_token().unwrap());
    let (one, other) = (sequence.suspend().unwrap(), reader.suspend().unwrap());
    assert_eq!((one.pending, &one.recent), (other.pending, &other.recent));
    assert_eq!(one.state.position(), other.state.position());
    close("the state", &numbers(&one.state), &numbers(&other.state));
    // What goes on from the state goes on as it would.
    let draw = |suspended: elapid::generate::Suspended| {
        let mut sequence = Generator::resume(&model, suspended, sampling, 3);
        (0..10).map(|_| sequence.next_token().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(one), draw(other));
    let mut nothing = Generator::new(&model, sampling, 0).unwrap();
    assert!(nothing.next_token().is_err());
}

#[test]
fn a_sequence_suspended_on_a_gpu_goes_on_as_it_would() {
    let Some(gpu) = gpu() else { return };
    let model = elapid::embedded::model().unwrap().to(Device::Cuda(gpu), DType::F32).unwrap();
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut whole = Generator::new(&model, greedy, 0).unwrap();
    whole.read(b"JULIET:\n".map(u32::from).as_slice()).unwrap();
    let want: Vec<u32> = (0..40).map(|_| whole.next_token().unwrap()).collect();
    let mut first = Generator::new(&model, greedy, 0).unwrap();
    first.read(b"JULIET:\n".map(u32::from).as_slice()).unwrap();
    let mut got: Vec<u32> = (0..17).map(|_| first.next_token().unwrap()).collect();
    let suspended = first.suspend().unwrap();
    let state = suspended.state.to(Device::Cpu).unwrap().to(Device::Cuda(gpu)).unwrap();
    let mut second = Generator::from_state(&model, state, greedy, 0);
    second.read(&[suspended.pending.unwrap()]).unwrap();
    got.extend((0..23).map(|_| second.next_token().unwrap()));
    assert_eq!(want, got);
}

#[test]
fn bf16_stays_near_f32() {
    let Some(gpu) = gpu() else { return };
    let model = elapid::embedded::model().unwrap();
    let device = model.to(Device::Cuda(gpu), DType::Bf16).unwrap();
    let text: Vec<u32> = include_bytes!("../../src/lm.rs").iter().map(|&byte| u32::from(byte)).collect();
    for l in [1, 63, 2048] {
        let (want, _) = logits_in_pieces(&model, &text[..l], 1, &[l]);
        let (got, _) = logits_in_pieces(&device, &text[..l], 1, &[l]);
        let ratio = err_ratio(&wide(&want.concat()), &got.concat());
        assert!(ratio <= 2e-2, "{l}: {ratio:e}");
    }
}

#[test]
fn a_very_long_sequence_is_the_processors() {
    let Some(gpu) = gpu() else { return };
    let model = small_model(Discretisation::ExpEuler);
    let l = 131_072;
    let tokens = ids(l, vocabulary(&model));
    let last = |model: &LanguageModel| {
        let cx = model.inference(Layout::new(1, l));
        let (logits, state) = model.logits(&cx, &tokens, model.zero_state(1).unwrap(), Positions::Last).unwrap();
        (logits.value().to_vec().unwrap(), numbers(&state))
    };
    let (want, got) = (last(&model), last(&model.to(Device::Cuda(gpu), DType::F32).unwrap()));
    close("logits", &want.0, &got.0);
    close("state", &want.1, &got.1);
}

#[test]
fn the_same_twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let model = even_model().to_train(Device::Cuda(gpu), DType::Bf16).unwrap();
    let (b, l) = (4, 200);
    let tokens = ids(b * l, 256);
    let targets: Vec<i32> = tokens.iter().map(|&id| (id as i32 + 1) % 256).collect();
    let once = || {
        let (loss, grads, state) = summed(&model, &Layout::new(b, l), &tokens, &targets);
        let grads: Vec<f32> = grads.iter().flat_map(|(_, g)| g.to_vec().unwrap()).collect();
        (loss.to_bits(), grads.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), numbers(&state))
    };
    assert_eq!(once(), once());
}
