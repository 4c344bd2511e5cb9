//! `config.json` as Hugging Face has it.

use elapid_kernels::selective_scan::Discretisation;
use serde_json::{Map, Number, Value, json};

use super::{AInit, DtInit, Mamba1Config, MixerConfig, ModelConfig, Selective};

pub(super) fn to_hf_json(config: &ModelConfig) -> Value {
    match &config.mixer {
        MixerConfig::Mamba1(mixer) => mamba1(config, mixer),
    }
}

fn mamba1(config: &ModelConfig, mixer: &Mamba1Config) -> Value {
    let d_inner = mixer.d_inner(config.d_model);
    // `transformers` computes d_inner from `expand`: where it can be right, it is.
    let whole = config.d_model != 0 && d_inner >= config.d_model && d_inner.is_multiple_of(config.d_model);
    let expand = if whole { d_inner / config.d_model } else { mixer.expand };
    let mut extra = Map::new();
    if config.pad_vocab_size_multiple != 1 {
        extra.insert("vocab_size".into(), json!(config.vocab_size));
        extra.insert("pad_vocab_size_multiple".into(), json!(config.pad_vocab_size_multiple));
    }
    if let Some(d_inner) = mixer.d_inner {
        extra.insert("d_inner".into(), json!(d_inner));
        extra.insert("expand".into(), json!(mixer.expand));
    }
    if config.rescale_prenorm_residual {
        // transformers 5.23 divides out_proj by the root of n_layer whenever it loads weights, if told in its own field.
        extra.insert("rescale_prenorm_residual".into(), json!(true));
    }
    if mixer.rule != Discretisation::default() {
        extra.insert("rule".into(), json!(mixer.rule.name()));
    }
    if mixer.selective != Selective::default() {
        extra.insert("selective".into(), json!(mixer.selective.names()));
    }
    if mixer.a_init != AInit::default() {
        extra.insert("a_init".into(), json!(mixer.a_init.name()));
    }
    if !mixer.gate {
        extra.insert("gate".into(), json!(false));
    }

    let mut json = json!({
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": config.padded_vocab_size(),
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "state_size": mixer.d_state,
        "conv_kernel": mixer.d_conv,
        "expand": expand,
        "intermediate_size": d_inner,
        "time_step_rank": mixer.dt_rank,
        "time_step_min": real(mixer.dt_min),
        "time_step_max": real(mixer.dt_max),
        "time_step_floor": real(mixer.dt_init_floor),
        "time_step_scale": real(mixer.dt_scale),
        "time_step_init_scheme": match mixer.dt_init { DtInit::Random => "random", DtInit::Constant => "constant" },
        "use_conv_bias": mixer.conv_bias,
        "use_bias": mixer.proj_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": real(config.norm_eps),
        "initializer_range": real(config.initializer_range),
        "rescale_prenorm_residual": false,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    });
    if !extra.is_empty() {
        json["elapid"] = Value::Object(extra);
    }
    json
}

/// The number with as few digits as bring the same f32 back: 1e-5, not 9.999999747378752e-6.
fn real(x: f32) -> Value {
    let short = x.to_string().parse::<f64>().ok().filter(|short| *short as f32 == x);
    Number::from_f64(short.unwrap_or(f64::from(x))).map_or(Value::Null, Value::Number)
}
