//! Stacks of MLPs and norms on a GPU, against the CPU. Skipped where there is none; `ELAPID_REQUIRE_GPU` makes that a
//! failure.

use std::sync::Arc;

use elapid::autograd::{Tape, Var};
use elapid::config::{ModelConfig, ModelSettings, Named, Place, Placement, PositionKind, StackConfig, Wiring};
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::Sampling;
use elapid::layers::{LayerConfig, mlp, retnet, rg_lru};
use elapid::ops::{NormKind, Pairs, Rotary, Scaling, rotate, rotate_columns};
use elapid::params::ParamGrads;
use elapid::settings::{Auto, Count, Size};
use elapid::{DType, Device, LanguageModel, Layout, Tensor};
use elapid_kernels::cuda::Gpu;
use elapid_kernels::testing::{Random, err_ratio, gpu, wide};

use crate::contract::{same_gradients, summed};
use crate::{close, ids};

const V: usize = 40;
const PLACES: [Place; 4] = [Place::Before, Place::Sum, Place::Output, Place::Both];
const NORMS: [NormKind; 5] = [NormKind::Rms, NormKind::Rms1, NormKind::Layer, NormKind::LayerNoBias, NormKind::None];

/// Two layers of width `d`, each an MLP with a bias and a gated one.
fn model(d: usize, settings: ModelSettings, placement: &Placement) -> LanguageModel {
    let plain = mlp::Settings {
        activation: mlp::Activation::Gelu,
        gate: false,
        bias: true,
        width: Auto::Is(Size::new(d + 4)),
        ..mlp::Settings::default()
    };
    let gated = mlp::Settings { activation_scale: 0.7, ..mlp::Settings::default() };
    let named = |(name, settings): (&str, mlp::Settings)| {
        (name.to_owned(), Named { layer: LayerConfig::mlp(settings), placement: placement.clone() })
    };
    let model = ModelSettings {
        d_model: Size::new(d),
        n_layer: Size::new(2),
        layers: vec!["plain".into()],
        ffn: vec!["gated".into()],
        initializer_range: 0.4,
        ..settings
    };
    let stack = StackConfig { model, named: [("plain", plain), ("gated", gated)].map(named).into() };
    let config = ModelConfig { vocab_size: V, stack, ..ModelConfig::default() };
    // Weights and biases of norms are not those of the identity.
    let mut draw = |wanted: elapid::params::Wanted<'_>| {
        let mut drawn = wanted.init.values(wanted.name, wanted.shape, 3)?;
        if wanted.name.contains("norm") {
            let noise = elapid::params::Init::Normal(0.3).values(wanted.name, wanted.shape, 4)?;
            drawn.iter_mut().zip(noise).for_each(|(x, noise)| *x += noise);
        }
        Ok(drawn)
    };
    LanguageModel::build(config, &mut draw).unwrap()
}

/// Every norm in every place, with factors, positions, an embedding's norm, parallel wiring and a soft cap in some.
fn models() -> Vec<LanguageModel> {
    let mut models = Vec::new();
    for (i, place) in PLACES.into_iter().enumerate() {
        for (j, norm) in NORMS.into_iter().enumerate() {
            let odd = (i + j) % 2 == 1;
            let positions = [PositionKind::None, PositionKind::Learned, PositionKind::Sinusoidal][(i + j) % 3];
            let settings = ModelSettings {
                norm,
                positions,
                max_positions: Count::new(if positions == PositionKind::Learned { 64 } else { 0 }),
                wiring: if place == Place::Before && j > 1 { Wiring::Parallel } else { Wiring::Serial },
                embedding_scale: if odd { 1.5 } else { 1.0 },
                embedding_norm: if j == 3 { NormKind::Layer } else { NormKind::None },
                logit_scale: if odd { 0.8 } else { 1.0 },
                logit_softcap: if j == 1 { 4.0 } else { 0.0 },
                norm_f: Auto::Is(if norm == NormKind::None { NormKind::Rms } else { norm }),
                ..ModelSettings::default()
            };
            let (scale, keep) = if odd { (0.5, 1.25) } else { (1.0, 1.0) };
            let placement = Placement { place, scale, keep, ..Placement::default() };
            models.push(model(if j % 2 == 0 { 24 } else { 21 }, settings, &placement));
        }
    }
    models
}

fn describe(model: &LanguageModel) -> String {
    let stack = &model.config().stack;
    let Placement { place, scale, .. } = stack.placement("plain");
    format!("{:?} {place:?} {scale} {:?}", stack.model.norm, stack.model.positions)
}

/// Tokens and targets of a batch.
fn batch(b: usize, l: usize) -> (Vec<u32>, Vec<i32>) {
    let tokens = ids(b * l, V as u32);
    let targets = tokens.iter().map(|&id| if id % 5 == 0 { -1 } else { (id as i32 * 7 + 1) % V as i32 }).collect();
    (tokens, targets)
}

#[test]
fn norms_in_every_place_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (b, l) = (3, 19);
    let (tokens, targets) = batch(b, l);
    let resets: Arc<[u8]> = (0..b * l).map(|i| u8::from(i % 11 == 4)).collect();
    let layout = Layout { resets: Some(resets), ..Layout::new(b, l) };
    for model in models() {
        let name = describe(&model);
        let device = model.to_train(Device::Cuda(gpu), DType::F32).unwrap();
        let (want, grads, _) = summed(&model, &layout, &tokens, &targets);
        let (got, on_device, _) = summed(&device, &layout, &tokens, &targets);
        assert!((want - got).abs() <= 1e-5 * want.abs(), "{name}: {want} {got}");
        same_gradients(&name, &model, &grads, &on_device);
    }
}

#[test]
fn bf16_stays_near_f32() {
    let Some(gpu) = gpu() else { return };
    let (b, l) = (4, 32);
    let (tokens, targets) = batch(b, l);
    let all = |grads: &ParamGrads| -> Vec<f32> { grads.iter().flat_map(|(_, g)| g.to_vec().unwrap()).collect() };
    for model in models() {
        let name = describe(&model);
        let device = model.to_train(Device::Cuda(gpu), DType::Bf16).unwrap();
        let layout = Layout::new(b, l);
        let (want, grads, _) = summed(&model, &layout, &tokens, &targets);
        let (got, on_device, _) = summed(&device, &layout, &tokens, &targets);
        assert!((want - got).abs() <= 2e-2 * want.abs(), "{name}: {want} {got}");
        let (want, got) = (all(&grads), all(&on_device));
        let ratio = err_ratio(&wide(&want), &got);
        assert!(ratio <= 6e-2, "{name}: gradients {ratio:e}");
        let again = summed(&device, &layout, &tokens, &targets).1;
        assert!(got == all(&again), "{name}: the same twice is the same bits");
    }
}

#[test]
fn recomputation_changes_no_gradient() {
    let Some(gpu) = gpu() else { return };
    let (b, l) = (2, 16);
    let (tokens, targets) = batch(b, l);
    for model in models() {
        let device = model.to_train(Device::Cuda(gpu), DType::Bf16).unwrap();
        let grads = |recompute: bool| {
            let tape = Arc::new(Tape::new());
            let cx = device.training(&tape, Layout::new(b, l));
            let loss = device.loss(&cx, &tokens, &targets, device.zero_state(b).unwrap(), recompute).unwrap().0;
            let mut grads = ParamGrads::of(device.params()).unwrap();
            tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut |_| Ok(())).unwrap();
            grads.iter().flat_map(|(_, g)| g.to_vec().unwrap()).collect::<Vec<f32>>()
        };
        let (want, got) = (grads(false), grads(true));
        assert!(err_ratio(&wide(&want), &got) <= 2e-2, "{}", describe(&model));
    }
}

/// Positions of documents whose borders only the GPU knows.
#[test]
fn positions_of_documents_on_the_device_alone() {
    let Some(gpu) = gpu() else { return };
    let (b, l) = (2, 30);
    let (tokens, targets) = batch(b, l);
    let resets: Arc<[u8]> = (0..b * l).map(|i| u8::from(i % 7 == 5)).collect();
    let host = Layout { resets: Some(resets.clone()), ..Layout::new(b, l) };
    let device = Layout::new(b, l).with_device_resets(Arc::new(gpu.upload(&resets).unwrap()));
    for positions in [PositionKind::Learned, PositionKind::Sinusoidal] {
        let max_positions = Count::new(if positions == PositionKind::Learned { l as u64 as usize } else { 0 });
        let settings = ModelSettings { positions, max_positions, ..ModelSettings::default() };
        let model = model(24, settings, &Placement::default()).to_train(Device::Cuda(gpu), DType::F32).unwrap();
        let (want, grads, _) = summed(&model, &host, &tokens, &targets);
        let (got, on_device, _) = summed(&model, &device, &tokens, &targets);
        assert_eq!(want.to_bits(), got.to_bits(), "{positions:?}");
        same_gradients(&format!("{positions:?}"), &model, &grads, &on_device);
        // One more position than the table may have rows.
        if positions == PositionKind::Learned {
            let long = Layout::new(1, l + 1).with_device_resets(Arc::new(gpu.upload(&vec![0u8; l + 1]).unwrap()));
            let cx = model.inference(long);
            let refused = model.hidden(&cx, &ids(l + 1, V as u32), model.zero_state(1).unwrap(), false);
            assert!(refused.err().unwrap().to_string().contains("max_positions"));
        }
    }
}

/// Rotated values and their gradients, by both operations, on the CPU and a GPU.
#[test]
fn rotation_is_that_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (b, l, heads, dim) = (2, 9, 3, 16);
    let mut random = Random::new(1);
    let shape = [b, l, heads * dim];
    let [x, dy] = [(); 2].map(|()| Tensor::new(random.normal(b * l * heads * dim), &shape));
    let resets: Arc<[u8]> = (0..b * l).map(|i| u8::from(i % 5 == 3)).collect();
    let layout = Layout { resets: Some(resets), starts: Some([4, 1000].into_iter().collect()), ..Layout::new(b, l) };
    for pairs in [Pairs::Halves, Pairs::Interleaved] {
        let rotary = Rotary::new(dim, 12, 1e4, Scaling::None, pairs);
        let run = |device: Device, whole: bool| {
            let tape = Tape::new();
            let leaf = tape.leaf(x.to(device, DType::F32).unwrap());
            // The leaf's own memory must stay, so a copy is rotated in place.
            let copy = elapid::ops::scaled(&leaf, 2.0).unwrap();
            let y: Var = match whole {
                true => rotate(&copy, &rotary, &layout).unwrap(),
                false => rotate_columns(copy, 2 * dim, &rotary, &layout).unwrap(),
            };
            let value = y.value().to_vec().unwrap();
            let seed = dy.to(device, DType::F32).unwrap();
            let mut grads = tape.backward_from(&[(&y, seed)], &mut ParamGrads::default()).unwrap();
            (value, grads.take(&leaf).unwrap().unwrap().to_vec().unwrap())
        };
        for whole in [true, false] {
            let (want, got) = (run(Device::Cpu, whole), run(Device::Cuda(gpu), whole));
            close(&format!("{pairs:?} {whole}"), &want.0, &got.0);
            close(&format!("gradient {pairs:?} {whole}"), &want.1, &got.1);
        }
    }
}

/// A step reads the position that its row has, whatever the other rows have: not captured as a graph, as others are.
#[test]
fn decoding_counts_positions() {
    let Some(gpu) = gpu() else { return };
    for (positions, rows) in [(PositionKind::Learned, 64), (PositionKind::Sinusoidal, 0), (PositionKind::None, 0)] {
        let settings = ModelSettings { positions, max_positions: Count::new(rows), ..ModelSettings::default() };
        counts_positions(&model(24, settings, &Placement::default()), gpu);
    }
    // Layers that read positions and keep no cache.
    let retnet = retnet::Settings { heads: Size::new(2), ..retnet::Settings::default() };
    let rg_lru = rg_lru::Settings { heads: Size::new(2), ..rg_lru::Settings::default() };
    for layer in [LayerConfig::retnet(retnet), LayerConfig::rg_lru(rg_lru)] {
        let named = [("mixer".to_owned(), Named { layer, placement: Placement::default() })].into();
        let layers = vec!["mixer".to_owned()];
        let (d_model, n_layer) = (Size::new(24), Size::new(2));
        let model = ModelSettings { d_model, n_layer, layers, initializer_range: 0.4, ..ModelSettings::default() };
        let stack = StackConfig { model, named };
        let config = ModelConfig { vocab_size: V, stack, ..ModelConfig::default() };
        counts_positions(&LanguageModel::new(config, 3).unwrap(), gpu);
    }
}

/// Two rows, the second admitted four steps later: on a GPU, captured, they are those of the CPU.
fn counts_positions(model: &LanguageModel, gpu: Gpu) {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let run = |model: &LanguageModel| {
        let mut decoder = Decoder::new(model, 2).unwrap();
        let draws = Draws { sampling: greedy, ..Draws::default() };
        let start = model.zero_state(1).unwrap();
        let mut steps: Vec<Vec<u32>> = Vec::new();
        decoder.admit(&start, Next::Token(3), &draws).unwrap();
        for step in 0..12 {
            if step == 4 {
                decoder.admit(&start, Next::Token(3), &draws).unwrap();
            }
            decoder.step().unwrap();
            steps.push(decoder.tokens().unwrap().into_iter().map(|(_, id)| id).collect());
        }
        (steps, decoder.launches() > 0)
    };
    let (got, captured) = run(&model.to(Device::Cuda(gpu), DType::F32).unwrap());
    let what = format!("{:?}", model.config().stack.model);
    assert_eq!(run(model).0, got, "{what}");
    assert!(captured, "{what}");
    let (first, second): (Vec<u32>, Vec<u32>) =
        ((0..8).map(|i| got[i][0]).collect(), (4..12).map(|i| got[i][1]).collect());
    assert_eq!(first, second, "{what}");
}
