//! RWKV-4: time mix and channel mix; a norm after the embedding.

use super::names::{Config, Module, Result, Tensors};

/// The tensors of `RwkvForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["rwkv.embeddings.weight", "rwkv.ln_out.weight", "head.weight"]);
    all.one("backbone.norm_f.bias", "rwkv.ln_out.bias");
    let d = config.size("hidden_size")?;
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "rwkv.blocks");
        let mut norm = |ours: &str, theirs: &str| {
            for kind in ["weight", "bias"] {
                all.0.push((format!("{ours}.{kind}"), layer.file(&format!("{theirs}.{kind}"))));
            }
        };
        norm(&format!("backbone.layers.{i}.norm"), "ln1");
        norm(&format!("backbone.layers.{i}.ffn_norm"), "ln2");
        if i == 0 {
            norm("backbone.embedding_norm", "pre_ln");
        }
        let (time, channel) = (layer.sub("mixer", "attention"), layer.sub("ffn", "feed_forward"));
        all.same(
            &time,
            &["key.weight", "output.weight", "receptance.weight", "value.weight", "time_decay", "time_first"],
        );
        all.same(&channel, &["key.weight", "receptance.weight", "value.weight"]);
        for (module, name) in [
            (&time, "time_mix_key"),
            (&time, "time_mix_receptance"),
            (&time, "time_mix_value"),
            (&channel, "time_mix_key"),
            (&channel, "time_mix_receptance"),
        ] {
            all.put(module, name, module.file(name).shaped(&[1, 1, d]));
        }
    }
    Ok(all)
}
