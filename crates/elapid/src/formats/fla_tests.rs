//! Configurations of flash-linear-attention. Whole models are compared with it in `golden/`.

use serde_json::{Value, json};

use crate::config::ModelConfig;
use crate::layers::mlp;
use crate::layers::{hgrn2, linear_attention};

fn described(config: &Value) -> super::Described {
    super::describe(&config.to_string(), "config.json").unwrap_or_else(|error| panic!("{error}"))
}

fn width(config: &ModelConfig) -> usize {
    config.stack.named["mlp"].layer.settings::<mlp::Settings>().unwrap().width.map_or(0, |width| width.get())
}

/// What is absent is as the classes have it.
#[test]
fn defaults_are_those_of_the_classes() {
    for (model_type, wide, heads) in
        [("gla", 5632, 4), ("retnet", 2816, 8), ("hgrn2", 5632, 16), ("linear_attn", 5632, 4)]
    {
        let config = described(&json!({"model_type": model_type, "hidden_size": 2048})).config;
        let keys = config.to_hf_json();
        assert_eq!((width(&config), &keys["num_heads"], config.n_layer()), (wide, &json!(heads), 24), "{model_type}");
        assert_eq!((config.vocab_size, config.bos_token_id, config.eos_token_id), (32000, Some(1), Some(2)));
        assert_eq!((config.pad_token_id, config.stack.model.norm_eps), (None, 1e-6));
        assert!(!config.stack.model.tie_embeddings);
    }
    let config = described(&json!({"model_type": "hgrn2", "hidden_size": 256})).config;
    let settings: &hgrn2::Settings = config.stack.named["hgrn2"].layer.settings().unwrap();
    assert_eq!(settings.lower_bound, hgrn2::LowerBound::Model);
    let config = described(&json!({"model_type": "linear_attn", "hidden_size": 256})).config;
    let settings: &linear_attention::Settings = config.stack.named["linear_attention"].layer.settings().unwrap();
    assert_eq!(settings.feature_map, linear_attention::FeatureMap::Product);
}

/// A norm that no kernel fuses with the gate has another name in the file, and is otherwise the same.
#[test]
fn the_name_of_a_norm_follows_from_the_kernel() {
    let ours = "backbone.layers.0.mixer.norm.weight";
    for model_type in ["gla", "retnet"] {
        let name = |change: Value| {
            let mut config =
                json!({"model_type": model_type, "hidden_size": 64, "num_heads": 2, "num_hidden_layers": 1});
            config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            described(&config).places.of(ours).names()[0].to_owned()
        };
        assert_eq!(name(json!({})), "model.layers.0.attn.g_norm_swish_gate.weight");
        assert_eq!(name(json!({"fuse_norm": false})), "model.layers.0.attn.g_norm.weight");
        assert_eq!(name(json!({"use_output_gate": false})), "model.layers.0.attn.g_norm.weight");
    }
}
