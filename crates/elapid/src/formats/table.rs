//! The formats that are known.

use serde_json::{Map, Value};

use super::format::Format;
use super::names::{Config, Result, Tensors};
use super::{
    bamba, falcon_h1, falcon_mamba, fla, fla_mamba2, gla, gpt_neox, gpt2, granite_moe_hybrid, hgrn2, jamba,
    kimi_linear, lfm2, linear_attn, llama, mamba, mamba2, minimax, mistral, mixtral, nemotron_h, olmo_hybrid, qwen2,
    qwen2_moe, qwen3_next, recurrent_gemma, retnet, rwkv, state_spaces, xlstm, zamba, zamba2,
};

const fn format(model_type: &'static str, tensors: fn(&Config<'_>) -> Result<Tensors>) -> Format {
    Format { model_type, tensors, ignores: |_| false, is: |_| true, naming: &[], codec: None }
}

/// All that are known, by `model_type`.
pub static FORMATS: &[Format] = &[
    Format { codec: Some(bamba::CODEC), ..format("bamba", bamba::tensors) },
    format("falcon_h1", falcon_h1::tensors),
    Format { codec: Some(falcon_mamba::CODEC), ..format("falcon_mamba", mamba::tensors) },
    Format { naming: fla::NAMING, codec: Some(gla::CODEC), ..format("gla", gla::tensors) },
    Format { ignores: gpt2::ignores, codec: Some(gpt2::CODEC), ..format("gpt2", gpt2::tensors) },
    Format { ignores: gpt_neox::ignores, codec: Some(gpt_neox::CODEC), ..format("gpt_neox", gpt_neox::tensors) },
    format("granitemoehybrid", granite_moe_hybrid::tensors),
    Format { codec: Some(hgrn2::CODEC), ..format("hgrn2", hgrn2::tensors) },
    Format { codec: Some(jamba::CODEC), ..format("jamba", jamba::tensors) },
    format("kimi_linear", kimi_linear::tensors),
    format("lfm2", lfm2::tensors),
    Format { codec: Some(linear_attn::CODEC), ..format("linear_attn", linear_attn::tensors) },
    Format { ignores: llama::ignores, codec: Some(llama::CODEC), ..format("llama", llama::tensors) },
    Format { codec: Some(mamba::CODEC), ..format("mamba", mamba::tensors) },
    Format { is: |map| !fla_mamba2::is(map), codec: Some(mamba2::CODEC), ..format("mamba2", mamba2::tensors) },
    Format { is: fla_mamba2::is, codec: Some(fla_mamba2::CODEC), ..format("mamba2", fla_mamba2::tensors) },
    Format { ignores: minimax::ignores, ..format("minimax", minimax::tensors) },
    Format { codec: Some(mistral::CODEC), ..format("mistral", llama::tensors) },
    Format { codec: Some(mixtral::CODEC), ..format("mixtral", mixtral::tensors) },
    Format { ignores: nemotron_h::ignores, ..format("nemotron_h", nemotron_h::tensors) },
    format("olmo_hybrid", olmo_hybrid::tensors),
    Format { codec: Some(qwen2::CODEC), ..format("qwen2", qwen2::tensors) },
    Format { codec: Some(qwen2_moe::CODEC), ..format("qwen2_moe", qwen2_moe::tensors) },
    format("qwen3_next", qwen3_next::tensors),
    Format { codec: Some(recurrent_gemma::CODEC), ..format("recurrent_gemma", recurrent_gemma::tensors) },
    Format { naming: fla::NAMING, codec: Some(retnet::CODEC), ..format("retnet", retnet::tensors) },
    format("rwkv", rwkv::tensors),
    format("xlstm", xlstm::tensors),
    format("zamba", zamba::tensors),
    format("zamba2", zamba2::tensors),
];

/// The format of a configuration that can be read: by its `model_type`, or by the class of models it names, or the
/// original code's.
pub(super) fn readable(map: &Map<String, Value>) -> Option<&'static Format> {
    let architectures = map.get("architectures").and_then(Value::as_array);
    let is_mamba = |name: &Value| name == "MambaForCausalLM" || name == "MambaModel";
    let named = match map.get("model_type").and_then(Value::as_str) {
        Some(model_type) => Some(model_type),
        None if architectures.is_some_and(|list| list.iter().any(is_mamba)) => Some("mamba"),
        None => None,
    };
    let hugging_face = map.contains_key("hidden_size") || !map.contains_key("d_model");
    match named {
        Some(model_type) if hugging_face => {
            let fits = |format: &&Format| format.model_type == model_type && format.codec.is_some() && (format.is)(map);
            FORMATS.iter().find(fits)
        }
        None if hugging_face => None,
        _ => Some(&state_spaces::FORMAT),
    }
}
