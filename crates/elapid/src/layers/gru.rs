//! The GRU (Cho et al. 2014, arXiv 1406.1078), as PyTorch has it: the reset gate multiplies U h after its bias.

use super::recurrent::Recurrent;
use crate::Result;
use crate::layer::At;
use crate::ops::CellKind;
use crate::params::ParamBuilder;
use crate::settings::{Auto, Problem, Size};

crate::settings! {
    /// A GRU.
    pub struct Settings {
        /// Channels of the cell; "auto" is d_model. Any other number has a projection back to d_model.
        width: Auto<Size> = Auto::Auto,
        /// Whether there are biases: two, as in PyTorch, of the input's projection and of the recurrent product.
        bias: bool = true,
    }
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
        Recurrent::build(CellKind::Gru, self.width(at.d_model), self.bias, at, p)
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let narrow = Self { width: Auto::Is(Size::new(11)), bias: false };
        vec![Self::default(), narrow]
    }
}
