//! Decoding steps of a whole model in few launches, beside the model's operations; skipped without a GPU.

use elapid::config::{ModelConfig, ModelSettings, Named, Placement, PositionKind};
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::Sampling;
use elapid::layers::LayerConfig;
use elapid::layers::mamba2::{GatedNorm, Settings};
use elapid::lm::Positions;
use elapid::ops::NormKind;
use elapid::settings::{Auto, Size};
use elapid::{DType, Device, LanguageModel, Layout, embedded, evaluate};
use elapid_kernels::packed::Form;
use elapid_kernels::testing::gpu;

use crate::{close, ids};

/// Two Mamba-2 layers in sizes that the fused steps support, on the CPU.
fn mamba2(change: impl FnOnce(&mut Settings)) -> LanguageModel {
    let mut config = ModelConfig { vocab_size: 250, ..ModelConfig::mamba1("128x2").unwrap() };
    let mut settings = Settings { head_dim: Size::new(32), d_state: Size::new(64), ..Settings::default() };
    change(&mut settings);
    let layer = LayerConfig::mamba2(settings);
    config.stack.model.layers = vec!["mamba2".into()];
    config.stack.named = [("mamba2".to_owned(), Named { layer, placement: Placement::default() })].into();
    config.stack.model.initializer_range = 0.2;
    LanguageModel::new(config, 9).unwrap()
}

/// Error of a list relative to the size of another.
fn error(got: &[f32], want: &[f32]) -> f64 {
    let sum = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    (sum / want.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()).sqrt()
}

/// Steps of both decoders that read the same tokens, whatever they would choose: their logits differ by less than `most`.
fn same_steps(name: &str, mut fused: Decoder, mut plain: Decoder, most: f64) {
    let (rows, model) = (fused.capacity(), fused.model().clone());
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let (zero, draws) = (model.zero_state(1).unwrap(), Draws { sampling, ..Draws::default() });
    for decoder in [&mut fused, &mut plain] {
        for row in 0..rows as u32 {
            decoder.admit(&zero, Next::Token(u32::from(b'a') + row), &draws).unwrap();
        }
    }
    for position in 0..40 {
        fused.step().unwrap();
        plain.step().unwrap();
        let logits = |decoder: &Decoder| -> Vec<f32> {
            decoder.rows().flat_map(|row| decoder.logits(row).unwrap().unwrap()).collect()
        };
        let error = error(&logits(&fused), &logits(&plain));
        assert!(error < most, "{name}, {rows} rows at {position}: {error}");
        let tokens = plain.tokens().unwrap();
        for decoder in [&mut fused, &mut plain] {
            let rows: Vec<_> = decoder.rows().collect();
            for (row, &(_, token)) in rows.into_iter().zip(&tokens) {
                let state = decoder.release(row).unwrap();
                decoder.admit(&state, Next::Token(token), &draws).unwrap();
            }
        }
    }
}

#[test]
fn a_step_of_mamba_1_in_one_launch_is_the_operations() {
    let Some(gpu) = gpu() else { return };
    let model = embedded::model().unwrap().to(Device::Cuda(gpu), DType::Bf16).unwrap();
    for rows in [1, 5, 20] {
        let fused = Decoder::new(&model, rows).unwrap();
        assert_eq!(fused.launches(), 1);
        same_steps("Mamba-1", fused, Decoder::by_operations(&model, rows).unwrap(), 2e-2);
    }
}

type Change = fn(&mut Settings);

/// Settings of Mamba-2 that its fused steps know.
const KNOWN: [(&str, Change); 6] = [
    ("as it is", |_| ()),
    ("the norm first", |s| s.gated_norm = GatedNorm::NormFirst),
    ("no norm", |s| s.gated_norm = GatedNorm::None),
    ("two groups", |s| (s.groups, s.norm_groups) = (Size::new(2), Auto::Is(Size::new(1)))),
    ("D by channel", |s| s.skip_per_channel = true),
    ("limits", |s| (s.dt_limit_min, s.dt_limit_max) = (0.01, 0.05)),
];

/// Settings that they lack.
const LACKED: [(&str, Change); 5] = [
    ("a gated MLP", |s| s.d_ssm = Auto::Is(Size::new(128))),
    ("a bias in", |s| s.in_bias = true),
    ("a bias out", |s| s.out_bias = true),
    ("a learned start", |s| s.learned_start = true),
    ("a norm in groups", |s| (s.groups, s.norm_groups) = (Size::new(2), Auto::Auto)),
];

#[test]
fn a_step_of_mamba_2_in_few_launches_is_the_operations() {
    let Some(gpu) = gpu() else { return };
    for (name, change) in KNOWN {
        let model = mamba2(change).to(Device::Cuda(gpu), DType::Bf16).unwrap();
        for rows in [1, 2, 7, 64, 100] {
            let fused = Decoder::new(&model, rows).unwrap();
            assert!((1..20).contains(&fused.launches()), "{name}, {rows} rows: {} launches", fused.launches());
            same_steps(name, fused, Decoder::by_operations(&model, rows).unwrap(), 2e-2);
        }
    }
}

#[test]
fn the_models_of_these_tests_can_be_made() {
    let tokens = ids(20, 250);
    for (name, change) in KNOWN.into_iter().chain(LACKED) {
        let model = mamba2(change);
        let cx = model.inference(Layout::new(1, tokens.len()));
        let (logits, _) = model.logits(&cx, &tokens, model.zero_state(1).unwrap(), Positions::Last).unwrap();
        assert!(logits.value().as_slice().iter().all(|z| z.is_finite()), "{name}");
    }
}

#[test]
fn states_in_bf16_are_near_those_in_f32() {
    let Some(gpu) = gpu() else { return };
    let model = mamba2(|_| ()).to(Device::Cuda(gpu), DType::Bf16).unwrap();
    let rows: Vec<Vec<u32>> = (0..3).map(|row| ids(60 + row, 250)).collect();
    let want = evaluate::nll_of_tokens(&model, &rows, 512).unwrap().concat();
    for (dtype, most) in [(DType::F32, 1e-2), (DType::Bf16, 2e-2)] {
        let got = evaluate::nll_by_steps(&model.clone().with_states_in(dtype), &rows, 2, |_| ()).unwrap().concat();
        assert!(error(&got, &want) < most, "{dtype}: {}", error(&got, &want));
    }
    // In f32 by operations.
    let plain = mamba2(|_| ()).to(Device::Cuda(gpu), DType::F32).unwrap();
    let chunks = evaluate::nll_of_tokens(&plain, &rows, 512).unwrap().concat();
    let steps = evaluate::nll_by_steps(&plain, &rows, 2, |_| ()).unwrap().concat();
    assert!(error(&steps, &chunks) < 1e-3, "by operations: {}", error(&steps, &chunks));
    // A row alone has other launches, which know f32 only: it goes the way of several.
    let alone = evaluate::nll_by_steps(&model.with_states_in(DType::Bf16), &rows[..1], 1, |_| ()).unwrap().concat();
    assert!(error(&alone, &want[..alone.len()]) < 2e-2);
}

#[test]
fn settings_that_one_launch_lacks_go_by_operations() {
    let Some(gpu) = gpu() else { return };
    let launches = |config: &ModelConfig, change: fn(&mut ModelSettings)| {
        let mut config = config.clone();
        change(&mut config.stack.model);
        let model = LanguageModel::new(config, 0).unwrap().to(Device::Cuda(gpu), DType::Bf16).unwrap();
        Decoder::new(&model, 1).unwrap().launches()
    };
    let changes: [fn(&mut ModelSettings); 6] = [
        |model| model.embedding_scale = 2.0,
        |model| model.embedding_norm = NormKind::Rms,
        |model| model.positions = PositionKind::Sinusoidal,
        |model| model.logit_scale = 0.5,
        |model| model.logit_softcap = 30.0,
        |model| model.norm_f_eps = Auto::Is(1e-2),
    ];
    // Without a fused step a decoder has nothing to launch before its first step.
    for config in [embedded::model().unwrap().config(), mamba2(|_| ()).config()] {
        assert_eq!(launches(config, |_| {}), 1);
        for (i, change) in changes.into_iter().enumerate() {
            assert_eq!(launches(config, change), 0, "change {i}");
        }
    }
    for (name, change) in LACKED {
        let model = mamba2(change).to(Device::Cuda(gpu), DType::Bf16).unwrap();
        assert_eq!(Decoder::new(&model, 1).unwrap().launches(), 0, "{name}");
        let refused = Decoder::new(&model.with_states_in(DType::Bf16), 1).err().unwrap().to_string();
        assert!(refused.contains("states in bf16"), "{refused}");
    }
}

#[test]
fn packed_weights_are_widened_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let (model, tokens) = (embedded::model().unwrap(), ids(70, 250));
    let logits = |model: &LanguageModel| {
        let cx = model.inference(Layout::new(1, tokens.len()));
        let (logits, _) = model.logits(&cx, &tokens, model.zero_state(1).unwrap(), Positions::All).unwrap();
        logits.value().to_vec().unwrap()
    };
    for form in Form::ALL {
        let packed = model.with_weights(form).unwrap();
        let want = logits(&packed.with_weights(Form::F32).unwrap());
        close(&form.to_string(), &want, &logits(&packed.to(Device::Cuda(gpu), DType::F32).unwrap()));
    }
}
