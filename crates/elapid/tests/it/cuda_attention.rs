//! Attention on a GPU: chunks after chunks, and decoding from pages, against the CPU. Skipped where there is none;
//! `ELAPID_REQUIRE_GPU` makes that a failure.

use std::collections::BTreeSet;

use elapid::config::{ModelConfig, Named, Placement};
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::Sampling;
use elapid::layers::{LayerConfig, attention::Settings};
use elapid::lm::Positions;
use elapid::settings::{Auto, Count, Size};
use elapid::state::Slot;
use elapid::{DType, Device, LanguageModel, Layout, State};
use elapid_kernels::testing::{err_ratio, gpu, wide};

use crate::contract::{gradients_in_pieces, numbers, same_gradients};
use crate::{close, ids};

const V: u32 = 37;

/// A layer of attention between two others of Mamba-1.
fn model(d_model: usize, layer: LayerConfig) -> LanguageModel {
    let mut config = ModelConfig { vocab_size: V as usize, ..ModelConfig::mamba1(&format!("{d_model}x3")).unwrap() };
    config.stack.model.layers = vec!["mamba1".into(), "it".into(), "mamba1".into()];
    config.stack.named = [("it".to_owned(), Named { layer, placement: Placement::default() })].into();
    config.stack.model.initializer_range = 0.3;
    LanguageModel::new(config, 7).unwrap()
}

/// The small settings that have a state: all that are causal.
fn small() -> Vec<LanguageModel> {
    let kept = |layer: &LayerConfig| layer.kind() == "attention" && !format!("{layer:?}").contains("causal: false");
    LayerConfig::small().into_iter().filter(kept).map(|layer| model(16, layer)).collect()
}

/// Heads as wide as tensor cores read them.
fn wide_heads(window: usize) -> LanguageModel {
    let settings = Settings {
        heads: Size::new(4),
        kv_heads: Auto::Is(Size::new(2)),
        head_dim: Auto::Is(Size::new(64)),
        window: Count::new(window),
        sinks: Count::new(if window > 0 { 4 } else { 0 }),
        ..Settings::default()
    };
    model(64, LayerConfig::attention(settings))
}

fn read(model: &LanguageModel, tokens: &[u32], b: usize, state: State) -> (Vec<f32>, State) {
    let cx = model.inference(Layout::new(b, tokens.len() / b));
    let (logits, state) = model.logits(&cx, tokens, state, Positions::All).unwrap();
    (logits.value().to_vec().unwrap(), state)
}

#[test]
fn chunks_are_the_whole_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let models = small();
    assert!(models.len() > 8, "{} settings", models.len());
    for model in models.into_iter().chain([wide_heads(0), wide_heads(70)]) {
        let device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
        let tokens = ids(300, V);
        let (want, own) = read(&model, &tokens, 1, model.zero_state(1).unwrap());
        for parts in [&[300][..], &[1, 63, 64, 100, 1, 71], &[128, 128, 44]] {
            let (mut state, mut got, mut at) = (device.zero_state(1).unwrap(), Vec::new(), 0);
            for &l in parts {
                let (logits, next) = read(&device, &tokens[at..at + l], 1, state);
                got.extend(logits);
                (state, at) = (next, at + l);
            }
            close("logits", &want, &got);
            close("state", &numbers(&own), &numbers(&state.to(Device::Cpu).unwrap()));
        }
    }
}

#[test]
fn rows_and_documents_after_earlier_positions() {
    let Some(gpu) = gpu() else { return };
    for model in small().into_iter().chain([wide_heads(0)]) {
        let device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
        let (b, first, second) = (3, 70, 40);
        let tokens = ids(b * (first + second), V);
        let run = |model: &LanguageModel| {
            let lengths = Some([70, 1, 33].into());
            let cx = model.inference(Layout { lengths, ..Layout::new(b, first) });
            let zero = model.zero_state(b).unwrap();
            let (_, state) = model.logits(&cx, &tokens[..b * first], zero, Positions::All).unwrap();
            let resets = (0..b * second).map(|i| u8::from(i == 5 || i == second + 20)).collect();
            let lengths = Some([40, 30, 9].into());
            let cx = model.inference(Layout { lengths, resets: Some(resets), ..Layout::new(b, second) });
            let (logits, state) = model.logits(&cx, &tokens[b * first..], state, Positions::All).unwrap();
            (logits.value().to_vec().unwrap(), state.to(Device::Cpu).unwrap())
        };
        let ((want, own), (got, state)) = (run(&model), run(&device));
        let real = |values: &[f32]| -> Vec<f32> {
            [(0, 40), (1, 30), (2, 9)]
                .into_iter()
                .flat_map(|(row, len)| values[row * second * V as usize..][..len * V as usize].to_vec())
                .collect()
        };
        close("logits", &real(&want), &real(&got));
        assert_eq!(own.positions(), state.positions());
        close("state", &numbers(&own), &numbers(&state));
    }
}

#[test]
fn gradients_reach_earlier_chunks_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    for model in small().into_iter().chain([wide_heads(0), wide_heads(70)]) {
        let device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
        let tokens = ids(2 * 201, V);
        let (loss, _, want) = gradients_in_pieces(&model, &tokens, 2, &[200], false);
        for (pieces, recompute) in [(&[100, 1, 64, 35][..], false), (&[70, 130], true)] {
            let (got, _, grads) = gradients_in_pieces(&device, &tokens, 2, pieces, recompute);
            assert!((loss - got).abs() < 1e-5 * loss, "{loss} {got}");
            same_gradients("in pieces", &model, &want, &grads);
        }
    }
}

/// A decoder's logits after a prompt, then of one token after another, beside those of the CPU.
fn decoded(model: &LanguageModel, dtype: DType, bound: f64) {
    let Some(gpu) = gpu() else { return };
    let device = model.to(Device::Cuda(gpu), dtype).unwrap();
    let prompts = [ids(130, V), vec![3], ids(64, V), ids(63, V)];
    let draws = Draws { sampling: Sampling { temperature: 0.0, ..Sampling::default() }, ..Draws::default() };
    let mut decoder = Decoder::new(&device, 5).unwrap();
    let mut rows = Vec::new();
    for prompt in &prompts {
        let (&last, head) = prompt.split_last().unwrap();
        let zero = device.zero_state(1).unwrap();
        let state = if head.is_empty() { zero } else { read(&device, head, 1, zero).1 };
        rows.push((decoder.admit(&state, Next::Token(last), &draws).unwrap(), prompt.clone()));
    }
    for step in 0..80 {
        decoder.step().unwrap();
        for (row, read_so_far) in &mut rows {
            if [0, 1, 2, 3, 40, 79].contains(&step) {
                let (all, _) = read(model, read_so_far, 1, model.zero_state(1).unwrap());
                let want = &all[all.len() - V as usize..];
                let error = err_ratio(&wide(want), &decoder.logits(*row).unwrap().unwrap());
                assert!(error < bound, "{} tokens, step {step}: {error:e}", read_so_far.len());
            }
            read_so_far.push(decoder.token(*row).unwrap());
        }
        if step == 20 {
            let (row, _) = rows.remove(1);
            decoder.release(row).unwrap();
        }
    }
    assert!(decoder.launches() > 0, "a step is captured");
}

#[test]
fn decoding_from_pages_is_the_whole_forward() {
    for model in small() {
        decoded(&model, DType::F32, 2e-5);
    }
    for window in [0, 70] {
        decoded(&wide_heads(window), DType::F32, 2e-5);
        decoded(&wide_heads(window), DType::Bf16, 2e-2);
    }
}

/// More pages than tables begin with, and pages of a window that are used again and again.
#[test]
fn long_rows_get_larger_tables() {
    let Some(gpu) = gpu() else { return };
    for (window, least) in [(0, 4300), (100, 1000)] {
        let model = wide_heads(window);
        let device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
        let draws = Draws { sampling: Sampling { temperature: 0.0, ..Sampling::default() }, ..Draws::default() };
        let mut decoder = Decoder::new(&device, 2).unwrap();
        let row = decoder.admit(&device.zero_state(1).unwrap(), Next::Token(5), &draws).unwrap();
        let mut tokens = vec![5];
        let mut bytes = Vec::new();
        for step in 0..least {
            decoder.step().unwrap();
            tokens.push(decoder.token(row).unwrap());
            if step % 250 == 249 {
                bytes.push(decoder.state(row).unwrap().bytes());
            }
        }
        let (all, _) = read(&model, &tokens[..least], 1, model.zero_state(1).unwrap());
        close("the last logits", &all[all.len() - V as usize..], &decoder.logits(row).unwrap().unwrap());
        let page = 64 * 2 * 2 * 64 * 4;
        assert_eq!(window > 0, bytes[3] <= bytes[1] + page, "{bytes:?}");
    }
}

fn addresses(state: &State) -> Vec<usize> {
    let of = |slot: &Slot| if let Slot::Cache(cache) = slot { cache.page_addresses() } else { Vec::new() };
    state.layer(1).slots().iter().flat_map(of).collect()
}

/// 64 forks of a prompt of 4,096 tokens share its pages; each writes to its own last one.
#[test]
fn forks_on_a_gpu_share_pages() {
    let Some(gpu) = gpu() else { return };
    let device = wide_heads(0).to(Device::Cuda(gpu), DType::Bf16).unwrap();
    let (_, prompt) = read(&device, &ids(4096, V), 1, device.zero_state(1).unwrap());
    let prompt = prompt.to(Device::Cuda(gpu)).unwrap();
    assert_eq!(addresses(&prompt).len(), 2 * 64);
    let mut decoder = Decoder::new(&device, 64).unwrap();
    for sample in 0..64 {
        let draws = Draws { sample, ..Draws::default() };
        decoder.admit(&prompt, Next::Token(1), &draws).unwrap();
    }
    let rows: Vec<_> = decoder.rows().collect();
    let admitted: BTreeSet<usize> = rows.iter().flat_map(|row| addresses(&decoder.state(*row).unwrap())).collect();
    assert_eq!(admitted, addresses(&prompt).into_iter().collect(), "no page is copied to be read");
    (0..3).for_each(|_| decoder.step().unwrap());
    let states: Vec<State> = rows.into_iter().map(|row| decoder.release(row).unwrap()).collect();
    let distinct: BTreeSet<usize> = states.iter().flat_map(addresses).collect();
    assert_eq!(distinct.len(), 2 * 64 + 2 * 64, "the prompt's pages, and one more for each fork");
    assert!(states.iter().all(|state| state.position() == 4099));
}

#[test]
fn a_state_of_a_gpu_is_saved() {
    let Some(gpu) = gpu() else { return };
    let model = wide_heads(90);
    let device = model.to(Device::Cuda(gpu), DType::Bf16).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.state");
    let (_, state) = read(&device, &ids(500, V), 1, device.zero_state(1).unwrap());
    state.save(&path, device.fingerprint().unwrap(), &[]).unwrap();
    let (loaded, _) = device.load_state(&path).unwrap();
    assert_eq!(numbers(&loaded.to(Device::Cpu).unwrap()), numbers(&state.to(Device::Cpu).unwrap()));
    assert_eq!(read(&device, &[7], 1, loaded).0, read(&device, &[7], 1, state).0);
}
