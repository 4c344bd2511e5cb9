//! Mixtral: Mistral with experts.

use super::names::{Config, Module, Result, Tensors, W};

/// The tensors of `MixtralForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    let (experts, f) = (config.size("num_local_experts")?, config.size("intermediate_size")?);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, false, "o_proj", false);
        let moe = layer.sub("ffn", "block_sparse_moe");
        all.renamed(&moe, &[("router.weight", "gate.weight")]);
        all.experts(&moe, experts, f, W);
    }
    Ok(all)
}
