//! Jamba: Mamba-1 with norms of Δ, B and C, attention in one layer of a period, experts in some.

use super::names::{Config, MAMBA1, Module, PROJ, Result, Tensors};

/// The tensors of `JambaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"]);
    let (experts, f) = (config.size("num_experts")?, config.size("intermediate_size")?);
    let periodic = |kind: &str, i: usize| -> Result<bool> {
        let period = config.size(&format!("{kind}_layer_period"))?.max(1);
        Ok(i % period == config.size(&format!("{kind}_layer_offset"))?)
    };
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "pre_ff_layernorm");
        if periodic("attn", i)? {
            all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, false, "o_proj", false);
        } else {
            let mixer = layer.sub("mixer", "mamba");
            all.same(&mixer, MAMBA1);
            all.renamed(
                &mixer,
                &[
                    ("dt_norm.weight", "dt_layernorm.weight"),
                    ("b_norm.weight", "b_layernorm.weight"),
                    ("c_norm.weight", "c_layernorm.weight"),
                ],
            );
            if config.flag("mamba_proj_bias") {
                all.same(&mixer, &["in_proj.bias", "out_proj.bias"]);
            }
        }
        let ffn = layer.sub("ffn", "feed_forward");
        if experts > 1 && periodic("expert", i)? {
            all.same(&ffn, &["router.weight"]);
            all.experts(&ffn, experts, f, PROJ);
        } else {
            all.gated_mlp(&ffn, f, PROJ, false);
        }
    }
    Ok(all)
}
