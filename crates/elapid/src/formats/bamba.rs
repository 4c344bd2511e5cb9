//! Bamba: Mamba-2 and attention.

use super::names::{Config, Module, PROJ, Result, Tensors};

/// The tensors of `BambaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"]);
    let attention = config.sizes("attn_layer_indices")?;
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "pre_ff_layernorm");
        if attention.contains(&i) {
            let bias = config.flag("attention_bias");
            all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, bias, "o_proj", bias);
        } else {
            all.mamba2(config, &layer.sub("mixer", "mamba"));
        }
        let f = config.size("intermediate_size")?;
        all.gated_mlp(&layer.sub("ffn", "feed_forward"), f, PROJ, config.flag("mlp_bias"));
    }
    Ok(all)
}
