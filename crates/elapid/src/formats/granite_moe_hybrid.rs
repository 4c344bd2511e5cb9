//! Granite 4: Mamba-2 and attention, experts beside an MLP in every layer. Its experts are stacked, gate above up.

use super::names::{Config, Module, Result, Tensors};

/// The tensors of `GraniteMoeHybridForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    for (i, kind) in config.words("layer_types")?.into_iter().enumerate() {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        if kind == "full_attention" || kind == "attention" {
            let bias = config.flag("attention_bias");
            all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, bias, "o_proj", bias);
        } else {
            all.mamba2(config, &layer.sub("mixer", "mamba"));
        }
        if config.size_or("num_local_experts", || Ok(0))? > 0 {
            all.renamed(
                &layer.sub("ffn", "block_sparse_moe"),
                &[
                    ("experts.up", "input_linear.weight"),
                    ("experts.down", "output_linear.weight"),
                    ("router.weight", "router.layer.weight"),
                ],
            );
        }
        all.renamed(
            &layer.sub("ffn.shared", "shared_mlp"),
            &[("up.weight", "input_linear.weight"), ("down.weight", "output_linear.weight")],
        );
    }
    Ok(all)
}
