//! Values and parts of configurations that several formats have.

use serde_json::{Number, Value};

use super::fields::Fields;
use crate::config::{ConfigError, ModelSettings, Named, Placement, StackConfig};
use crate::layers::LayerConfig;
use crate::layers::mamba1::Settings;
use crate::settings::{Auto, Count, Size};

/// A stack of Mamba-1 blocks alone.
pub(super) fn stack(model: ModelSettings, mixer: Settings) -> StackConfig {
    let named = Named { layer: LayerConfig::mamba1(mixer), placement: Placement::default() };
    StackConfig { model, named: [("mamba1".to_owned(), named)].into() }
}

/// The rank of the step sizes: "auto" and the number that it stands for are the same.
pub(super) fn dt_rank(fields: &mut Fields, key: &'static str, d_model: Size) -> Result<Auto<Count>, ConfigError> {
    if fields.get(key).is_none_or(|value| value == "auto") {
        return Ok(Auto::Auto);
    }
    let rank: Count = fields.bounded(key, Count::new(0))?;
    Ok(if rank.get() == d_model.get().div_ceil(16) { Auto::Auto } else { Auto::Is(rank) })
}

/// The number with as few digits as bring the same f32 back: 1e-5, not 9.999999747378752e-6.
pub(super) fn real(x: f32) -> Value {
    let short = x.to_string().parse::<f64>().ok().filter(|short| *short as f32 == x);
    Number::from_f64(short.unwrap_or(f64::from(x))).map_or(Value::Null, Value::Number)
}
