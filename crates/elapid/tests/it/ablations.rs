//! Mamba blocks with parts of the selection taken away: each keeps the contract, and its gradients are right.

use std::sync::Arc;

use elapid::Layout;
use elapid::autograd::Tape;
use elapid::config::ModelConfig;
use elapid::layers::mamba1::{AInit, Selective, Settings};
use elapid::params::ParamGrads;
use elapid::settings::{Auto, Count, Size};
use elapid::{DType, Device, LanguageModel};
use elapid_kernels::testing::gpu;

use crate::contract::{gradients_in_pieces, logits_in_pieces, numbers, same_gradients, summed};
use crate::{close, ids};

fn model(change: impl Fn(&mut Settings)) -> LanguageModel {
    let mut config = ModelConfig { vocab_size: 37, ..ModelConfig::mamba1("20x2").unwrap() };
    let mamba: &mut Settings = config.stack.settings_mut("mamba1").unwrap();
    (mamba.d_state, mamba.d_conv, mamba.dt_rank) = (Size::new(5), Size::new(3), Auto::Is(Count::new(3)));
    mamba.proj_bias = true;
    change(mamba);
    config.stack.model.initializer_range = 0.5;
    LanguageModel::new(config, 7).unwrap()
}

/// Every choice of what is selective, with and without a gate; every A; no step projection.
fn models() -> Vec<(String, LanguageModel)> {
    let mut models = Vec::new();
    for bits in 0..8 {
        let selective = Selective { delta: bits & 1 != 0, b: bits & 2 != 0, c: bits & 4 != 0 };
        for gate in [true, false] {
            let made = model(|mamba| (mamba.selective, mamba.gate) = (selective, gate));
            models.push((format!("{selective:?}, gate {gate}"), made));
        }
    }
    models.extend(AInit::ALL.map(|a| (format!("A {a:?}"), model(|mamba| mamba.a_init = a))));
    models.push(("no step projection".into(), model(|mamba| mamba.dt_rank = Auto::Is(Count::new(0)))));
    models
}

#[test]
fn any_split_is_the_same() {
    for (name, model) in models() {
        let tokens = ids(2 * 32, 37);
        let (whole, last) = logits_in_pieces(&model, &tokens, 2, &[32]);
        let (parts, state) = logits_in_pieces(&model, &tokens, 2, &[1, 20, 11]);
        assert!(whole == parts, "{name}");
        assert_eq!(numbers(&last), numbers(&state), "{name}");
        let (_, _, grads) = gradients_in_pieces(&model, &tokens, 2, &[31], false);
        let (_, _, in_parts) = gradients_in_pieces(&model, &tokens, 2, &[1, 19, 11], false);
        same_gradients(&name, &model, &grads, &in_parts);
        let (_, _, recomputed) = gradients_in_pieces(&model, &tokens, 2, &[31], true);
        same_gradients(&name, &model, &grads, &recomputed);
    }
}

#[test]
fn gradients_are_differences_of_the_loss() {
    const STEP: f32 = 0.01;
    for (name, mut model) in models() {
        let tokens = ids(40, 37);
        let targets: Vec<i32> = tokens[1..].iter().map(|&id| id as i32).chain([-1]).collect();
        let (_, grads, _) = summed(&model, &Layout::new(1, 40), &tokens, &targets);
        let all: Vec<_> = model.params().iter().map(|(id, param)| (id, param.name.clone())).collect();
        for (id, param) in all {
            let gradient = grads.get(id).unwrap_or_else(|| panic!("{name}: {param} has none")).to_vec().unwrap();
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            // Along the gradient, the loss grows as fast as the gradient is long.
            let mut moved = |by: f32| {
                let (_, value) = model.params_mut().iter_mut().find(|(other, _)| *other == id).unwrap();
                let old = value.value.clone();
                let numbers = value.value.make_mut().iter_mut().zip(&gradient);
                numbers.for_each(|(x, g)| *x += by * g / norm as f32);
                let cx = model.inference(Layout::new(1, 40));
                let (loss, _) = model.loss(&cx, &tokens, &targets, model.zero_state(1).unwrap(), false).unwrap();
                let (_, value) = model.params_mut().iter_mut().find(|(other, _)| *other == id).unwrap();
                value.value = old;
                loss.nll.to_vec().unwrap().iter().map(|&x| f64::from(x)).sum::<f64>()
            };
            let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
            assert!((slope - norm).abs() < 0.01 * norm + 2e-3, "{name}: {param}: slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn constants_replace_projections() {
    let names = |model: &LanguageModel| -> Vec<String> {
        let all = model.params().iter().filter_map(|(_, param)| param.name.strip_prefix("backbone.layers.0.mixer."));
        all.map(str::to_owned).collect()
    };
    let shape = |model: &LanguageModel, name: &str| {
        let id = model.params().find(&format!("backbone.layers.0.mixer.{name}")).unwrap();
        model.params().get(id).value.shape().to_vec()
    };
    let full = model(|_| ());
    assert_eq!(shape(&full, "x_proj.weight"), [3 + 2 * 5, 40]);
    let none = model(|mamba| mamba.selective = Selective { delta: false, b: false, c: false });
    assert!(!names(&none).iter().any(|name| name.contains("x_proj") || name == "dt_proj.weight"), "{:?}", names(&none));
    assert_eq!((shape(&none, "B"), shape(&none, "C")), (vec![5], vec![5]));
    let only_c = model(|mamba| mamba.selective = Selective { delta: false, b: false, c: true });
    assert_eq!(shape(&only_c, "x_proj.weight"), [5, 40]);
    let ungated = model(|mamba| mamba.gate = false);
    assert_eq!((shape(&full, "in_proj.weight"), shape(&ungated, "in_proj.weight")), (vec![80, 20], vec![40, 20]));
    for (name, model) in models() {
        let counted = model.params().count() as u64;
        assert_eq!(LanguageModel::parameter_count(model.config()).unwrap(), counted, "{name}");
        assert_eq!(model.cost(0).params, counted, "{name}");
    }
}

#[test]
fn a_saved_one_is_the_same() {
    for (name, model) in models() {
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), &elapid::checkpoint::SaveOptions::default()).unwrap();
        let again = LanguageModel::open(dir.path()).unwrap();
        assert_eq!(again.config(), model.config(), "{name}");
        assert_eq!(again.fingerprint().unwrap(), model.fingerprint().unwrap(), "{name}");
    }
}

#[test]
fn a_gpu_computes_the_same() {
    let Some(gpu) = gpu() else { return };
    for (name, model) in models() {
        let tokens = ids(2 * 65, 37);
        let device = model.to_train(Device::Cuda(gpu), DType::F32).unwrap();
        let (want, _) = logits_in_pieces(&model, &tokens, 2, &[65]);
        let (got, _) = logits_in_pieces(&device, &tokens, 2, &[20, 45]);
        close(&name, &want.concat(), &got.concat());
        let (_, _, grads) = gradients_in_pieces(&model, &tokens, 2, &[64], false);
        let tape = Arc::new(Tape::new());
        let cx = device.training(&tape, Layout::new(2, 64));
        let row = |from: usize| tokens.chunks(65).flat_map(move |row| row[from..from + 64].to_vec());
        let (inputs, targets): (Vec<u32>, Vec<i32>) = (row(0).collect(), row(1).map(|id| id as i32).collect());
        let (loss, _) = device.loss(&cx, &inputs, &targets, device.zero_state(2).unwrap(), false).unwrap();
        let mut on_device = ParamGrads::of(device.params()).unwrap();
        tape.backward(&[(&loss.mean, 1.0)], &mut on_device, &mut |_| Ok(())).unwrap();
        same_gradients(&name, &model, &grads, &on_device);
    }
}
