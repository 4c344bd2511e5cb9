//! GPT-NeoX (Pythia): q, k and v stand together head by head.

use super::names::{Config, Module, Result, Tensors};

/// The tensors of `GPTNeoXForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight", "embed_out.weight"]);
    all.one("backbone.norm_f.bias", "gpt_neox.final_layer_norm.bias");
    let heads = config.size("num_attention_heads")?;
    let dim = config.size("hidden_size")?.checked_div(heads).unwrap_or_default();
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "gpt_neox.layers");
        for kind in ["weight", "bias"] {
            for (ours, theirs) in [
                ("norm", "input_layernorm"),
                ("ffn_norm", "post_attention_layernorm"),
                ("mixer.out_proj", "attention.dense"),
                ("ffn.up", "mlp.dense_h_to_4h"),
                ("ffn.down", "mlp.dense_4h_to_h"),
            ] {
                all.put(&layer, &format!("{ours}.{kind}"), layer.file(&format!("{theirs}.{kind}")));
            }
            let qkv = layer.file(&format!("attention.query_key_value.{kind}")).grouped(heads, &[dim, dim, dim]);
            all.put(&layer, &format!("mixer.qkv.{kind}"), qkv);
        }
    }
    Ok(all)
}
