//! The vanilla RNN (Elman 1990): h = f(W x + U h).

use serde::{Deserialize, Serialize};

use super::recurrent::Recurrent;
use crate::Result;
use crate::layer::At;
use crate::ops::CellKind;
use crate::params::ParamBuilder;
use crate::settings::{Auto, Problem, Size};

crate::settings! {
    /// A vanilla RNN.
    pub struct Settings {
        /// Channels of the cell; "auto" is d_model. Any other number has a projection back to d_model.
        width: Auto<Size> = Auto::Auto,
        /// The nonlinearity: "tanh" or "relu".
        activation: Activation = Activation::Tanh,
        /// Whether there are biases: two, as in PyTorch, of the input's projection and of the recurrent product.
        bias: bool = true,
    }
}

/// The nonlinearities to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names of functions")]
pub enum Activation {
    Tanh,
    Relu,
}

impl Settings {
    fn width(&self, d_model: usize) -> usize {
        self.width.or(Size::new(d_model)).get()
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        Self { width: Auto::Is(Size::new(self.width(at.d_model))), ..self.clone() }
    }

    pub(super) fn check(&self, _at: &At<'_>) -> Result<(), Problem> {
        Ok(())
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Recurrent> {
        let kind = match self.activation {
            Activation::Tanh => CellKind::Tanh,
            Activation::Relu => CellKind::Relu,
        };
        Recurrent::build(kind, self.width(at.d_model), self.bias, at, p)
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let narrow = Self { width: Auto::Is(Size::new(11)), bias: false, activation: Activation::Relu };
        vec![Self::default(), narrow]
    }
}
