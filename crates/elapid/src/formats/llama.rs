//! Llama and Mistral: pre-norm attention and a gated MLP.

use super::names::{Config, Module, PROJ, Result, Tensors};

/// The tensors of `LlamaForCausalLM` and `MistralForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "input_layernorm", "post_attention_layernorm");
        let bias = config.flag("attention_bias");
        all.attention(&layer.sub("mixer", "self_attn"), config.qkv()?, bias, "o_proj", bias);
        all.gated_mlp(&layer.sub("ffn", "mlp"), config.size("intermediate_size")?, PROJ, config.flag("mlp_bias"));
    }
    Ok(all)
}
