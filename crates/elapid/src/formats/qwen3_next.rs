//! Qwen3-Next: gated DeltaNet in three of four layers, gated attention in the fourth, experts.

use super::names::{Config, Module, Result, Tensors};
use super::qwen2_moe;
use super::stored::Stored;

/// The tensors of `Qwen3NextForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    for (i, kind) in config.words("layer_types")?.into_iter().enumerate() {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        match kind {
            "linear_attention" => delta(config, &layer.sub("mixer", "linear_attn"), &mut all)?,
            _ => attention(config, &layer.sub("mixer", "self_attn"), &mut all)?,
        }
        qwen2_moe::feed_forward(config, i, &layer.sub("ffn", "mlp"), &mut all)?;
    }
    Ok(all)
}

/// Projections are interleaved by key head, `[q k v z]` and `[b a]`, with the value heads of each.
fn delta(config: &Config<'_>, mixer: &Module, all: &mut Tensors) -> Result<()> {
    let (keys, values) = (config.size("linear_num_key_heads")?, config.size("linear_num_value_heads")?);
    let (dk, dv) = (config.size("linear_key_head_dim")?, config.size("linear_value_head_dim")?);
    let each = values.checked_div(keys).unwrap_or_default();
    let qkvz = mixer.file("in_proj_qkvz.weight").grouped(keys, &[dk, dk, each * dv, each * dv]);
    let ba = mixer.file("in_proj_ba.weight").grouped(keys, &[each, each]);
    all.put(mixer, "in_proj.weight", Stored::Rows(vec![(2 * (keys * dk + values * dv), qkvz), (2 * values, ba)]));
    all.same(mixer, &["A_log", "conv1d.weight", "dt_bias", "norm.weight", "out_proj.weight"]);
    Ok(())
}

/// `q_proj` has q and its gate, head by head.
fn attention(config: &Config<'_>, mixer: &Module, all: &mut Tensors) -> Result<()> {
    let ([q, k, v], heads) = (config.qkv()?, config.size("num_attention_heads")?);
    let dim = q.checked_div(heads).unwrap_or_default();
    let gated = mixer.file("q_proj.weight").grouped(heads, &[dim, dim]);
    let rows = vec![(2 * q, gated), (k, mixer.file("k_proj.weight")), (v, mixer.file("v_proj.weight"))];
    all.put(mixer, "qkv.weight", Stored::Rows(rows));
    all.same(mixer, &["q_norm.weight", "k_norm.weight"]);
    all.renamed(mixer, &[("out_proj.weight", "o_proj.weight")]);
    Ok(())
}
