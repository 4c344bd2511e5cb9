//! HGRN2, of flash-linear-attention.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::fla::{self, always, is_false, lacks};
use super::format::Codec;
use super::names::{Config, Module, Result, Tensors};
use crate::config::{ConfigError, ModelConfig};
use crate::layers::LayerConfig;
use crate::layers::hgrn2::{LowerBound, Settings};
use crate::settings::Size;

/// The configuration of `HGRN2ForCausalLM`.
pub(super) const CODEC: Codec = Codec { synonyms: &[], names: NAMES, read, write, own_names: false };

/// What settings are called in a file of the library.
const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("width", "intermediate_size"),
    ("key_dim", "expand_ratio"),
];

/// The tensors of `HGRN2ForCausalLM`.
pub(super) fn tensors(config: &Config<'_>) -> Result<Tensors> {
    let mut all = fla::tensors(config, 4, mixer)?;
    if !is_false(config, "use_lower_bound") {
        all.one("shared.hgrn2.lower_bounds", "model.lower_bounds");
    }
    Ok(all)
}

fn mixer(config: &Config<'_>, attn: &Module, all: &mut Tensors) -> Result<()> {
    let d = config.size("hidden_size")?;
    all.rows(attn, "qfv", &[(d, "q_proj"), (d, "f_proj"), (d, "i_proj")], false);
    all.renamed(attn, &[("norm.weight", "g_norm.weight"), ("out_proj.weight", "o_proj.weight")]);
    Ok(())
}

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    fla::read(fields, 4, |fields, d_model| {
        lacks(fields, &["use_short_conv"])?;
        fields.get("conv_size"); // Of convolutions that there are not.
        always(fields, "elementwise_affine")?;
        // The layer reads the number of heads only where nothing says how wide they are.
        let heads: Option<Size> = fields.optional("num_heads")?;
        let ratio = match fields.get("expand_ratio") {
            None => Size::new(128),
            Some(Value::Null) => match heads {
                Some(heads) => Size::new((d_model.get() / heads.get()).max(1)),
                None => return Err(fields.error("expand_ratio", "a size", &Value::Null, "give it or num_heads")),
            },
            Some(_) => fields.required("expand_ratio")?,
        };
        let shared = fields.flag("use_lower_bound", true)?;
        Ok(LayerConfig::hgrn2(Settings {
            key_dim: ratio,
            lower_bound: if shared { LowerBound::Model } else { LowerBound::None },
            ..Settings::default()
        }))
    })
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    fla::write(config, ["hgrn2", "HGRN2ForCausalLM"], |hgrn2: &Settings| {
        json!({
            "expand_ratio": hgrn2.key_dim,
            "num_heads": config.d_model() / hgrn2.key_dim.get(),
            "use_lower_bound": hgrn2.lower_bound == LowerBound::Model,
            "use_short_conv": false,
            "elementwise_affine": true,
        })
    })
}
