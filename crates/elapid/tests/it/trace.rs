//! What a trace shows is what the model computes with.

use std::sync::Arc;

use elapid::Layout;
use elapid::layers::mamba1::Settings;
use elapid::trace::{DELTA, Trace};
use elapid::{DType, Device, LanguageModel, Tensor};
use elapid_kernels::selective_scan::Discretisation;
use elapid_kernels::testing::gpu;

use crate::{close, ids, small_model};

fn delta(model: &LanguageModel, tokens: &[u32], (b, l): (usize, usize)) -> Vec<Tensor> {
    let trace = Arc::new(Trace::of(DELTA));
    let cx = model.inference(Layout::new(b, l)).traced(&trace);
    model.hidden(&cx, tokens, model.zero_state(b).unwrap(), false).unwrap();
    trace.take()
}

/// Δ of the first layer, by the equations: embedding, norm, convolution and two projections, in f64.
fn first_delta(model: &LanguageModel, tokens: &[u32]) -> Vec<f64> {
    let config = model.config();
    let mamba: &Settings = config.stack.named["mamba1"].layer.settings().unwrap();
    let d = config.d_model();
    let (ed, k, r) = (mamba.d_inner(d), mamba.d_conv.get(), mamba.delta_rank(d));
    let param = |name: &str| -> Vec<f64> {
        let (_, param) = model.params().iter().find(|(_, param)| param.name.ends_with(name)).unwrap();
        param.value.as_slice().iter().map(|&x| f64::from(x)).collect()
    };
    let dot = |weight: &[f64], row: usize, x: &[f64]| -> f64 {
        weight[row * x.len()..][..x.len()].iter().zip(x).map(|(w, x)| w * x).sum()
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let (embedding, norm) = (param("embeddings.weight"), param("layers.0.norm.weight"));
    let (in_proj, x_proj, dt_proj) =
        (param("0.mixer.in_proj.weight"), param("0.mixer.x_proj.weight"), param("0.mixer.dt_proj.weight"));
    let (conv, conv_bias, dt_bias) =
        (param("0.mixer.conv1d.weight"), param("0.mixer.conv1d.bias"), param("0.mixer.dt_proj.bias"));
    let rows: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&id| {
            let x = &embedding[id as usize * d..][..d];
            let scale =
                (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + f64::from(config.stack.model.norm_eps)).sqrt();
            let x: Vec<f64> = x.iter().zip(&norm).map(|(x, w)| x / scale * w).collect();
            (0..ed).map(|c| dot(&in_proj, c, &x)).collect()
        })
        .collect();
    let at = |t: usize| -> Vec<f64> {
        let channel = |c: usize| {
            let taps = (0..k).filter(|i| t + i + 1 >= k).map(|i| conv[c * k + i] * rows[t + i + 1 - k][c]);
            silu(conv_bias[c] + taps.sum::<f64>())
        };
        let x: Vec<f64> = (0..ed).map(channel).collect();
        let rank: Vec<f64> = (0..r).map(|row| dot(&x_proj, row, &x)).collect();
        (0..ed).map(|c| (dot(&dt_proj, c, &rank) + dt_bias[c]).exp().ln_1p()).collect()
    };
    (0..tokens.len()).flat_map(at).collect()
}

#[test]
fn delta_is_what_the_equations_say() {
    let mut config = elapid::config::ModelConfig::mamba1("24x2").unwrap();
    (config.vocab_size, config.stack.model.initializer_range) = (16, 0.5);
    let model = LanguageModel::new(config, 3).unwrap();
    let tokens = ids(50, 16);
    let layers = delta(&model, &tokens, (1, 50));
    assert_eq!(layers.iter().map(Tensor::shape).collect::<Vec<_>>(), [[1, 50, 48], [1, 50, 48]]);
    let want: Vec<f32> = first_delta(&model, &tokens).into_iter().map(|x| x as f32).collect();
    close("delta", &want, layers[0].as_slice());
    assert!(layers.iter().flat_map(Tensor::as_slice).all(|x| *x > 0.0 && x.is_finite()));
}

#[test]
fn delta_is_the_processors_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let model = small_model(Discretisation::ExpEuler);
    let on_device = model.to(Device::Cuda(gpu), DType::F32).unwrap();
    let tokens = ids(2 * 40, model.config().vocab_size as u32);
    for (want, got) in delta(&model, &tokens, (2, 40)).iter().zip(delta(&on_device, &tokens, (2, 40))) {
        close("delta", want.as_slice(), got.as_slice());
    }
}
