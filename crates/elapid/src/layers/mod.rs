//! The registry of layers: one file a family.

mod mamba1;

use std::sync::Arc;

pub use mamba1::Mamba1;
pub(crate) use mamba1::Source as Mamba1Source;

use crate::Result;
use crate::config::{MixerConfig, ModelConfig};
use crate::layer::Layer;
use crate::params::ParamBuilder;

/// The layer that a configuration asks for.
///
/// # Errors
/// If the source of parameters lacks one.
pub fn build(config: &ModelConfig, p: &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>> {
    match &config.mixer {
        MixerConfig::Mamba1(mamba) => Ok(Arc::new(Mamba1::new(config, mamba, p)?)),
    }
}
