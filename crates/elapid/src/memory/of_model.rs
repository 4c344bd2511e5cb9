//! Memory needed by a model.

use elapid_kernels::packed::Form;

use super::needs::Needs;
use crate::config::ModelConfig;
use crate::{DType, LanguageModel};

impl Needs {
    /// Memory of a model's parameters in f32.
    pub fn of_parameters(config: &ModelConfig) -> Self {
        Self::default().and("parameters", parameters(config), 4, SIZES)
    }

    /// Memory of a model's parameters in a form.
    pub fn of_parameters_as(config: &ModelConfig, form: Option<Form>) -> Self {
        let bits = match form {
            None | Some(Form::F32) => 32,
            Some(Form::Bf16) => 16,
            Some(Form::Int8) => 9,
            Some(Form::Int4) => 5,
        };
        Self::default().and("parameters", parameters(config).saturating_mul(bits) / 8, 1, SIZES)
    }
}

/// Settings that determine the number of parameters.
const SIZES: &str = "the model's sizes (vocabulary, width, layers, state)";

fn parameters(config: &ModelConfig) -> u128 {
    LanguageModel::parameter_count(config).map_or(u128::MAX, u128::from)
}

impl LanguageModel {
    /// Memory of a pass over `b` rows of `l` positions without gradients, besides the parameters; `lower` names the settings
    /// of b and l.
    pub fn needs_of_pass(&self, b: usize, l: usize, lower: &str) -> Needs {
        let (b, size) = (b as u128, self.dtype().bytes() as u32);
        let positions = b.saturating_mul(l as u128);
        Needs::default().and("activations", positions.saturating_mul(self.widest().kept.into()), size, lower).and(
            "states",
            b.saturating_mul(self.cost(0).state.into()),
            4,
            lower,
        )
    }

    /// Memory of training besides the parameters: gradients, the optimiser's moments, and the activations stored for `b`
    /// rows of `l` positions, or only the inputs of blocks if these are recomputed. `lower` names the settings of the sizes.
    pub fn needs_of_training(&self, b: usize, l: usize, dtype: DType, recompute: bool, lower: &str) -> Needs {
        let positions = (b as u128).saturating_mul(l as u128);
        let config = self.config();
        let kept = match recompute {
            true => 2 * config.d_model() as u64 * config.n_layer() as u64 + self.widest().kept,
            false => self.cost(0).kept,
        };
        Needs::default()
            .and("gradients", parameters(config), 4, SIZES)
            .and("the optimiser's moments", parameters(config).saturating_mul(2), 4, SIZES)
            .and("activations", positions.saturating_mul(kept.into()), dtype.bytes() as u32, lower)
    }
}
