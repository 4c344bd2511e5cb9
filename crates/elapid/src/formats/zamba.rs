//! Zamba: Mamba-1 with heads, x and z interleaved; one transformer block that several layers use on [h; embedding].

use super::names::{Config, Module, PROJ, Result, Tensors};

/// The tensors of `ZambaForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"]);
    let mut shared = true;
    for (i, kind) in config.words("layers_block_type")?.into_iter().enumerate() {
        let layer = Module::layer(i, "model.layers");
        if kind != "hybrid" {
            mamba(config, &layer, &mut all)?;
            continue;
        }
        mamba(config, &layer.sub("decoder", "mamba_decoder"), &mut all)?;
        all.same(&layer, &["linear.weight"]);
        // The block lies in the first layer that uses it.
        if std::mem::take(&mut shared) {
            let block = Module::new("backbone.shared", format!("model.layers.{i}.shared_transf"));
            all.norms(&block, "input_layernorm", "pre_ff_layernorm");
            all.attention(&block.sub("mixer", "self_attn"), qkv(config)?, false, "o_proj", false);
            all.gated_mlp(&block.sub("ffn", "feed_forward"), config.size("intermediate_size")?, PROJ, false);
        }
    }
    Ok(all)
}

/// Rows of q, k and v of the shared block.
pub(super) fn qkv(config: &Config<'_>) -> Result<[usize; 3]> {
    let dim = config.size("attention_head_dim")?;
    let kv = config.size("num_key_value_heads")? * dim;
    Ok([config.size("num_attention_heads")? * dim, kv, kv])
}

fn mamba(config: &Config<'_>, layer: &Module, all: &mut Tensors) -> Result<()> {
    all.renamed(layer, &[("norm.weight", "input_layernorm.weight")]);
    let mixer = layer.sub("mixer", "mamba");
    let (heads, n) = (config.size("n_mamba_heads")?, config.size("mamba_d_state")?);
    let inner = config.size("mamba_expand")? * config.size("hidden_size")?;
    let dim = inner.checked_div(heads).unwrap_or_default();
    all.put(&mixer, "in_proj.weight", mixer.file("in_proj.weight").grouped(inner, &[1, 1]));
    all.put(&mixer, "A_log", mixer.file("A_log").shaped(&[heads, dim, n]));
    all.put(&mixer, "D", mixer.file("D").shaped(&[heads, dim]));
    all.put(&mixer, "dt_proj.bias", mixer.file("dt_proj_bias").shaped(&[heads, dim]));
    all.renamed(&mixer, &[("dt_proj.weight", "dt_proj_weight"), ("x_proj.weight", "x_proj_weight")]);
    all.same(&mixer, &["conv1d.bias", "conv1d.weight", "out_proj.weight"]);
    Ok(())
}
