//! Falcon-Mamba: Mamba-1 with RMSNorms, without weights, of Δ, B and C.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::format::Codec;
use super::mamba;
use super::transformer::settings_of;
use super::values::{real, stack};
use crate::config::{ConfigError, ModelConfig};
use crate::layers::mamba1::{InnerNorm, Settings};

/// The configuration of `FalconMambaForCausalLM`.
pub(super) const CODEC: Codec = Codec { read, write, ..mamba::CODEC };

fn read(fields: &mut Fields) -> Result<ModelConfig, ConfigError> {
    let eps = fields.real("mixer_rms_eps", 1e-6)?;
    let config = mamba::blocks(fields)?;
    let mixer: Settings = settings_of(&config, |i| Some(config.stack.layer(i).0)).unwrap_or_default();
    let mixer = Settings { inner_norm: InnerNorm::RmsNoWeight, inner_norm_eps: eps, ..mixer };
    Ok(ModelConfig { stack: stack(config.stack.model.clone(), mixer), ..config })
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let mixer: Settings = settings_of(config, |i| Some(config.stack.layer(i).0))?;
    let mut map = mamba::write(config)?;
    map.insert("architectures".into(), vec!["FalconMambaForCausalLM"].into());
    map.insert("model_type".into(), "falcon_mamba".into());
    map.insert("mixer_rms_eps".into(), real(mixer.inner_norm_eps));
    Some(map)
}
