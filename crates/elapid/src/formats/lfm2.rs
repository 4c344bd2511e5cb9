//! LFM2: gated short convolutions and attention.

use super::names::{Config, Module, Result, Tensors, W};

/// The tensors of `Lfm2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    // What is called a norm of the embedding is the final norm.
    all.ends(config, ["model.embed_tokens.weight", "model.embedding_norm.weight", "lm_head.weight"]);
    for (i, kind) in config.words("layer_types")?.into_iter().enumerate() {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "operator_norm", "ffn_norm");
        if kind == "conv" {
            let mixer = layer.sub("mixer", "conv");
            all.same(&mixer, &["in_proj.weight", "out_proj.weight"]);
            all.renamed(&mixer, &[("conv1d.weight", "conv.weight")]);
            if config.flag("conv_bias") {
                all.same(&mixer, &["in_proj.bias", "out_proj.bias"]);
                all.renamed(&mixer, &[("conv1d.bias", "conv.bias")]);
            }
        } else {
            let mixer = layer.sub("mixer", "self_attn");
            all.attention(&mixer, config.qkv()?, false, "out_proj", false);
            all.renamed(&mixer, &[("q_norm.weight", "q_layernorm.weight"), ("k_norm.weight", "k_layernorm.weight")]);
        }
        all.gated_mlp(&layer.sub("ffn", "feed_forward"), width(config)?, W, false);
    }
    Ok(all)
}

/// Width of the MLP: two thirds of the configured one, times a factor, rounded up.
fn width(config: &Config<'_>) -> Result<usize> {
    let size = config.size("intermediate_size")?;
    if !config.flag("block_auto_adjust_ff_dim") {
        return Ok(size);
    }
    let factor = config.0.get("block_ffn_dim_multiplier").and_then(serde_json::Value::as_f64).unwrap_or(1.0);
    let scaled = (factor * (2 * size / 3) as f64) as usize;
    Ok(scaled.next_multiple_of(config.size("block_multiple_of")?.max(1)))
}
