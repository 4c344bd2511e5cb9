//! Mamba-1 and Falcon-Mamba, whose names are elapid's own.

use super::names::{Config, MAMBA1, Module, Result, Tensors};

/// The tensors of `MambaForCausalLM` and `FalconMambaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    layers(config, MAMBA1)
}

/// A model with one mixer a layer and elapid's names.
pub(super) fn layers(config: &Config<'_>, mixer: &[&str]) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "backbone.layers");
        all.same(&layer, &["norm.weight"]);
        all.same(&layer.sub("mixer", "mixer"), mixer);
        if config.flag("use_bias") {
            all.same(&layer.sub("mixer", "mixer"), &["in_proj.bias", "out_proj.bias"]);
        }
    }
    Ok(all)
}
