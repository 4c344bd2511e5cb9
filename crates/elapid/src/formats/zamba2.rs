//! Zamba2: Mamba-2; transformer blocks that layers use in turn on [h; embedding], with an adapter for each use.

use super::names::{Config, MAMBA2, Module, Result, Tensors};
use super::zamba;

/// The tensors of `Zamba2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"]);
    let blocks = config.size("num_mem_blocks")?;
    let kinds = config.words("layers_block_type")?;
    let uses = kinds.iter().filter(|kind| **kind == "hybrid").count();
    let mut used = 0;
    for (i, kind) in kinds.into_iter().enumerate() {
        let layer = Module::layer(i, "model.layers");
        if kind != "hybrid" {
            mamba(&layer, &mut all);
            continue;
        }
        mamba(&layer.sub("decoder", "mamba_decoder"), &mut all);
        all.same(&layer, &["linear.weight"]);
        // Block j lies in the first layer that uses it, and serves every `blocks`-th use from there.
        if used < blocks {
            let block = Module::new(format!("backbone.shared.{used}"), format!("model.layers.{i}.shared_transformer"));
            shared(config, &block, (used..uses).step_by(blocks), &mut all)?;
        }
        used += 1;
    }
    Ok(all)
}

fn mamba(layer: &Module, all: &mut Tensors) {
    all.renamed(layer, &[("norm.weight", "input_layernorm.weight")]);
    all.same(&layer.sub("mixer", "mamba"), MAMBA2);
}

fn shared(config: &Config<'_>, block: &Module, uses: impl Iterator<Item = usize>, all: &mut Tensors) -> Result<()> {
    all.norms(block, "input_layernorm", "pre_ff_layernorm");
    let (mixer, ffn) = (block.sub("mixer", "self_attn"), block.sub("ffn", "feed_forward"));
    all.attention(&mixer, zamba::qkv(config)?, false, "o_proj", false);
    all.renamed(&ffn, &[("up.weight", "gate_up_proj.weight"), ("down.weight", "down_proj.weight")]);
    for i in uses {
        let mut adapter = |module: &Module, ours: &str, theirs: &str| {
            for (side, n) in [("a", 0), ("b", 1)] {
                let stored = module.file(&format!("{theirs}_adapter_list.{i}.{n}.weight"));
                all.put(module, &format!("adapters.{i}.{ours}.{side}"), stored);
            }
        };
        adapter(&ffn, "up", "gate_up_proj");
        if config.flag("use_shared_attention_adapter") {
            ["q", "k", "v"].iter().for_each(|name| adapter(&mixer, name, &format!("linear_{name}")));
        }
    }
    Ok(())
}
