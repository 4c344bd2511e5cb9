//! What operations store of their inputs for the backward pass: the values, or how to recompute them.

use std::sync::Arc;

use super::var::{Recipe, Var};
use crate::{Result, Tensor};

/// What an operation stores of an input that its backward reads: the variable, or its recipe for recomputing the values.
pub(crate) struct Saved(Var);

impl Saved {
    /// The variable with its values.
    pub(crate) fn recall(&self) -> Result<Var> {
        let value = match &self.0.recipe {
            Some(again) => again()?,
            None => self.0.value.clone(),
        };
        Ok(Var { value, place: self.0.place.clone(), recipe: None })
    }
}

impl Var {
    /// What an operation stores for its backward. An operation that stores the variable itself stores its values.
    pub(crate) fn saved(&self) -> Saved {
        match &self.recipe {
            Some(_) => Saved(Var { recipe: self.recipe.clone(), ..self.without_numbers() }),
            None => Saved(self.clone()),
        }
    }

    /// The same variable, whose values operations need not store: `again` recomputes them from what is stored anyway, by the
    /// same kernel. Column slices and reshaped variables of it are still stored.
    pub(crate) fn recomputed_by(self, again: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Var {
        let recipe: Option<Recipe> = if self.wants_grad() { Some(Arc::new(again)) } else { None };
        Var { recipe, ..self }
    }
}
