//! Nemotron-H: one mixer a layer, of four kinds: Mamba-2, attention, MLP, experts.

use super::names::{Config, MAMBA2, Module, Result, Tensors};

/// The tensors of `NemotronHForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"]);
    for (i, kind) in config.words("layers_block_type")?.into_iter().enumerate() {
        let layer = Module::layer(i, "backbone.layers");
        all.same(&layer, &["norm.weight"]);
        let mixer = layer.sub("mixer", "mixer");
        match kind {
            "full_attention" | "attention" => {
                let bias = config.flag("attention_bias");
                all.attention(&mixer, config.qkv()?, bias, "o_proj", bias);
            }
            "mlp" => all.renamed(&mixer, &[("up.weight", "up_proj.weight"), ("down.weight", "down_proj.weight")]),
            "moe" => {
                all.renamed(
                    &mixer,
                    &[("router.weight", "gate.weight"), ("router.bias", "gate.e_score_correction_bias")],
                );
                let (n, f) = (config.size("n_routed_experts")?, config.size("moe_intermediate_size")?);
                all.put(&mixer, "experts.up", mixer.experts(n, "experts", &[(f, "up_proj")]));
                all.put(&mixer, "experts.down", mixer.experts(n, "experts", &[(0, "down_proj")]));
                all.renamed(
                    &mixer.sub("shared", "shared_experts"),
                    &[("up.weight", "up_proj.weight"), ("down.weight", "down_proj.weight")],
                );
            }
            _ => {
                all.same(&mixer, MAMBA2);
                if config.flag("use_bias") {
                    all.same(&mixer, &["in_proj.bias", "out_proj.bias"]);
                }
            }
        }
    }
    Ok(all)
}

/// Heads that predict several tokens.
pub(super) fn ignores(name: &str) -> bool {
    name.starts_with("mtp.")
}
