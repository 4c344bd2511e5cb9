//! OLMo-Hybrid: gated DeltaNet with the norm before it, attention with the norm after it.

use super::names::{Config, Module, PROJ, Result, Tensors};

/// The tensors of `OlmoHybridForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    for (i, kind) in config.words("layer_types")?.into_iter().enumerate() {
        let layer = Module::layer(i, "model.layers");
        if kind == "linear_attention" {
            all.norms(&layer, "attention_layer_norm", "feedforward_layer_norm");
            delta(config, &layer.sub("mixer", "linear_attn"), &mut all)?;
        } else {
            all.norms(&layer, "feedforward_layer_norm", "post_feedforward_layernorm");
            let mixer = layer.sub("mixer", "self_attn");
            all.attention(
                &mixer,
                config.qkv()?,
                config.flag("attention_bias"),
                "o_proj",
                config.flag("attention_bias"),
            );
            all.same(&mixer, &["q_norm.weight", "k_norm.weight"]);
        }
        all.gated_mlp(&layer.sub("ffn", "mlp"), config.size("intermediate_size")?, PROJ, false);
    }
    Ok(all)
}

fn delta(config: &Config<'_>, mixer: &Module, all: &mut Tensors) -> Result<()> {
    let key = config.size("linear_num_key_heads")? * config.size("linear_key_head_dim")?;
    let value = config.size("linear_num_value_heads")? * config.size("linear_value_head_dim")?;
    all.rows(mixer, "qkv", &[(key, "q_proj"), (key, "k_proj"), (value, "v_proj")], false);
    all.rows(mixer, "conv1d", &[(key, "q_conv1d"), (key, "k_conv1d"), (value, "v_conv1d")], false);
    all.same(mixer, &["A_log", "dt_bias", "a_proj.weight", "b_proj.weight", "g_proj.weight"]);
    all.renamed(mixer, &[("norm.weight", "o_norm.weight"), ("out_proj.weight", "o_proj.weight")]);
    Ok(())
}
