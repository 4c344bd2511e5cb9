//! Falcon-H1: Mamba-2 and attention side by side on one normed input.

use super::names::{Config, MAMBA2, Module, PROJ, Result, Tensors};

/// The tensors of `FalconH1ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "pre_ff_layernorm");
        let mamba = layer.sub("mixer.mamba2", "mamba");
        let normed = config.flag("mamba_rms_norm");
        all.same(&mamba, &MAMBA2.iter().copied().filter(|name| normed || *name != "norm.weight").collect::<Vec<_>>());
        if config.flag("mamba_proj_bias") {
            all.same(&mamba, &["in_proj.bias"]);
        }
        if config.flag("projectors_bias") {
            all.same(&mamba, &["out_proj.bias"]);
        }
        let bias = config.flag("attention_bias");
        all.attention(&layer.sub("mixer.attention", "self_attn"), config.qkv()?, bias, "o_proj", bias);
        let f = config.size("intermediate_size")?;
        all.gated_mlp(&layer.sub("ffn", "feed_forward"), f, PROJ, config.flag("mlp_bias"));
    }
    Ok(all)
}
