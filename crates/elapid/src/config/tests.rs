use proptest::prelude::*;
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::*;
use crate::LanguageModel;
use crate::layers::KINDS;
use crate::layers::mamba1::{AInit, DtInit, Rule, Selective, Settings};
use crate::ops::Discretisation;
use crate::settings::{Auto, Count, Problem};

const TINY: &str = include_str!("../../../../golden/mamba1-tiny/config.json");
const UNTIED: &str = include_str!("../../../../golden/mamba1-untied/config.json");
const ORIGINAL: &str = r#"{"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
    "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8}"#;

fn parse(text: &str) -> ModelConfig {
    let (config, warnings) = ModelConfig::parse(text, "config.json").unwrap();
    assert_eq!(warnings, [""; 0]);
    config
}

/// The configuration with one field changed, at a path such as `ssm_cfg.layer`.
fn with(text: &str, path: &str, value: Value) -> String {
    let mut json: Value = serde_json::from_str(text).unwrap();
    match path.split_once('.') {
        Some((outer, inner)) => json[outer][inner] = value,
        None => json[path] = value,
    }
    json.to_string()
}

fn mamba1(config: &ModelConfig) -> &Settings {
    config.stack.named["mamba1"].layer.settings().unwrap()
}

fn mamba1_mut(config: &mut ModelConfig) -> &mut Settings {
    config.stack.settings_mut("mamba1").unwrap()
}

fn model(config: &ModelConfig) -> &ModelSettings {
    &config.stack.model
}

fn round_trip(config: &ModelConfig) {
    assert_eq!(&parse(&config.to_hf_json().to_string()), config);
    assert_eq!(&parse(&format!("{:#}", config.to_hf_json())), config);
}

/// The stack of a text's `[model]`.
pub(super) fn read_toml(text: &str) -> Result<StackConfig, Problem> {
    let mut table = DeTable::parse(text).unwrap().into_inner();
    let (_, value) = table.remove_entry("model").unwrap();
    let span = value.span();
    let DeValue::Table(model) = value.into_inner() else { panic!("no table") };
    StackConfig::read("model", Spanned::new(span, DeValue::Table(model)))
}

#[test]
fn parse_hugging_face() {
    let tiny = parse(TINY);
    // The rank, 3, is what "auto" is.
    let mut wanted = ModelConfig { vocab_size: 64, ..ModelConfig::mamba1("48x2").unwrap() };
    (wanted.bos_token_id, wanted.eos_token_id, wanted.pad_token_id) = (Some(0), Some(0), Some(0));
    let settings = &mut wanted.stack.model;
    (settings.initializer_range, settings.rescale_prenorm_residual) = (0.1, false);
    assert_eq!(tiny, wanted);
    let untied = parse(UNTIED);
    assert!(!model(&untied).tie_embeddings && mamba1(&untied).proj_bias && mamba1(&untied).conv_bias);
    let mixer = mamba1(&untied);
    assert_eq!((mixer.d_state.get(), mixer.d_conv.get(), mixer.expand.get(), mixer.dt_rank(40)), (8, 3, 3, 5));
    assert_eq!((untied.vocab_size, untied.padded_vocab_size(), mixer.d_inner(untied.d_model())), (50, 50, 120));
}

#[test]
fn parse_hugging_face_defaults() {
    let config = parse(r#"{"model_type": "mamba"}"#);
    assert_eq!((config.d_model(), config.n_layer(), config.vocab_size), (768, 32, 50280));
    assert_eq!(mamba1(&config), &Settings::default());
    assert_eq!((model(&config).initializer_range, model(&config).rescale_prenorm_residual), (0.1, false));
}

/// The files of the published models carry keys of both layouts, and `intermediate_size` is what the weights have.
#[test]
fn parse_keys_of_both_layouts() {
    let text = r#"{"architectures": ["MambaForCausalLM"], "d_inner": 1536, "d_model": 768, "expand": 2, "n_layer": 24,
        "fused_add_norm": true, "hidden_act": "silu", "hidden_size": 768, "intermediate_size": 1536, "rms_norm": true,
        "model_type": "mamba", "num_hidden_layers": 24, "pad_vocab_size_multiple": 8, "ssm_cfg": {},
        "time_step_rank": "auto", "torch_dtype": "float32", "vocab_size": 50280, "time_step_limit": [0.0, Infinity]}"#;
    assert_eq!(LanguageModel::parameter_count(&parse(text)).unwrap(), 129_135_360);
    let wide = parse(&text.replace("Infinity", "1e99").replace(r#""expand": 2"#, r#""expand": 16"#));
    assert_eq!((mamba1(&wide).expand.get(), mamba1(&wide).d_inner), (2, Auto::Auto));
    let (odd, warnings) = ModelConfig::parse(&text.replace("1536", "1000"), "f").unwrap();
    assert_eq!((mamba1(&odd).d_inner, warnings.len()), (Auto::Is(Size::new(1000)), 0));
    parse(&text.replace("Infinity", r#"{"__float__": "Infinity"}"#));
    for (from, to, field) in [
        (r#""n_layer": 24"#, r#""n_layer": 23"#, "`n_layer`: wanted 24, as `num_hidden_layers` says, got 23"),
        (r#""d_inner": 1536"#, r#""d_inner": 768"#, "`d_inner`: wanted 1536, as `intermediate_size` says, got 768"),
        ("Infinity", "0.1", "`time_step_limit`: wanted [0, Infinity]"),
    ] {
        let error = ModelConfig::parse(&text.replace(from, to), "f").unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

/// Synonyms used by other programs.
#[test]
fn synonyms_are_read() {
    let eps = |key: &str, text: &str| model(&parse(&with(text, key, json!(0.5)))).norm_eps;
    let bare = {
        let mut json: Value = serde_json::from_str(TINY).unwrap();
        for key in ["layer_norm_epsilon", "hidden_act", "num_hidden_layers", "state_size", "time_step_rank"] {
            json.as_object_mut().unwrap().remove(key);
        }
        json.to_string()
    };
    for key in ["layer_norm_epsilon", "norm_eps", "norm_epsilon", "rms_norm_eps", "layer_norm_eps", "layernorm_epsilon"]
    {
        assert_eq!(eps(key, &bare), 0.5, "{key}");
    }
    for key in ["norm_epsilon", "norm_eps", "rms_norm_eps", "layer_norm_epsilon"] {
        assert_eq!(eps(key, ORIGINAL), 0.5, "{key}");
    }
    for (key, value) in [("hidden_act", "swish"), ("hidden_act", "silu"), ("hidden_activation", "swish")] {
        parse(&with(&bare, key, json!(value)));
    }
    let config = parse(&with(&with(&with(&bare, "n_layers", json!(5)), "d_state", json!(6)), "dt_rank", json!(7)));
    assert_eq!((config.n_layer(), mamba1(&config).d_state.get(), mamba1(&config).dt_rank(48)), (5, 6, 7));
    let config = parse(&with(&bare, "norm_eps", Value::Null));
    assert_eq!(model(&config).norm_eps, 1e-5);
    // The same value twice is no contradiction; another one is.
    parse(&with(&with(TINY, "norm_eps", json!(1e-5)), "activation", json!("swish")));
    let error = ModelConfig::parse(&with(TINY, "norm_eps", json!(0.5)), "f").unwrap_err().to_string();
    assert!(error.contains("`norm_eps`: wanted 0.00001, as `layer_norm_epsilon` says, got 0.5"), "{error}");
    // An error uses the name in the file.
    for value in [json!(-1), json!("x")] {
        let error = ModelConfig::parse(&with(&bare, "norm_eps", value), "f").unwrap_err().to_string();
        assert!(error.contains("`norm_eps`: wanted"), "{error}");
    }
}

/// Keys that flash-linear-attention and trainers write besides the model itself.
#[test]
fn bookkeeping_is_ignored_and_what_may_change_the_model_is_not() {
    let harmless = [
        ("fuse_norm", json!(true)),
        ("fuse_cross_entropy", json!(true)),
        ("fuse_linear_cross_entropy", json!(false)),
        ("fused_add_norm", json!(true)),
        ("use_l2warp", json!(false)),
        ("_attn_implementation_autoset", json!(true)),
        ("unsloth_version", json!("2025.1")),
        ("transformers_version", json!("5.23.0")),
        ("temperature", json!(0.7)),
        ("attn", Value::Null),
        ("rope_scaling", Value::Null),
        ("auto_map", json!({"AutoModel": "x"})),
    ];
    for (key, value) in &harmless {
        for text in [TINY, ORIGINAL] {
            let mut json: Value = serde_json::from_str(text).unwrap();
            json[key] = value.clone();
            parse(&json.to_string());
        }
    }
    for (key, value) in [
        ("attn", json!({"layers": [1]})),
        ("logit_scale", json!(0.5)),
        ("mixer_rms_eps", json!(1e-6)),
        ("n_groups", json!(8)),
        ("scale_embeddings", json!(false)),
    ] {
        for text in [TINY, ORIGINAL] {
            let error = ModelConfig::parse(&with(text, key, value.clone()), "f").unwrap_err().to_string();
            assert!(error.contains(&format!("f: `{key}`: wanted a key that elapid knows")), "{error}");
            assert!(error.contains("if not, remove it"), "{error}");
        }
    }
}

#[test]
fn ssm_cfg_beside_other_keys_must_agree() {
    let parse_with = |cfg: Value| ModelConfig::parse(&with(TINY, "ssm_cfg", cfg), "f");
    for cfg in [json!({}), Value::Null, json!({"layer": "Mamba1", "d_state": 16, "expand": 2, "dt_rank": "auto"})] {
        parse_with(cfg).unwrap();
    }
    for (cfg, key) in [
        (json!({"layer": "Mamba2"}), "layer"),
        (json!({"d_state": 64}), "d_state"),
        (json!({"expand": 4}), "expand"),
        (json!({"dt_rank": 2}), "dt_rank"),
        (json!({"headdim": 2}), "headdim"),
    ] {
        let error = parse_with(cfg).unwrap_err().to_string();
        assert!(error.contains(&format!("`ssm_cfg.{key}`: wanted")), "{error}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped_and_a_key_twice_is_an_error() {
    assert_eq!(parse(&format!("\u{feff}{TINY}")), parse(TINY));
    let text = r#"{"model_type": "mamba", "x": NaN}"#;
    ModelConfig::parse(&format!("\u{feff}{text}"), "f").unwrap();
    for twice in [r#""hidden_size": 8, "hidden_size": 16"#, r#""elapid": {"rule": 1, "rule": 2}"#] {
        for nan in ["", r#", "x": NaN"#] {
            let text = format!(r#"{{"model_type": "mamba", {twice}{nan}}}"#);
            let error = ModelConfig::parse(&text, "f").unwrap_err().to_string();
            assert!(error.contains("twice in one object"), "{error}");
        }
    }
}

#[test]
fn parse_original() {
    let config = parse(ORIGINAL);
    assert_eq!(config, ModelConfig::mamba1("130m").unwrap());
    assert_eq!(config.padded_vocab_size(), 50280);
    let text = with(
        ORIGINAL,
        "ssm_cfg",
        json!({"layer": "Mamba1", "d_state": 8, "dt_rank": "auto", "bias": true,
        "dt_init": "constant", "dt_min": 0.01, "conv_bias": false, "use_fast_path": false}),
    );
    let text = with(&with(&text, "tie_embeddings", json!(false)), "vocab_size", json!(100));
    let config = parse(&text);
    let mixer = mamba1(&config);
    assert_eq!((mixer.d_state.get(), mixer.dt_rank(768), mixer.proj_bias, mixer.conv_bias), (8, 48, true, false));
    assert_eq!((mixer.dt_init, mixer.dt_min), (DtInit::Constant, 0.01));
    assert_eq!((model(&config).tie_embeddings, config.padded_vocab_size(), config.eos_token_id), (false, 104, None));
}

/// Totals as published, from the shapes of the published weights.
#[test]
fn parameter_count() {
    let totals = [
        ("130m", 129_135_360),
        ("370M", 371_516_416),
        ("mamba-790m", 793_204_224),
        ("1.4b", 1_372_178_432),
        ("2.8b", 2_768_345_600),
    ];
    for (name, total) in totals {
        assert_eq!(LanguageModel::parameter_count(&ModelConfig::mamba1(name).unwrap()).unwrap(), total, "{name}");
    }
}

#[test]
fn mamba1_by_name() {
    let config = ModelConfig::mamba1("256x8").unwrap();
    assert_eq!(
        (config.d_model(), config.n_layer(), config.vocab_size, mamba1(&config).dt_rank(256)),
        (256, 8, 256, 16)
    );
    for name in
        ["", "x", "256x", "x8", "0x8", "8x0", "-1x2", "131m", "99999999999999999999x1", "18446744073709551615x1"]
    {
        let error = ModelConfig::mamba1(name).unwrap_err().to_string();
        assert!(error.contains("wanted"), "{error}");
    }
}

#[test]
fn round_trips() {
    round_trip(&ModelConfig::default());
    for text in [TINY, UNTIED, ORIGINAL] {
        round_trip(&parse(text));
    }
    for d_inner in [256, 100, 128, 384] {
        let mut config = ModelConfig::default();
        mamba1_mut(&mut config).d_inner = Auto::Is(Size::new(d_inner));
        round_trip(&config);
    }
    for rule in Discretisation::ALL {
        let mut config = ModelConfig { vocab_size: 50277, ..ModelConfig::default() };
        config.stack.model.pad_vocab_multiple = Size::new(8);
        (mamba1_mut(&mut config).discretisation, mamba1_mut(&mut config).expand) = (Rule(rule), Size::new(3));
        assert_eq!(config.to_hf_json()["vocab_size"], 50280);
        round_trip(&config);
    }
}

#[test]
fn numbers_are_written_as_people_write_them() {
    let json = ModelConfig::default().to_hf_json();
    assert_eq!(
        (json["layer_norm_epsilon"].to_string(), json["time_step_max"].to_string()),
        ("0.00001".into(), "0.1".into())
    );
}

/// With its own field set, transformers 5.23 rescales `out_proj` on every load.
#[test]
fn transformers_is_not_told_to_rescale() {
    let config = ModelConfig::default();
    assert!(model(&config).rescale_prenorm_residual);
    let json = config.to_hf_json();
    assert_eq!(
        (&json["rescale_prenorm_residual"], &json["elapid"]["model"]["rescale_prenorm_residual"]),
        (&json!(false), &json!(true))
    );
    round_trip(&config);
}

#[test]
fn own_keys_that_contradict_are_warned_of() {
    let mut config = ModelConfig { vocab_size: 50, ..ModelConfig::default() };
    config.stack.model.pad_vocab_multiple = Size::new(8);
    let text = with(&config.to_hf_json().to_string(), "vocab_size", json!(60));
    let (config, warnings) = ModelConfig::parse(&text, "f").unwrap();
    assert_eq!((config.vocab_size, model(&config).pad_vocab_multiple.get(), warnings.len()), (60, 1, 1));
}

#[test]
fn token_ids() {
    let lists = with(&with(TINY, "eos_token_id", json!([7, 8])), "bos_token_id", json!([3, 4]));
    let (config, warnings) = ModelConfig::parse(&with(&lists, "pad_token_id", json!(-1)), "f").unwrap();
    assert_eq!((config.bos_token_id, config.eos_token_id, config.pad_token_id), (Some(3), Some(7), None));
    assert!(warnings.len() == 1 && warnings[0].contains("bos_token_id"), "{warnings:?}");
    assert_eq!(parse(&with(TINY, "eos_token_id", Value::Null)).eos_token_id, None);
}

/// Every error names file, field, what was wanted, and what is there.
#[test]
fn errors() {
    let hugging_face = [
        ("model_type", json!("bloom")),
        ("model_type", json!("zamba")),
        ("model_type", json!(null)),
        ("hidden_act", json!("gelu")),
        ("rms_norm", json!(false)),
        ("quantization_config", json!({"bits": 4})),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-1)),
        ("hidden_size", json!(1.5)),
        ("hidden_size", json!("48")),
        ("hidden_size", json!(true)),
        ("num_hidden_layers", json!(1e9)),
        ("state_size", json!(0)),
        ("conv_kernel", json!(0)),
        ("intermediate_size", json!(0)),
        ("time_step_rank", json!("automatic")),
        ("time_step_min", json!(0.2)),
        ("time_step_max", json!(null)),
        ("time_step_scale", json!(1e300)),
        ("time_step_init_scheme", json!("zero")),
        ("layer_norm_epsilon", json!(0)),
        ("vocab_size", json!(0)),
        ("tie_word_embeddings", json!(1)),
        ("eos_token_id", json!(64)),
        ("eos_token_id", json!("</s>")),
        ("elapid", json!(1)),
        ("elapid.rule", json!("euler")),
        ("elapid.news", json!(1)),
    ];
    let original = [
        ("rms_norm", json!(false)),
        ("d_intermediate", json!(-1)),
        ("attn_layer_idx", json!([24])),
        ("ssm_cfg", json!([])),
        ("ssm_cfg.layer", json!("Mamba3")),
        ("ssm_cfg.headdim", json!(64)),
        ("ssm_cfg.dt_rank", json!([])),
        ("ssm_cfg.expand", json!(1.5)),
        ("pad_vocab_size_multiple", json!(0)),
        ("vocab_size", json!(u64::MAX)),
        ("d_model", json!(null)),
        ("n_layer", json!({})),
    ];
    let all = hugging_face.map(|case| (TINY, case)).into_iter().chain(original.map(|case| (ORIGINAL, case)));
    for (text, (field, value)) in all {
        let error = ModelConfig::parse(&with(text, field, value.clone()), "dir/config.json").unwrap_err().to_string();
        println!("{error}");
        let start = format!("dir/config.json: `{field}`: wanted ");
        assert!(error.starts_with(&start), "{field}: {error}");
        assert!(error.contains("got "), "{field}: {error}");
    }
    for text in ["", "[]", "{", "{}", "null", r#"{"hidden_size": 5}"#, r#"{"d_model": 5}"#, "NaN", "{a: NaN,"] {
        ModelConfig::parse(text, "f").unwrap_err();
    }
}

#[test]
fn nesting_is_bounded() {
    for open in ["[", "{\"a\":", "{a:"] {
        let text = format!("{}NaN", open.repeat(200_000));
        ModelConfig::parse(&text, "f").unwrap_err();
        ModelConfig::parse(&open.repeat(200_000), "f").unwrap_err();
    }
}

#[test]
fn ablations_that_are_wrong_are_named() {
    for (key, value) in
        [("selective", json!(["D"])), ("selective", json!("delta")), ("a_init", json!("ones")), ("gate", json!(1))]
    {
        let mut config = ModelConfig::default().to_hf_json();
        config["elapid"] = json!({ key: value });
        let error = ModelConfig::parse(&config.to_string(), "f").unwrap_err().to_string();
        assert!(error.contains(&format!("`elapid.{key}`")), "{error}");
    }
}

#[test]
fn sizes_beyond_memory_are_found_without_memory() {
    let largest = Size::new(usize::MAX);
    let break_it: [fn(&mut ModelConfig, Size); 3] = [
        |c, x| (c.stack.model.d_model, c.vocab_size) = (x, x.get()),
        |c, x| (c.stack.model.d_model, mamba1_mut(c).expand) = (x, x),
        |c, x| (mamba1_mut(c).d_state, mamba1_mut(c).d_inner) = (x, Auto::Is(x)),
    ];
    for change in break_it {
        let mut config = ModelConfig::default();
        change(&mut config, largest);
        config.validate().unwrap();
        let bytes = LanguageModel::parameter_count(&config).map(|count| 4 * u128::from(count));
        assert!(bytes.is_err() || bytes.is_ok_and(|bytes| bytes > 1 << 40));
    }
    let config = ModelConfig { vocab_size: usize::MAX, ..ModelConfig::default() };
    config.validate().unwrap_err();
}

/// A model that no other format can express is written in elapid's own schema only.
#[test]
fn a_stack_of_ones_own_is_written_and_read() {
    let mut config = ModelConfig { vocab_size: 300, bos_token_id: Some(3), ..ModelConfig::default() };
    config.stack.model.layers = vec!["near".into(), "mamba1".into()];
    let placement = Placement { place: Place::Output, scale: 0.5, share: true, ..Placement::default() };
    let layer = crate::layers::LayerConfig::mamba1(Settings { d_state: Size::new(3), ..Settings::default() });
    config.stack.named.insert("near".into(), Named { layer, placement });
    let json = config.to_hf_json();
    assert_eq!(json["model_type"], "elapid");
    assert!(!config.is_portable() && ModelConfig::default().is_portable());
    round_trip(&config);
    let broken = with(&json.to_string(), "elapid", json!({"vocab_size": 300, "model": {"d_modell": 4}}));
    let error = ModelConfig::parse(&broken, "f").unwrap_err().to_string();
    assert!(error.contains("`elapid.model.d_modell`: there is no such setting"), "{error}");
}

/// Kinds that do not exist are reported together, and only if nothing else is wrong.
#[test]
fn unknown_kinds_come_last() {
    let text = |rest: &str| {
        format!(
            "[model]\nlayers = [\"mamba9\", \"a\"]\nffn = [\"b\", \"none\"]\n{rest}\n[model.layer.a]\nkind = \"s9\"\n"
        )
    };
    let problem = read_toml(&text("")).unwrap_err();
    let known = KINDS.join(", ");
    let what = format!("`b`, `mamba9`, `s9` (a) are no kinds of layers; there are {known}");
    assert_eq!((problem.field.as_str(), problem.what), ("model.layer", what));
    assert!(problem.span.is_some_and(|span| span.start > 50), "the table of `a`");
    for (wrong, field) in [
        ("norm_epsilon = 1", "model.norm_epsilon"),
        ("norm_eps = -1", "model.norm_eps"),
        ("n_layer = 1", "model.layers"),
        ("[model.layer.mamba1]\nd_stat = 1", "model.layer.mamba1.d_stat"),
        ("[model.layer.attention]\nheads = 3", "model.layer.attention.heads"),
        ("[model.layer.c]\nkind = \"s9\"\nplace = \"above\"", "model.layer.c.place"),
    ] {
        assert_eq!(read_toml(&text(wrong)).unwrap_err().field, field, "{wrong}");
    }
    let one = read_toml("[model]\nffn = [\"mlq\"]").unwrap_err();
    assert_eq!((one.field.as_str(), one.what), ("model.ffn", format!("`mlq` is no kind of layer; there are {known}")));
    assert!(one.fix.contains("did you mean `mlp`?"), "{}", one.fix);
}

proptest! {
    #[test]
    fn round_trips_of_any(
        (vocab, multiple, d_model, n_layer) in (1..70_000_usize, 1..300_usize, 1..5000_usize, 1..200_usize),
        (d_state, d_conv, expand, dt_rank) in (1..300_usize, 1..20_usize, 1..9_usize, 0..300_usize),
        (selective, a_init, gate) in (any::<[bool; 3]>(), 0..3_usize, any::<bool>()),
        d_inner in proptest::option::of(1..9000_usize),
        bits in any::<[bool; 6]>(),
        reals in any::<[u32; 4]>(),
        rule in 0..3_usize,
    ) {
        let real = |i: usize, or: f32| {
            let x = f32::from_bits(reals[i]).abs();
            if x.is_finite() && x > 0.0 { x } else { or }
        };
        let mixer = Settings {
            d_state: Size::new(d_state),
            d_conv: Size::new(d_conv),
            expand: Size::new(expand),
            d_inner: d_inner.map_or(Auto::Auto, |n| Auto::Is(Size::new(n))),
            dt_rank: Auto::Is(Count::new(dt_rank)),
            gate,
            selective: Selective { delta: selective[0], b: selective[1], c: selective[2] },
            a_init: AInit::ALL[a_init],
            conv_bias: bits[0],
            proj_bias: bits[1],
            dt_min: real(0, 1e-3).min(real(1, 0.1)),
            dt_max: real(0, 1e-3).max(real(1, 0.1)),
            dt_init_floor: real(2, 1e-4),
            dt_scale: real(3, 1.0),
            dt_init: if bits[2] { DtInit::Random } else { DtInit::Constant },
            discretisation: Rule(Discretisation::ALL[rule]),
            ..Settings::default()
        };
        let mut config = ModelConfig {
            vocab_size: vocab,
            bos_token_id: None,
            eos_token_id: Some(vocab as u32 - 1),
            pad_token_id: bits[0].then_some(0),
            ..ModelConfig::default()
        };
        *mamba1_mut(&mut config) = mixer;
        let settings = &mut config.stack.model;
        (settings.d_model, settings.n_layer) = (Size::new(d_model), Size::new(n_layer));
        (settings.pad_vocab_multiple, settings.norm_eps) = (Size::new(multiple), real(2, 1e-5));
        (settings.tie_embeddings, settings.rescale_prenorm_residual) = (bits[3], bits[5]);
        settings.initializer_range = real(3, 0.02);
        round_trip(&config);
    }

    /// Bytes changed, removed or inserted: an error or a possible configuration, never a panic.
    #[test]
    fn mutations_do_not_panic(
        which in 0..3_usize,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
        nan in any::<bool>(),
    ) {
        let mut bytes = [TINY, UNTIED, ORIGINAL][which].as_bytes().to_vec();
        if nan {
            bytes.splice(1..1, *b"\"x\": NaN, ");
        }
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte & 0x7f),
                2 => bytes[at] = b'0' + byte % 10,
                _ => { bytes.remove(at); }
            }
        }
        if let Ok((config, _)) = ModelConfig::parse(&String::from_utf8_lossy(&bytes), "f") {
            config.validate().unwrap();
            round_trip(&config);
        }
    }
}
