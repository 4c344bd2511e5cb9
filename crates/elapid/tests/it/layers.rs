//! The contract of layers, for every kind in the registry: what each promises is tested, and a layer that lies is caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use elapid::autograd::{Tape, Var};
use elapid::config::{ModelConfig, Named, Placement};
use elapid::decode::Decoder;
use elapid::generate::{Generator, Sampling};
use elapid::layer::{At, Cost, Layer, Layers, Split};
use elapid::layers::LayerConfig;
use elapid::lm::Positions;
use elapid::params::{ParamBuilder, ParamGrads};
use elapid::pass::Cx;
use elapid::state::{LayerState, StateSpec};
use elapid::{DType, Device, LanguageModel, Layout, Result, State};
use elapid_kernels::testing::{err_ratio, gpu, wide};

use crate::contract::{cut, gradients_in_pieces, logits_in_pieces, numbers, same_gradients, summed};
use crate::{close, ids};

/// Ids of the models.
const V: u32 = 37;

/// A model of two layers of one kind, its weights large enough that every path matters.
fn config(layer: LayerConfig) -> ModelConfig {
    let mut config = ModelConfig { vocab_size: V as usize, ..ModelConfig::mamba1("16x2").unwrap() };
    config.stack.model.layers = vec!["it".into()];
    config.stack.named = [("it".to_owned(), Named { layer, placement: Placement::default() })].into();
    config.stack.model.initializer_range = 0.5;
    config
}

/// Every kind in every setting that its file names for tests.
fn models() -> Vec<(String, LanguageModel)> {
    let all = LayerConfig::small().into_iter();
    all.map(|layer| (format!("{layer:?}"), LanguageModel::new(config(layer), 7).unwrap())).collect()
}

/// Everything in a state, as its file has it.
fn bytes(state: &State) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    state.save(&path, "", &[]).unwrap();
    std::fs::read(path).unwrap()
}

fn flat(rows: &[Vec<f32>]) -> Vec<f32> {
    rows.iter().flatten().copied().collect()
}

/// Splits change what the grade says and no more.
fn splits(name: &str, model: &LanguageModel) {
    let tokens = ids(2 * 70, V);
    let (whole, last) = logits_in_pieces(model, &tokens, 2, &[70]);
    let pieces: [&[usize]; 4] = [&[33, 37], &[1; 70], &[0, 5, 1, 64], &[64, 6]];
    for pieces in pieces {
        let (parts, state) = logits_in_pieces(model, &tokens, 2, pieces);
        match model.promises().split {
            Split::Exact => {
                assert!(whole == parts, "{name} {pieces:?}: outputs");
                assert!(bytes(&last) == bytes(&state), "{name} {pieces:?}: states");
            }
            Split::Rounded => close(name, &flat(&whole), &flat(&parts)),
            Split::Whole => {}
        }
    }
    if model.promises().split == Split::Whole {
        return cannot_continue(name, model);
    }
    let (loss, _, grads) = gradients_in_pieces(model, &tokens, 2, &[69], false);
    for (pieces, recompute) in [(&[69][..], true), (&[20, 49], false), (&[20, 1, 48], true)] {
        let (again, _, parts) = gradients_in_pieces(model, &tokens, 2, pieces, recompute);
        assert!((loss - again).abs() < 1e-5 * loss.abs(), "{name} {pieces:?}: {loss} {again}");
        same_gradients(&format!("{name} {pieces:?}"), model, &grads, &parts);
    }
}

/// A model that is not causal sees what follows, and refuses to generate.
fn cannot_continue(name: &str, model: &LanguageModel) {
    let logits = |tokens: &[u32]| {
        let cx = model.inference(Layout::new(1, tokens.len()));
        let (logits, _) = model.logits(&cx, tokens, model.zero_state(1).unwrap(), Positions::All).unwrap();
        logits.value().to_vec().unwrap()
    };
    let mut tokens = ids(12, V);
    let before = logits(&tokens);
    tokens[11] = (tokens[11] + 1) % V;
    let after = logits(&tokens);
    assert!(before[10 * V as usize..][..V as usize] != after[10 * V as usize..][..V as usize], "{name}");
    let mut generator = Generator::new(model, Sampling::default(), 1).unwrap();
    let error = generator.read(&tokens).unwrap_err().to_string();
    assert!(error.contains("not causal"), "{name}: {error}");
    assert!(Decoder::new(model, 1).is_err(), "{name}");
}

/// A row of a batch is the row alone, whatever the others have read.
fn rows(name: &str, model: &LanguageModel) {
    let lengths = [23, 1, 66];
    let mut states = Vec::new();
    for l in lengths {
        let tokens = ids(l, V);
        let cx = model.inference(Layout::new(1, l));
        states.push(model.logits(&cx, &tokens, model.zero_state(1).unwrap(), Positions::Last).unwrap().1);
    }
    let more = ids(3 * 9, V);
    let run = |tokens: &[u32], state: State| {
        let cx = model.inference(Layout::new(state.rows(), tokens.len() / state.rows()));
        let (logits, state) = model.logits(&cx, tokens, state, Positions::All).unwrap();
        (logits.value().to_vec().unwrap(), state)
    };
    let (together, after) = run(&more, State::stack(&states).unwrap());
    for (row, state) in states.iter().enumerate() {
        let (alone, last) = run(&more[row * 9..][..9], state.clone());
        assert!(together[row * alone.len()..][..alone.len()] == alone, "{name}: row {row}");
        assert!(bytes(&after.select(&[row]).unwrap()) == bytes(&last), "{name}: state of row {row}");
    }
}

/// Padding after a row's length changes nothing.
fn padding(name: &str, model: &LanguageModel) {
    let (long, short) = (ids(30, V), ids(11, V));
    let padded: Vec<u32> = long.iter().chain(&short).copied().chain([9; 19]).collect();
    let layout = Layout { lengths: Some([30, 11].into()), ..Layout::new(2, 30) };
    let forward = |tokens: &[u32], layout: &Layout| {
        let state = model.zero_state(layout.b).unwrap();
        let (logits, state) = model.logits(&model.inference(layout.clone()), tokens, state, Positions::Last)?;
        Ok((logits.value().to_vec()?, state))
    };
    let both: Result<(Vec<f32>, State)> = forward(&padded, &layout);
    if !model.promises().lengths {
        assert!(both.is_err(), "{name}: a layout that it does not honour is refused");
        return;
    }
    let (both, state) = both.unwrap();
    for (row, tokens) in [&long, &short].into_iter().enumerate() {
        let (alone, last) = forward(tokens, &Layout::new(1, tokens.len())).unwrap();
        close(name, &alone, &both[row * alone.len()..][..alone.len()]);
        match model.promises().split {
            Split::Exact => {
                assert!(bytes(&state.select(&[row]).unwrap()) == bytes(&last), "{name}: state of row {row}")
            }
            _ => assert_eq!(bytes(&last).len(), bytes(&state.select(&[row]).unwrap()).len()),
        }
    }
}

/// A document packed after others is the document alone: its bits if the layer is exact, also where it began in an earlier
/// chunk.
fn packing(name: &str, model: &LanguageModel) {
    let documents = [ids(13, V), ids(1, V), ids(22, V), ids(70, V)];
    let tokens: Vec<u32> = documents.iter().flatten().copied().collect();
    let mut resets = vec![0u8; tokens.len()];
    [0, 13, 14, 36].iter().for_each(|&t| resets[t] = 1);
    let run = |pieces: &[usize]| -> Result<(Vec<f32>, State)> {
        let (mut state, mut logits, mut from) = (model.zero_state(1)?, Vec::new(), 0);
        for &l in pieces {
            let layout = Layout { resets: Some(cut(&resets, resets.len(), from, l).into()), ..Layout::new(1, l) };
            let part = model.logits(&model.inference(layout), &tokens[from..from + l], state, Positions::All)?;
            logits.extend(part.0.value().to_vec()?);
            (state, from) = (part.1, from + l);
        }
        Ok((logits, state))
    };
    if !model.promises().resets {
        assert!(run(&[tokens.len()]).is_err(), "{name}: a layout that it does not honour is refused");
        return;
    }
    let cuts: &[&[usize]] = &[&[106], &[50, 56], &[36, 1, 69]];
    let whole = model.promises().split == Split::Whole;
    for &pieces in if whole { &cuts[..1] } else { cuts } {
        let (packed, state) = run(pieces).unwrap();
        let mut at = 0;
        for document in &documents {
            let cx = model.inference(Layout::new(1, document.len()));
            let (alone, last) = model.logits(&cx, document, model.zero_state(1).unwrap(), Positions::All).unwrap();
            let alone = alone.value().to_vec().unwrap();
            let there = &packed[at..at + alone.len()];
            match model.promises().split {
                Split::Exact => assert!(alone == there, "{name} {pieces:?}: a document of {}", document.len()),
                _ => close(name, &alone, there),
            }
            at += alone.len();
            if at == packed.len() && model.promises().split == Split::Exact {
                let values = |state: &State| state.tensors().flat_map(|(_, x)| x.to_vec().unwrap()).collect::<Vec<_>>();
                assert_eq!(values(&last), values(&state), "{name} {pieces:?}: the state of the last document");
            }
        }
    }
    let targets: Vec<i32> = tokens.iter().skip(1).map(|&id| id as i32).chain([-1]).collect();
    let layout = Layout { resets: Some(resets.into()), ..Layout::new(1, tokens.len()) };
    let (loss, ..) = summed(model, &layout, &tokens, &targets);
    assert!(loss.is_finite(), "{name}");
}

/// A state comes back from its file, and from config and weights the same model.
fn files(name: &str, model: &LanguageModel) {
    let dir = tempfile::tempdir().unwrap();
    let cx = model.inference(Layout::new(2, 70));
    let (_, state) = model.logits(&cx, &ids(140, V), model.zero_state(2).unwrap(), Positions::Last).unwrap();
    let path = dir.path().join("state");
    state.save(&path, model.fingerprint().unwrap(), &[]).unwrap();
    let (again, _) = model.load_state(&path).unwrap();
    assert!(bytes(&again) == bytes(&state), "{name}: the state");
    let half = std::fs::metadata(&path).unwrap().len() / 2;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(half).unwrap();
    assert!(model.load_state(&path).is_err(), "{name}: half a state");
    model.save(dir.path(), &elapid::checkpoint::SaveOptions::default()).unwrap();
    let loaded = LanguageModel::open(dir.path()).unwrap();
    assert_eq!(loaded.config(), model.config(), "{name}");
    assert_eq!(loaded.fingerprint().unwrap(), model.fingerprint().unwrap(), "{name}");
    let counted = LanguageModel::parameter_count(model.config()).unwrap();
    assert_eq!((counted, model.cost(0).params), (model.params().count() as u64, counted), "{name}: parameters");
}

/// Gradients of the loss are its difference quotients, along a random direction of each parameter.
fn gradients(name: &str, model: &LanguageModel) {
    // Picks jump, rectifiers bend, and gates that are exponentials curve strongly.
    let bends = name.starts_with("moe(") || name.contains("activation: Relu") || name.starts_with("slstm(");
    let mut compared = 0;
    let tokens = ids(2 * 12, V);
    let targets: Vec<i32> = ids(24, V).iter().rev().map(|&id| id as i32).collect();
    let (_, grads, _) = summed(model, &Layout::new(2, 12), &tokens, &targets);
    let mut changed = model.clone();
    let trained = model.params().iter().filter(|(_, param)| param.traits.trainable);
    let ids: Vec<_> = trained.map(|(id, _)| id).collect();
    for id in ids {
        let value = model.params().value(id).to_vec().unwrap();
        let gradient = grads.get(id).unwrap().to_vec().unwrap();
        let scale = value.iter().map(|x| x.abs()).fold(0.05, f32::max);
        // Along the gradient itself: sign by sign, so that no product cancels.
        let direction: Vec<f32> = gradient.iter().map(|g| g.signum() * scale).collect();
        let wanted: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let mut at = |step: f32| {
            let moved = value.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
            changed.params_mut().get_mut(id).value = elapid::Tensor::new(moved, model.params().value(id).shape());
            summed(&changed, &Layout::new(2, 12), &tokens, &targets).0
        };
        // Richardson's combination: the error is of fourth order in the step.
        let step = 4e-3;
        let (fine, coarse) = (
            (at(step) - at(-step)) / f64::from(2.0 * step),
            (at(2.0 * step) - at(-2.0 * step)) / f64::from(4.0 * step),
        );
        let quotient = (4.0 * fine - coarse) / 3.0;
        // Where a step changes what is picked, or passes a bend, a difference is no gradient: it then depends on the step.
        let jumped = bends && (fine - coarse).abs() > 1e-3 * wanted.abs();
        changed.params_mut().get_mut(id).value = model.params().value(id).clone();
        let param = &model.params().get(id).name;
        // The loss is a sum of 24 terms in f32: what its rounding does to the quotient.
        let noise = 24.0 * 4.0 * f64::from(f32::EPSILON) / f64::from(step) * 4.0;
        let close = (wanted - quotient).abs() < 5e-3 * wanted.abs() + noise;
        assert!(jumped || close, "{name}: {param}: {wanted} {quotient}");
        compared += usize::from(!jumped);
    }
    assert!(compared > 0, "{name}: every step passes a bend");
}

type Check = fn(&str, &LanguageModel);

const CHECKS: [(&str, Check); 6] = [
    ("splits", splits),
    ("rows", rows),
    ("padding", padding),
    ("packing", packing),
    ("files", files),
    ("gradients", gradients),
];

#[test]
fn every_kind_keeps_the_contract() {
    for (name, model) in models() {
        CHECKS.iter().for_each(|(_, check)| check(&name, &model));
    }
}

#[test]
fn no_setting_of_a_layer_has_the_name_of_one_of_its_place() {
    use elapid::settings::Settings;
    for layer in LayerConfig::small() {
        for field in layer.fields() {
            let taken = field.name == "kind" || Placement::FIELDS.iter().any(|other| other.name == field.name);
            assert!(!taken, "{}: {}", layer.kind(), field.name);
        }
    }
}

/// A batch of three rows: whole, with documents, and with padding too.
fn layouts(b: usize, l: usize) -> Vec<Layout> {
    let resets: Arc<[u8]> = (0..b * l).map(|i| u8::from(i % 11 == 4)).collect();
    let documents = Layout { resets: Some(resets), ..Layout::new(b, l) };
    let padded = Layout { lengths: Some(Arc::new([l as u32, 1, 20])), ..documents.clone() };
    vec![Layout::new(b, l), documents, padded]
}

/// Every kind trains on a GPU as on the CPU, in f32 and near it in bf16, and steps there as it reads a whole sequence.
#[test]
fn every_kind_trains_and_steps_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let (b, l) = (3, 33);
    let tokens = ids(b * l, V);
    let all = |grads: &ParamGrads| -> Vec<f32> { grads.iter().flat_map(|(_, g)| g.to_vec().unwrap()).collect() };
    for (name, model) in models() {
        let [narrow, device] = [DType::Bf16, DType::F32].map(|dtype| model.to_train(Device::Cuda(gpu), dtype).unwrap());
        for (i, layout) in layouts(b, l).iter().enumerate() {
            let promises = model.promises();
            if layout.lengths.is_some() && !promises.lengths || layout.resets.is_some() && !promises.resets {
                continue;
            }
            let target = |at: usize| {
                if at % l < layout.len(at / l) && !at.is_multiple_of(5) { (at * 7 % 37) as i32 } else { -1 }
            };
            let targets: Vec<i32> = (0..b * l).map(target).collect();
            let (want, grads, _) = summed(&model, layout, &tokens, &targets);
            let (got, on_device, _) = summed(&device, layout, &tokens, &targets);
            assert!((want - got).abs() <= 2e-5 * want.abs(), "{name}, layout {i}: {want} {got}");
            let (grads, on_device) = (wide(&all(&grads)), all(&on_device));
            let ratio = err_ratio(&grads, &on_device);
            assert!(ratio <= 1e-4, "{name}, layout {i}: gradients {ratio:e}");
            // Roundings may change what a mixture picks.
            if name.contains("top_k") {
                continue;
            }
            let (got, on_device, _) = summed(&narrow, layout, &tokens, &targets);
            assert!((want - got).abs() <= 3e-2 * want.abs(), "{name}, layout {i}, bf16: {want} {got}");
            let ratio = err_ratio(&grads, &all(&on_device));
            assert!(ratio <= 0.12, "{name}, layout {i}, bf16: gradients {ratio:e}");
        }
        if model.promises().split < Split::Whole {
            let (want, state) = logits_in_pieces(&model, &tokens, b, &[l]);
            for pieces in [&[l][..], &[1; 33], &[20, 1, 12]] {
                let (got, last) = logits_in_pieces(&device, &tokens, b, pieces);
                close(&format!("{name} {pieces:?} on a GPU"), &flat(&want), &flat(&got));
                let last = last.to(Device::Cpu).unwrap();
                close(&format!("{name} {pieces:?}: state"), &numbers(&state), &numbers(&last));
            }
        }
    }
}

/// A layer that does something else than it promises.
#[derive(Debug)]
struct Liar {
    inner: Arc<dyn Layer>,
    lie: Lie,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    /// Claims any split, and depends on where a chunk begins.
    Split,
    /// Claims to honour resets, and hands none on.
    Resets,
    /// Claims to honour lengths, and hands none on.
    Lengths,
    /// A row depends on the number of rows.
    Rows,
    /// A gradient that is not the derivative.
    Gradient,
    /// A cost that is not its own.
    Cost,
}

impl Layer for Liar {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let layout = &cx.layout;
        let told = match self.lie {
            Lie::Resets => Layout { resets: None, ..layout.clone() },
            Lie::Lengths => Layout { lengths: None, ..layout.clone() },
            _ => layout.clone(),
        };
        let (y, state) = self.inner.forward(&cx.laid_out(told), x, state)?;
        let factor = match self.lie {
            Lie::Split => 1.0 + 1e-6 * layout.l as f32,
            Lie::Rows => 1.0 + 1e-6 * layout.b as f32,
            Lie::Gradient => return Ok((elapid::ops::add_scaled(&y, 0.5, &y.detach(), 0.5)?, state)),
            _ => 1.0,
        };
        Ok((elapid::ops::scaled(&y, factor)?, state))
    }

    fn state(&self) -> Vec<StateSpec> {
        self.inner.state()
    }

    fn cost(&self, context: u64) -> Cost {
        let cost = self.inner.cost(context);
        if self.lie == Lie::Cost { Cost { params: cost.params + 1, ..cost } } else { cost }
    }
}

#[test]
fn every_lie_is_caught() {
    let honest = config(LayerConfig::of("mamba1").unwrap());
    let lies = [
        (Lie::Split, "splits"),
        (Lie::Resets, "packing"),
        (Lie::Lengths, "padding"),
        (Lie::Rows, "rows"),
        (Lie::Gradient, "gradients"),
        (Lie::Cost, "files"),
    ];
    for (lie, by) in lies {
        let stack = honest.stack.clone();
        let liar = |name: &str, at: &At<'_>, p: &mut ParamBuilder<'_>| -> Result<Arc<dyn Layer>> {
            Ok(Arc::new(Liar { inner: stack.build(name, at, p)?, lie }))
        };
        let model =
            LanguageModel::build_with(honest.clone(), &mut |w| w.init.values(w.name, w.shape, 7), liar).unwrap();
        let (_, check) = CHECKS.iter().find(|(name, _)| *name == by).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| check("a liar", &model))).is_err();
        assert!(caught, "{lie:?} is not caught by {by}");
    }
}

/// A state kept over a backward pass is a constant, not another's slot on the tape.
#[test]
fn a_state_kept_over_a_backward_pass_is_a_constant() {
    for (name, model) in models() {
        let tokens = ids(60, V);
        let targets: Vec<i32> = tokens.iter().rev().map(|&id| id as i32).collect();
        let second = |detach: bool| {
            let tape = Arc::new(Tape::new());
            let step = |from: usize, state: State| {
                let (inputs, wanted) = (&tokens[from..from + 30], &targets[from..from + 30]);
                let cx = model.training(&tape, Layout::new(1, 30));
                let (loss, state) = model.loss(&cx, inputs, wanted, state, false).unwrap();
                let mut grads = ParamGrads::of(model.params()).unwrap();
                tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut |_| Ok(())).unwrap();
                (grads, state)
            };
            let (_, state) = step(0, model.zero_state(1).unwrap());
            step(30, if detach { state.detach() } else { state }).0
        };
        same_gradients(&name, &model, &second(true), &second(false));
    }
}
