//! The original layout, and Mamba-2 as three libraries describe it.

use serde_json::{Value, json};

use crate::checkpoint::SaveOptions;
use crate::config::ModelConfig;
use crate::layers::attention::{self, Rope};
use crate::layers::mamba2::{self, GatedNorm};
use crate::{LanguageModel, Layout};

fn parse(config: &Value) -> ModelConfig {
    ModelConfig::parse(&config.to_string(), "config.json").unwrap_or_else(|error| panic!("{error}")).0
}

fn settings<S: Clone + 'static>(config: &ModelConfig, name: &str) -> S {
    config.stack.named[name].layer.settings::<S>().unwrap().clone()
}

/// A hybrid with everything that the layout can say.
fn hybrid() -> Value {
    json!({
        "d_model": 32, "d_intermediate": 100, "n_layer": 4, "vocab_size": 71,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16, "ngroups": 2},
        "attn_layer_idx": [1, 3],
        "attn_cfg": {"causal": true, "d_conv": 4, "head_dim": 12, "num_heads": 4, "num_heads_kv": 2, "out_proj_bias": false,
            "rotary_emb_dim": 6},
        "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 16,
        "tie_embeddings": true,
    })
}

/// state-spaces/mamba2-130m and its sisters, as spec and paper count them.
#[test]
fn published_sizes_of_mamba2() {
    let sizes: [(usize, usize, u64); 5] = [
        (768, 24, 128_989_632),
        (1024, 48, 368_346_624),
        (1536, 48, 780_161_280),
        (2048, 48, 1_343_757_312),
        (2560, 64, 2_702_599_680),
    ];
    for (d, n, count) in sizes {
        let config = parse(&json!({
            "d_model": d, "d_intermediate": 0, "n_layer": n, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
            "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
            "pad_vocab_size_multiple": 16, "tie_embeddings": true,
        }));
        assert_eq!(LanguageModel::parameter_count(&config).unwrap(), count);
        assert_eq!((config.eos_token_id, config.padded_vocab_size()), (Some(0), 50288));
        assert!(config.places().are_own());
    }
}

/// state-spaces/mamba2attn-2.7b: attention with a convolution in six of 64 layers.
#[test]
fn published_hybrid() {
    let config = parse(&json!({
        "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
        "attn_layer_idx": [9, 18, 27, 37, 46, 55],
        "attn_cfg": {"causal": true, "d_conv": 4, "head_dim": 128, "num_heads": 30, "out_proj_bias": false,
            "qkv_proj_bias": false, "rotary_emb_dim": 64},
        "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": true,
    }));
    let (d, inner, heads, width) = (2560, 5120, 80, 3840);
    let mamba2 = d * (2 * inner + 2 * 128 + heads) + 5 * (inner + 256) + 3 * heads + inner + inner * d + d;
    let attention = d * 3 * width + 5 * 3 * width + width * d + d;
    let count = LanguageModel::parameter_count(&config).unwrap();
    assert_eq!(count, 58 * mamba2 + 6 * attention + 50288 * d + d);
    let attention: attention::Settings = settings(&config, "attention");
    assert_eq!((attention.d_conv.get(), attention.rope), (4, Rope::Halves));
    assert_eq!(config.stack.layer(9).0, "attention");
}

/// Every tensor of the original code, by name and shape.
#[test]
fn a_hybrid_is_saved_and_opened_in_the_original_layout() {
    let config = parse(&hybrid());
    let model = LanguageModel::new(config.clone(), 3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), &SaveOptions::default()).unwrap();
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap_or_else(|_| panic!("no {name}")).shape().to_vec();
    assert_eq!(shape("backbone.embedding.weight"), [80, 32]);
    assert_eq!(shape("backbone.layers.0.mixer.in_proj.weight"), [64 + 64 + 32 + 4, 32]);
    for (name, want) in [
        ("norm.weight", &[32][..]),
        ("mixer.in_proj.weight", &[96, 32]),
        ("mixer.in_proj.bias", &[96]),
        ("mixer.conv1d.weight", &[96, 1, 4]),
        ("mixer.conv1d.bias", &[96]),
        ("mixer.out_proj.weight", &[32, 48]),
        ("norm2.weight", &[32]),
        ("mlp.fc1.weight", &[256, 32]),
        ("mlp.fc2.weight", &[32, 128]),
    ] {
        assert_eq!(shape(&format!("backbone.layers.3.{name}")), want, "{name}");
    }
    assert_eq!(file.names().len(), 2 * (1 + 8 + 3) + 2 * 9 + 2);
    // The gate stands behind what it gates.
    let fc1 = file.tensor("backbone.layers.0.mlp.fc1.weight").unwrap().data().to_vec();
    let up = model.params().find("backbone.layers.0.ffn.up.weight").unwrap();
    let up = model.params().value(up).to_vec().unwrap();
    let halves: Vec<f32> = fc1.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    assert!(halves[..128 * 32] == up[128 * 32..] && halves[128 * 32..] == up[..128 * 32]);

    let written: Value = serde_json::from_slice(&std::fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    assert!(written.get("model_type").is_none() && written.get("elapid").is_none(), "{written}");
    let again = LanguageModel::open(dir.path()).unwrap();
    assert_eq!((again.config(), again.fingerprint().unwrap()), (model.config(), model.fingerprint().unwrap()));
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 71).collect();
    let logits = |model: &LanguageModel| {
        let cx = model.inference(Layout::new(1, 20));
        let state = model.zero_state(1).unwrap();
        model.logits(&cx, &tokens, state, crate::lm::Positions::All).unwrap().0.value().to_vec().unwrap()
    };
    assert!(logits(&again) == logits(&model));
}

/// What is read is written, and read again as the same.
#[test]
fn the_original_layout_is_written_back() {
    let changes = [
        json!({}),
        json!({"d_intermediate": 0}),
        json!({"tie_embeddings": false, "vocab_size": 50277}),
        json!({"bos_token_id": 3, "eos_token_id": 4}),
        json!({"norm_epsilon": 1e-6}),
        json!({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 32, "headdim": 16, "rmsnorm": false, "D_has_hdim": true, "bias": true}}),
        json!({"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.01, 0.2], "norm_before_gate": true, "conv_bias": false}}),
        json!({"ssm_cfg": {"layer": "Mamba1", "dt_rank": 5}}),
        json!({"attn_cfg": {"causal": true, "num_heads": 4}}),
        json!({"attn_cfg": {"causal": true, "num_heads": 4, "rotary_emb_dim": 8, "rotary_emb_interleaved": true,
            "rotary_emb_base": 500.0, "softmax_scale": 0.25, "d_conv": 0}}),
        json!({"attn_layer_idx": [0, 1, 2]}),
    ];
    for change in changes {
        let mut config = hybrid();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let first = parse(&config);
        let written = first.to_hf_json();
        assert!(written.get("model_type").is_none() && written.get("elapid").is_none(), "{change}: {written}");
        assert_eq!(parse(&written), first, "{change}");
        let outline = LanguageModel::outline(&first).unwrap();
        let places = first.places();
        outline.iter().for_each(|(name, shape)| _ = places.of(name).files(shape).unwrap());
    }
}

#[test]
fn what_the_layout_says_and_elapid_lacks_is_named() {
    for (key, value, named) in [
        ("attn_cfg", json!({"num_heads": 4}), "attn_cfg.causal"),
        ("attn_cfg", json!({"causal": true}), "attn_cfg.num_heads"),
        ("attn_cfg", json!({"causal": true, "num_heads": 4, "mlp_dim": 64}), "attn_cfg.mlp_dim"),
        ("attn_cfg", json!({"causal": true, "num_heads": 4, "window": 64}), "attn_cfg.window"),
        ("attn_layer_idx", json!([4]), "attn_layer_idx"),
        ("ssm_cfg", json!({"layer": "Mamba2", "dt_rank": 4}), "ssm_cfg.dt_rank"),
        ("ssm_cfg", json!({"layer": "Mamba3"}), "ssm_cfg.layer"),
    ] {
        let mut config = hybrid();
        config[key] = value;
        let error = ModelConfig::parse(&config.to_string(), "f").unwrap_err().to_string();
        assert!(error.starts_with(&format!("f: `{named}`: wanted ")), "{error}");
    }
}

/// The configuration of Mamba-Codestral-7B, with the keys that only the first version of its class had.
#[test]
fn codestral() {
    let text = r#"{"architectures": ["Mamba2ForCausalLM"], "bos_token_id": 0, "chunk_size": 256, "conv_kernel": 4,
        "eos_token_id": 0, "expand": 2, "head_dim": 64, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.1,
        "intermediate_size": 8192, "layer_norm_epsilon": 1e-05, "model_type": "mamba2", "n_groups": 8, "norm_before_gate": true,
        "num_heads": 128, "num_hidden_layers": 64, "pad_token_id": 0, "rescale_prenorm_residual": false,
        "residual_in_fp32": true, "rms_norm": true, "state_size": 128, "tie_word_embeddings": false, "time_step_floor": 0.0001,
        "time_step_init_scheme": "random", "time_step_limit": [0.0, Infinity], "time_step_max": 0.1, "time_step_min": 0.001,
        "time_step_rank": 256, "time_step_scale": 1.0, "torch_dtype": "bfloat16", "transformers_version": "4.44.0.dev0",
        "use_bias": false, "use_cache": true, "use_conv_bias": true, "vocab_size": 32768}"#;
    let (config, warnings) = ModelConfig::parse(text, "config.json").unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(LanguageModel::parameter_count(&config).unwrap(), 7_285_403_648);
    let mamba2: mamba2::Settings = settings(&config, "mamba2");
    assert_eq!((mamba2.groups.get(), mamba2.gated_norm), (8, GatedNorm::GateFirst));
}

/// One `model_type`, two libraries: `norm_eps` tells them apart, and what is absent is as each has it.
#[test]
fn mamba2_of_flash_linear_attention_has_its_own_defaults() {
    let theirs = parse(&json!({"model_type": "mamba2", "norm_eps": 1e-5, "time_step_min": 0.002, "rms_norm": true}));
    let mamba2: mamba2::Settings = settings(&theirs, "mamba2");
    assert_eq!((mamba2.groups.get(), mamba2.dt_min, theirs.n_layer(), theirs.d_model()), (1, 0.002, 48, 2048));
    assert_eq!((theirs.vocab_size, theirs.bos_token_id, theirs.pad_token_id), (32000, Some(1), Some(0)));
    let other = parse(&json!({"model_type": "mamba2", "layer_norm_epsilon": 1e-5}));
    assert_eq!((settings::<mamba2::Settings>(&other, "mamba2").groups.get(), other.n_layer()), (8, 64));
}
