//! RecurrentGemma (Griffin): RG-LRU and local attention.

use super::names::{Config, Module, PROJ, Result, Tensors};

/// The tensors of `RecurrentGemmaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_norm.weight", "lm_head.weight"]);
    let kinds = config.words("block_types")?;
    for (i, kind) in (0..config.size("num_hidden_layers")?).zip(kinds.into_iter().cycle()) {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "temporal_pre_norm", "channel_pre_norm");
        let mixer = layer.sub("mixer", "temporal_block");
        match kind {
            "recurrent" => recurrent(config, &mixer, &mut all)?,
            _ => all.attention(&mixer, config.qkv()?, config.flag("attention_bias"), "o_proj", true),
        }
        // The configuration counts gate and up together.
        all.gated_mlp(&layer.sub("ffn", "mlp_block"), config.size("intermediate_size")? / 2, PROJ, true);
    }
    Ok(all)
}

fn recurrent(config: &Config<'_>, mixer: &Module, all: &mut Tensors) -> Result<()> {
    for kind in ["weight", "bias"] {
        for (ours, theirs) in
            [("x_proj", "linear_x"), ("y_proj", "linear_y"), ("out_proj", "linear_out"), ("conv1d", "conv_1d")]
        {
            all.put(mixer, &format!("{ours}.{kind}"), mixer.file(&format!("{theirs}.{kind}")));
        }
    }
    let heads = config.size("num_attention_heads")?;
    let width = config.size_or("lru_width", || config.size("hidden_size"))?;
    let lru = mixer.sub("lru", "rg_lru");
    for (ours, theirs) in [("input_gate", "input_gate"), ("recurrent_gate", "recurrent_gate")] {
        all.put(&lru, &format!("{ours}.weight"), lru.file(&format!("{theirs}_weight")));
        let bias = lru.file(&format!("{theirs}_bias")).shaped(&[heads, width.checked_div(heads).unwrap_or_default()]);
        all.put(&lru, &format!("{ours}.bias"), bias);
    }
    all.renamed(&lru, &[("param", "recurrent_param")]);
    Ok(())
}
