//! GPT-2: learned positions; matrices are stored input by output.

use super::names::{Config, Module, Result, Tensors};

/// The tensors of `GPT2LMHeadModel`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["transformer.wte.weight", "transformer.ln_f.weight", "lm_head.weight"]);
    all.one("backbone.norm_f.bias", "transformer.ln_f.bias");
    all.one("backbone.positions.weight", "transformer.wpe.weight");
    for i in 0..config.size("n_layer")? {
        let layer = Module::layer(i, "transformer.h");
        all.renamed(
            &layer,
            &[
                ("norm.weight", "ln_1.weight"),
                ("norm.bias", "ln_1.bias"),
                ("ffn_norm.weight", "ln_2.weight"),
                ("ffn_norm.bias", "ln_2.bias"),
            ],
        );
        for (ours, theirs) in [
            ("mixer.qkv", "attn.c_attn"),
            ("mixer.out_proj", "attn.c_proj"),
            ("ffn.up", "mlp.c_fc"),
            ("ffn.down", "mlp.c_proj"),
        ] {
            all.put(&layer, &format!("{ours}.weight"), layer.file(&format!("{theirs}.weight")).transposed());
            all.put(&layer, &format!("{ours}.bias"), layer.file(&format!("{theirs}.bias")));
        }
    }
    Ok(all)
}
