//! What operations keep of their inputs for the way back: the numbers, or how to compute them again.

use std::sync::Arc;

use super::var::{Recipe, Var};
use crate::{Result, Tensor};

/// What an operation keeps of an input that its backward reads: the variable, or how its numbers are computed again if
/// the variable says so.
pub(crate) struct Saved(Var);

impl Saved {
    /// The variable with its numbers.
    pub(crate) fn recall(&self) -> Result<Var> {
        let value = match &self.0.recipe {
            Some(again) => again()?,
            None => self.0.value.clone(),
        };
        Ok(Var { value, place: self.0.place.clone(), recipe: None })
    }
}

impl Var {
    /// What an operation keeps for its backward. One that keeps the variable itself keeps its numbers.
    pub(crate) fn saved(&self) -> Saved {
        match &self.recipe {
            Some(_) => Saved(Var { recipe: self.recipe.clone(), ..self.without_numbers() }),
            None => Saved(self.clone()),
        }
    }

    /// The same variable, whose numbers operations need not keep: `again` computes them from what is kept anyway, by the
    /// same kernel as before. Column slices and other shapes of it are kept.
    pub(crate) fn recomputed_by(self, again: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Var {
        let recipe: Option<Recipe> = if self.wants_grad() { Some(Arc::new(again)) } else { None };
        Var { recipe, ..self }
    }
}
