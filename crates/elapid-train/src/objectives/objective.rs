//! The trait of objectives.

use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::models::Model;
use elapid::pass::Cx;
use elapid::{LanguageModel, State};
use elapid_kernels::adamw;
use rand::SeedableRng;

use super::batch::{ArraySpec, Batch, Inputs};
use crate::Result;
use crate::metrics::{self, Figure};
use crate::tasks::Random;

/// An objective of a model of type `M`.
pub type ObjectiveOf<M> = dyn Objective<Model = M>;

/// The result of a validation.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// The held-out loss; the lowest is the best.
    pub loss: f64,
    /// Further figures.
    pub figures: Vec<Figure>,
}

impl Validation {
    /// A figure by its name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// The share of right answers, if there are answers.
    pub fn accuracy(&self) -> Option<f64> {
        self.figure(metrics::ACCURACY)
    }
}

/// What a model is trained for.
pub trait Objective: Send + Sync + 'static {
    /// The model.
    type Model: Model;

    /// A new model of a configuration.
    ///
    /// # Errors
    /// If the configuration has impossible values, or the objective cannot use such a model.
    fn model(&self, config: ModelConfig, seed: u64) -> Result<Self::Model>;

    /// Rows per batch, and positions per row.
    fn shape(&self) -> (usize, usize);

    /// The arrays of a batch, in order, as they are uploaded to a GPU.
    fn arrays(&self) -> Vec<ArraySpec>;

    /// Whether states may be reset inside a row.
    fn resets(&self) -> bool {
        false
    }

    /// Whether the state is carried from batch to batch.
    fn carries(&self) -> bool {
        false
    }

    /// Batch `index`: a function of the seed and the index alone.
    ///
    /// # Errors
    /// If its data cannot be read.
    fn batch(&self, index: u64) -> Result<Batch>;

    /// The mean loss of a batch, and the state after it. Further losses, such as the load balance of experts, are passed to
    /// [`Cx::side_loss`]; the trainer adds them with their weights. With `recompute`, activations inside layers are
    /// recomputed in the backward pass.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn loss(
        &self,
        model: &Self::Model,
        cx: &Cx,
        batch: &Inputs<'_>,
        state: &State,
        recompute: bool,
    ) -> Result<(Var, State)>;

    /// Measures the model on held-out data after `step` steps; none if there is no held-out data.
    ///
    /// # Errors
    /// If the data cannot be read, or a device fails.
    fn validate(&self, model: &Self::Model, step: u64) -> Result<Option<Validation>>;

    /// Figures that follow from a validation loss alone.
    fn figures_of(&self, _loss: f64) -> Vec<Figure> {
        Vec::new()
    }

    /// A description of how validation losses are measured. Losses with different descriptions cannot be compared.
    fn measure(&self) -> String {
        String::new()
    }

    /// Where a forward pass over a batch first produces a value that is not finite, if it can be found.
    ///
    /// # Errors
    /// If a device fails.
    fn first_non_finite(&self, model: &Self::Model, _batch: &Batch, _state: &State) -> Result<Option<String>> {
        first_non_finite_parameter(model.core())
    }
}

/// The first parameter with a value that is not finite.
pub(super) fn first_non_finite_parameter(model: &LanguageModel) -> Result<Option<String>> {
    for (_, param) in model.params().iter() {
        if adamw::first_non_finite(&param.value.to_vec()?).is_some() {
            return Ok(Some(format!("parameter {}", param.name)));
        }
    }
    Ok(None)
}

/// A random generator for a seed, a purpose and a number.
pub(super) fn random(seed: u64, purpose: &str, number: u64) -> Random {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(purpose.as_bytes());
    Random::from_seed(*hasher.finalize().as_bytes())
}
