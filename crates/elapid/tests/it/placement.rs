//! Where layers stand in the residual stream, against the equations written down in f64.

use std::sync::Arc;

use elapid::autograd::Var;
use elapid::config::{ModelConfig, ModelSettings, Named, Place, Placement, StackConfig, Wiring};
use elapid::layer::{At, Cost, Layer};
use elapid::layers::LayerConfig;
use elapid::ops::{NormKind, add_constant, scaled};
use elapid::params::ParamBuilder;
use elapid::pass::Cx;
use elapid::settings::{Auto, Size};
use elapid::state::LayerState;
use elapid::{LanguageModel, Layout, Result};

use crate::{close, ids};

const D: usize = 12;
const EPS: f64 = 1e-5;

/// f(x) = a x + c.
#[derive(Debug, Clone, Copy)]
struct Line {
    a: f32,
    c: f32,
}

const MIXER: Line = Line { a: 0.5, c: 0.1 };
const FFN: Line = Line { a: -0.7, c: 0.3 };

impl Layer for Line {
    fn forward(&self, _cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        Ok((add_constant(&scaled(x, self.a)?, self.c)?, state))
    }

    fn cost(&self, _context: u64) -> Cost {
        Cost::default()
    }
}

impl Line {
    fn of(self, x: &[f64]) -> Vec<f64> {
        x.iter().map(|x| f64::from(self.a) * x + f64::from(self.c)).collect()
    }
}

/// A model of two layers, each a mixer and a feed-forward that are lines.
fn model(config: &StackConfig) -> LanguageModel {
    let config = ModelConfig { vocab_size: 11, stack: config.clone(), ..ModelConfig::default() };
    let line = |name: &str, _: &At<'_>, _: &mut ParamBuilder<'_>| -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(if name == "mixer" { MIXER } else { FFN }))
    };
    // Weights of norms are not 1, so that each norm has its own.
    let mut draw = |wanted: elapid::params::Wanted<'_>| {
        let drawn = elapid::params::Init::Normal(0.4).values(wanted.name, wanted.shape, 3)?;
        Ok(if wanted.name.contains("norm") { drawn.into_iter().map(|x| 1.0 + x).collect() } else { drawn })
    };
    LanguageModel::build_with(config, &mut draw, line).unwrap()
}

fn stack(settings: ModelSettings, placements: [Placement; 2]) -> StackConfig {
    let named = |placement| Named { layer: LayerConfig::of("mlp").unwrap(), placement };
    let [mixer, ffn] = placements.map(named);
    let model = ModelSettings {
        d_model: Size::new(D),
        n_layer: Size::new(2),
        layers: vec!["mixer".into()],
        ffn: vec!["ffn".into()],
        ..settings
    };
    StackConfig { model, named: [("mixer".to_owned(), mixer), ("ffn".to_owned(), ffn)].into() }
}

/// One parameter in f64; none if the model does not have it.
fn param(model: &LanguageModel, name: &str) -> Option<Vec<f64>> {
    let (_, param) = model.params().iter().find(|(_, param)| param.name == name)?;
    Some(param.value.as_slice().iter().map(|&x| f64::from(x)).collect())
}

fn norm(model: &LanguageModel, kind: NormKind, name: &str, s: &[f64]) -> Vec<f64> {
    let n = s.len() as f64;
    let weight = param(model, &format!("backbone.{name}.weight"));
    let bias = param(model, &format!("backbone.{name}.bias"));
    let mean = match kind {
        NormKind::Layer | NormKind::LayerNoBias => s.iter().sum::<f64>() / n,
        _ => 0.0,
    };
    let root = (s.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n + EPS).sqrt();
    let one = |(i, x): (usize, &f64)| match kind {
        NormKind::None => *x,
        NormKind::Rms1 => x / root * (1.0 + weight.as_ref().unwrap()[i]),
        _ => (x - mean) / root * weight.as_ref().unwrap()[i] + bias.as_ref().map_or(0.0, |bias| bias[i]),
    };
    s.iter().enumerate().map(one).collect()
}

/// a x + b y.
fn sum(a: f32, x: &[f64], b: f32, y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| f64::from(a) * x + f64::from(b) * y).collect()
}

/// The output of the model for one token, by the equations.
fn by_hand(model: &LanguageModel, id: u32) -> Vec<f64> {
    let config = &model.config().stack;
    let mut r = param(model, "backbone.embeddings.weight").unwrap()[D * id as usize..][..D].to_vec();
    for i in 0..2 {
        let before = r.clone();
        for (name, line, norm_name) in [("mixer", MIXER, "norm"), ("ffn", FFN, "ffn_norm")] {
            let Placement { place, scale, keep, norm: kind, .. } = config.placement(name);
            let kind = kind.or(config.model.norm);
            let normed = |x: &[f64]| norm(model, kind, &format!("layers.{i}.{norm_name}"), x);
            let parallel = name == "ffn" && config.model.wiring == Wiring::Parallel;
            let read = if parallel { &before } else { &r };
            r = match place {
                Place::Before => sum(keep, &r, scale, &line.of(&normed(read))),
                Place::Sum => normed(&sum(keep, &r, scale, &line.of(read))),
                Place::Output => sum(keep, &r, scale, &normed(&line.of(read))),
                Place::Both => sum(keep, &normed(&r), scale, &line.of(&normed(read))),
            };
        }
    }
    norm(model, config.model.norm_f.or(config.model.norm), "norm_f", &r)
}

fn check(name: &str, config: &StackConfig) {
    let model = model(config);
    let tokens = ids(7, 11);
    let cx = model.inference(Layout::new(1, 7));
    let (hidden, _) = model.hidden(&cx, &tokens, model.zero_state(1).unwrap(), false).unwrap();
    let want: Vec<f32> = tokens.iter().flat_map(|&id| by_hand(&model, id)).map(|x| x as f32).collect();
    close(name, &want, &hidden.value().to_vec().unwrap());
}

#[test]
fn every_place_with_factors_is_its_equation() {
    let places = [Place::Before, Place::Sum, Place::Output, Place::Both];
    for (first, second) in places.into_iter().flat_map(|first| places.map(|second| (first, second))) {
        for (scale, keep) in [(1.0, 1.0), (0.3, 1.0), (1.0, 0.6), (-0.5, 1.7)] {
            let placement = |place| Placement { place, scale, keep, ..Placement::default() };
            let config = stack(ModelSettings::default(), [placement(first), placement(second)]);
            check(&format!("{first:?} {second:?} {scale} {keep}"), &config);
        }
    }
}

#[test]
fn every_norm_is_its_equation() {
    let kinds = [NormKind::Rms, NormKind::Rms1, NormKind::Layer, NormKind::LayerNoBias, NormKind::None];
    for (kind, own) in kinds.into_iter().flat_map(|kind| kinds.map(|own| (kind, own))) {
        let placement = Placement { norm: Auto::Is(own), ..Placement::default() };
        let settings = ModelSettings { norm: kind, norm_f: Auto::Is(own), ..ModelSettings::default() };
        check(&format!("{kind:?} {own:?}"), &stack(settings, [placement, Placement::default()]));
    }
}

#[test]
fn parallel_layers_read_the_same_stream() {
    for (scale, keep) in [(1.0, 1.0), (0.3, 1.0)] {
        let placement = Placement { scale, keep, ..Placement::default() };
        let settings = ModelSettings { wiring: Wiring::Parallel, ..ModelSettings::default() };
        check(&format!("{scale} {keep}"), &stack(settings, [placement.clone(), placement]));
    }
    let settings = ModelSettings { wiring: Wiring::Parallel, ..ModelSettings::default() };
    let placement = Placement { place: Place::Sum, ..Placement::default() };
    let problem = stack(settings, [Placement::default(), placement]).check("model").unwrap_err();
    assert_eq!(problem.field, "model.layer.ffn.place");
}

/// The names inside `sum`: a circle is an error, and so is a place in the stream, which only the wrapper has.
#[test]
fn layers_inside_a_wrapper_have_no_place() {
    let sum = |names: &[&str]| {
        let layers = names.iter().map(|name| (*name).to_owned()).collect();
        LayerConfig::sum(elapid::layers::sum::Settings { layers, ..Default::default() })
    };
    let config = |named: Vec<(&str, LayerConfig, Placement)>| {
        let mut config = stack(ModelSettings::default(), [Placement::default(), Placement::default()]);
        let named = named.into_iter().map(|(name, layer, placement)| (name.to_owned(), Named { layer, placement }));
        config.named.extend(named);
        config
    };
    let mlp = || LayerConfig::of("mlp").unwrap();
    let plain = Placement::default;
    let good = config(vec![("mixer", sum(&["inner", "mamba1"]), plain()), ("inner", mlp(), plain())]);
    good.check("model").unwrap();
    let placed = Placement { scale: 0.5, ..Placement::default() };
    let bad = config(vec![("mixer", sum(&["inner"]), plain()), ("inner", mlp(), placed)]);
    assert_eq!(bad.check("model").unwrap_err().field, "model.layer.inner.place");
    let circle = config(vec![("mixer", sum(&["inner"]), plain()), ("inner", sum(&["mixer"]), plain())]);
    assert!(circle.check("model").unwrap_err().what.contains("circle"));
    let unknown = config(vec![("mixer", sum(&["attntion"]), plain())]);
    let problem = unknown.check("model").unwrap_err();
    assert!(problem.what.contains("attntion") && problem.fix.contains("attention"), "{problem:?}");
}
