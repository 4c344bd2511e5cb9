//! xLSTM: mLSTM and a gated MLP.

use super::names::{Config, Module, Result, Tensors};

/// The tensors of `xLSTMForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["backbone.embeddings.weight", "backbone.out_norm.weight", "lm_head.weight"]);
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "backbone.blocks");
        all.norms(&layer, "norm_mlstm", "norm_ffn");
        let mixer = layer.sub("mixer", "mlstm_layer");
        all.same(&mixer, &["q.weight", "k.weight", "v.weight", "out_proj.weight"]);
        all.renamed(
            &mixer,
            &[
                ("i_gate.weight", "igate_preact.weight"),
                ("i_gate.bias", "igate_preact.bias"),
                ("f_gate.weight", "fgate_preact.weight"),
                ("f_gate.bias", "fgate_preact.bias"),
                ("o_gate.weight", "ogate_preact.weight"),
                ("norm.weight", "multihead_norm.weight"),
            ],
        );
        all.renamed(
            &layer.sub("ffn", "ffn"),
            &[
                ("gate.weight", "proj_up_gate.weight"),
                ("up.weight", "proj_up.weight"),
                ("down.weight", "proj_down.weight"),
            ],
        );
    }
    Ok(all)
}
