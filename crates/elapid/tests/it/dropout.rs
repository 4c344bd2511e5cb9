//! What training drops of the stream, against the equation.

use std::sync::Arc;

use elapid::autograd::{Tape, Var};
use elapid::config::{ModelConfig, ModelSettings, Place, Placement, StackConfig};
use elapid::layer::{At, Cost, Layer};
use elapid::layers::LayerConfig;
use elapid::ops::{First, NormKind, Seeds, add_constant, scaled};
use elapid::params::{ParamBuilder, ParamGrads};
use elapid::pass::Cx;
use elapid::settings::{Auto, Size};
use elapid::state::LayerState;
use elapid::{DType, Device, LanguageModel, Layout, Result};
use elapid_kernels::dropout::{Mask, Unit, key, naive};
use elapid_kernels::testing::gpu;
use elapid_kernels::{Rows, RowsMut};

use crate::{close, ids};

const D: usize = 12;
const LAYERS: usize = 3;
const SEED: u64 = 9;

/// f(x) = 1.
#[derive(Debug)]
struct One;

impl Layer for One {
    fn forward(&self, _cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        Ok((add_constant(&scaled(x, 0.0)?, 1.0)?, state))
    }

    fn cost(&self, _context: u64) -> Cost {
        Cost::default()
    }
}

fn settings() -> ModelSettings {
    let model = ModelSettings { dropout: 0.3, embedding_dropout: 0.2, drop_path: 0.6, ..ModelSettings::default() };
    ModelSettings { d_model: Size::new(D), n_layer: Size::new(LAYERS), ffn: vec!["mlp".into()], ..model }
}

/// Two sublayers in each layer that add 1 to the stream.
fn ones() -> LanguageModel {
    let stack = StackConfig {
        model: ModelSettings { norm: NormKind::None, norm_f: Auto::Is(NormKind::None), ..settings() },
        ..StackConfig::default()
    };
    let config = ModelConfig { vocab_size: 11, stack, ..ModelConfig::default() };
    let one = |_: &str, _: &At<'_>, _: &mut ParamBuilder<'_>| -> Result<Arc<dyn Layer>> { Ok(Arc::new(One)) };
    LanguageModel::build_with(config, &mut |wanted| wanted.init.values(wanted.name, wanted.shape, 3), one).unwrap()
}

/// x `[b l D]` after what one place of the model drops.
fn dropped(place: u64, [elements, rows]: [f32; 2], first: u64, l: usize, x: Vec<f32>) -> Vec<f32> {
    let one = |x: Vec<f32>, place: u64, rate: f32, unit: Unit| {
        if rate == 0.0 {
            return x;
        }
        let (mask, mut y) = (Mask { key: key(SEED, place), rate, l, unit }, vec![f32::NAN; x.len()]);
        naive::forward(&mask, first, Rows::new(&x, D), RowsMut::new(&mut y, D));
        y
    };
    one(one(x, 2 * place, elements, Unit::Element), 2 * place + 1, rows, Unit::Sample)
}

fn seeds(first: u64) -> Seeds {
    Seeds { seed: SEED, first: First::Host(first) }
}

#[test]
fn every_sublayer_drops_its_own() {
    let (b, l, first) = (5, 4, 1 << 40);
    let (model, tokens) = (ones(), ids(b * l, 11));
    let cx = model.inference(Layout::new(b, l)).in_training().with_seeds(seeds(first));
    let (hidden, _) = model.hidden(&cx, &tokens, model.zero_state(b).unwrap(), false).unwrap();
    let table = model.params().value(model.params().find("backbone.embeddings.weight").unwrap()).to_vec().unwrap();
    let x = tokens.iter().flat_map(|&id| table[D * id as usize..][..D].to_vec()).collect();
    let mut want = dropped(0, [0.2, 0.0], first, l, x);
    for place in 1..=2 * LAYERS as u64 {
        // Of three layers the first is never left out, the second at half the rate of the third.
        let rows = [0.0, 0.3, 0.6][(place as usize - 1) / 2];
        let ones = dropped(place, [0.3, rows], first, l, vec![1.0; b * l * D]);
        want.iter_mut().zip(ones).for_each(|(want, one)| *want += one);
    }
    close("hidden", &want, &hidden.value().to_vec().unwrap());
}

/// The layers of the registry, each norm's place in turn.
fn model(place: Place) -> LanguageModel {
    let mut stack = StackConfig {
        model: ModelSettings { layers: vec!["attention".into()], initializer_range: 0.4, ..settings() },
        named: ["attention", "mlp"]
            .map(|name| {
                let layer = LayerConfig::of(name).unwrap();
                (
                    name.to_owned(),
                    elapid::config::Named { layer, placement: Placement { place, ..Placement::default() } },
                )
            })
            .into(),
    };
    stack.settings_mut::<elapid::layers::attention::Settings>("attention").unwrap().heads = Size::new(2);
    LanguageModel::new(ModelConfig { vocab_size: 11, stack, ..ModelConfig::default() }, 7).unwrap()
}

/// The loss, and all gradients.
fn trained(model: &LanguageModel, tokens: &[u32], l: usize, seeds: Seeds, recompute: bool) -> Result<(f32, Vec<f32>)> {
    let (b, targets) = (tokens.len() / l, tokens.iter().map(|&id| id as i32).collect::<Vec<_>>());
    let tape = Arc::new(Tape::new());
    let cx = model.training(&tape, Layout::new(b, l)).with_seeds(seeds);
    let (loss, _) = model.loss(&cx, tokens, &targets, &model.zero_state(b)?, recompute)?;
    let mut grads = ParamGrads::of(model.params())?;
    tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut |_| Ok(()))?;
    let all: Result<Vec<Vec<f32>>> = grads.iter().map(|(_, g)| g.to_vec()).collect();
    Ok((loss.value()?, all?.concat()))
}

const PLACES: [Place; 4] = [Place::Before, Place::Sum, Place::Output, Place::Both];

#[test]
fn recomputation_drops_the_same() {
    let tokens = ids(3 * 7, 11);
    for place in PLACES {
        let model = model(place);
        let [kept, recomputed] =
            [false, true].map(|recompute| trained(&model, &tokens, 7, seeds(5), recompute).unwrap());
        assert_eq!(kept.0.to_bits(), recomputed.0.to_bits(), "{place:?}");
        close(&format!("{place:?}"), &kept.1, &recomputed.1);
        let other = trained(&model, &tokens, 7, seeds(6), false).unwrap();
        assert!(kept.0 != other.0, "{place:?}: other rows of the run are dropped otherwise");
    }
}

/// A batch is dropped as its rows are in other batches.
#[test]
fn gradients_are_those_of_the_rows() {
    let (l, tokens) = (7, ids(3 * 7, 11));
    let model = model(Place::Before);
    let (loss, grads) = trained(&model, &tokens, l, seeds(20), false).unwrap();
    let rows: Vec<_> =
        (0..3).map(|row| trained(&model, &tokens[row * l..][..l], l, seeds(20 + row as u64), false).unwrap()).collect();
    let mean = rows.iter().map(|(loss, _)| loss / 3.0).sum::<f32>();
    assert!((loss - mean).abs() < 1e-5 * loss, "{loss} {mean}");
    let want: Vec<f32> = (0..grads.len()).map(|i| rows.iter().map(|(_, grads)| grads[i] / 3.0).sum()).collect();
    close("gradients", &want, &grads);
}

#[test]
fn nothing_is_dropped_outside_of_training() {
    let model = model(Place::Before);
    let mut plain = model.config().clone();
    let settings = &mut plain.stack.model;
    (settings.dropout, settings.embedding_dropout, settings.drop_path) = (0.0, 0.0, 0.0);
    let plain = LanguageModel::new(plain, 7).unwrap();
    let tokens = ids(9, 11);
    let hidden = |model: &LanguageModel| {
        let cx = model.inference(Layout::new(1, 9)).with_seeds(seeds(0));
        model.hidden(&cx, &tokens, model.zero_state(1).unwrap(), false).unwrap().0.value().to_vec().unwrap()
    };
    assert_eq!(hidden(&model), hidden(&plain));
    // A pass of training that does not say what it draws from is refused; without dropout it needs nothing.
    for (model, refused) in [(&model, true), (&plain, false)] {
        let tape = Arc::new(Tape::new());
        let cx = model.training(&tape, Layout::new(1, 9));
        let done = model.hidden(&cx, &tokens, model.zero_state(1).unwrap(), false);
        assert_eq!(done.err().is_some_and(|error| error.to_string().contains("with_seeds")), refused);
    }
}

#[test]
fn impossible_rates_are_refused() {
    let base = model(Place::Before).config().clone();
    for rate in [-0.1, 1.0, f32::NAN] {
        for (i, field) in ["dropout", "embedding_dropout", "drop_path"].into_iter().enumerate() {
            let mut config = base.clone();
            let model = &mut config.stack.model;
            *[&mut model.dropout, &mut model.embedding_dropout, &mut model.drop_path][i] = rate;
            let error = LanguageModel::new(config, 7).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains("0 to less than 1"), "{error}");
        }
    }
}

#[test]
fn a_gpu_drops_the_same() {
    let Some(gpu) = gpu() else { return };
    let tokens = ids(3 * 7, 11);
    for place in PLACES {
        let model = model(place);
        let (want, grads) = trained(&model, &tokens, 7, seeds(5), false).unwrap();
        let device = model.to_train(Device::Cuda(gpu), DType::F32).unwrap();
        for recompute in [false, true] {
            let first = First::Device(Arc::new(gpu.upload(&[5u64]).unwrap()));
            let (got, on_device) = trained(&device, &tokens, 7, Seeds { seed: SEED, first }, recompute).unwrap();
            assert!((want - got).abs() < 1e-4 * want, "{place:?}: {want} {got}");
            close(&format!("{place:?}"), &grads, &on_device);
        }
        let host = trained(&device, &tokens, 7, seeds(5), false);
        assert!(host.err().is_some_and(|error| error.to_string().contains("first")));
    }
}
