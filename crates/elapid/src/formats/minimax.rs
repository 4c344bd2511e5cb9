//! MiniMax: lightning attention, whose q, k and v stand together head by head, and attention; experts.

use super::names::{Config, Module, Result, Tensors, W};

/// The tensors of `MiniMaxForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    let (experts, f) = (config.size("num_local_experts")?, config.size("intermediate_size")?);
    for (i, kind) in config.words("layer_types")?.into_iter().enumerate() {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        let mixer = layer.sub("mixer", "self_attn");
        if kind == "linear_attention" {
            let heads = config.size("num_attention_heads")?;
            let dim = config.qkv()?[0].checked_div(heads).unwrap_or_default();
            all.put(&mixer, "qkv.weight", mixer.file("qkv_proj.weight").grouped(heads, &[dim, dim, dim]));
            all.same(&mixer, &["norm.weight", "out_proj.weight"]);
            all.renamed(&mixer, &[("gate.weight", "output_gate.weight")]);
        } else {
            all.attention(&mixer, config.qkv()?, false, "o_proj", false);
        }
        let moe = layer.sub("ffn", "block_sparse_moe");
        all.renamed(&moe, &[("router.weight", "gate.weight")]);
        all.experts(&moe, experts, f, W);
    }
    Ok(all)
}

/// Buffers that follow from the configuration.
pub(super) fn ignores(name: &str) -> bool {
    ["slope_rate", "query_decay", "key_decay", "diagonal_decay"].iter().any(|buffer| name.ends_with(buffer))
}
