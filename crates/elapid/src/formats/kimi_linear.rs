//! Kimi Linear: Kimi delta attention, latent attention, experts with a bias for choosing and one that all tokens share.

use super::names::{Config, Module, PROJ, Result, Tensors, W};

/// The tensors of `KimiLinearForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    let (mixers, mlps) = (config.words("layer_types")?, config.words("mlp_layer_types")?);
    for (i, (mixer, mlp)) in mixers.into_iter().zip(mlps).enumerate() {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        let module = layer.sub("mixer", "self_attn");
        match mixer {
            "linear_attention" => delta(config, &module, &mut all)?,
            _ => latent(config, &module, &mut all)?,
        }
        // transformers saves dense MLPs under the experts' name.
        let ffn = layer.sub("ffn", "block_sparse_moe");
        if mlp == "dense" {
            all.gated_mlp(&ffn, config.size("intermediate_size")?, PROJ, false);
            continue;
        }
        let f = config.size("moe_intermediate_size")?;
        all.renamed(&ffn, &[("router.weight", "gate.weight"), ("router.bias", "gate.e_score_correction_bias")]);
        all.experts(&ffn, config.size("num_experts")?, f, W);
        let shared = config.size("num_shared_experts")? * f;
        all.gated_mlp(&ffn.sub("shared", "shared_experts"), shared, PROJ, false);
    }
    Ok(all)
}

fn delta(config: &Config<'_>, mixer: &Module, all: &mut Tensors) -> Result<()> {
    let heads = config.size("linear_num_heads")?;
    let inner = heads * config.size("linear_head_dim")?;
    all.rows(mixer, "qkv", &[(inner, "q_proj"), (inner, "k_proj"), (inner, "v_proj")], false);
    all.rows(mixer, "conv1d", &[(inner, "q_conv1d"), (inner, "k_conv1d"), (inner, "v_conv1d")], false);
    all.put(mixer, "A_log", mixer.file("A_log").shaped(&[1, 1, heads, 1]));
    let low_rank = ["f_a_proj.weight", "f_b_proj.weight", "g_a_proj.weight", "g_b_proj.weight"];
    all.same(mixer, &low_rank);
    all.same(mixer, &["dt_bias", "b_proj.weight"]);
    all.renamed(mixer, &[("norm.weight", "o_norm.weight"), ("out_proj.weight", "o_proj.weight")]);
    Ok(())
}

/// `kv_b_proj` has keys and values head by head.
fn latent(config: &Config<'_>, mixer: &Module, all: &mut Tensors) -> Result<()> {
    let heads = config.size("num_attention_heads")?;
    let parts = [config.size("qk_nope_head_dim")?, config.size("v_head_dim")?];
    all.put(mixer, "kv_b.weight", mixer.file("kv_b_proj.weight").grouped(heads, &parts));
    all.renamed(
        mixer,
        &[
            ("q.weight", "q_proj.weight"),
            ("kv_a.weight", "kv_a_proj_with_mqa.weight"),
            ("kv_norm.weight", "kv_a_layernorm.weight"),
            ("out_proj.weight", "o_proj.weight"),
        ],
    );
    Ok(())
}
