//! Qwen2-MoE: attention with biases of q, k and v; experts beside one that all tokens share, behind a gate.

use super::names::{Config, Module, PROJ, Result, Tensors};

/// The tensors of `Qwen2MoeForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        let bias = config.0.get("qkv_bias").and_then(serde_json::Value::as_bool).unwrap_or(true);
        all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, bias, "o_proj", false);
        feed_forward(config, i, &layer.sub("ffn", "mlp"), &mut all)?;
    }
    Ok(all)
}

/// The MLP or the experts of layer i, as Qwen3-Next has them too.
pub(super) fn feed_forward(config: &Config<'_>, i: usize, ffn: &Module, all: &mut Tensors) -> Result<()> {
    let dense = config.sizes("mlp_only_layers")?.contains(&i);
    if dense || !(i + 1).is_multiple_of(config.size_or("decoder_sparse_step", || Ok(1))?.max(1)) {
        all.gated_mlp(ffn, config.size("intermediate_size")?, PROJ, false);
        return Ok(());
    }
    all.renamed(ffn, &[("router.weight", "gate.weight"), ("shared_gate.weight", "shared_expert_gate.weight")]);
    all.experts(ffn, config.size("num_experts")?, config.size("moe_intermediate_size")?, PROJ);
    let shared = config.size("shared_expert_intermediate_size")?;
    all.gated_mlp(&ffn.sub("shared", "shared_expert"), shared, PROJ, false);
    Ok(())
}
