//! The linear layer, independent of how its weight is stored.

use crate::Result;
use crate::autograd::Var;
use crate::ops;
use crate::params::ParamId;
use crate::pass::Cx;

/// y = x Wᵀ + b with W `[n k]` and b `[n]`.
///
/// Layers hold these and do not depend on how a weight is stored: the dtype of its copy, a quantised form and low-rank
/// adapters are handled by this type and the parameter.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    /// The layer of two parameters.
    pub fn new(weight: ParamId, bias: Option<ParamId>) -> Self {
        Self { weight, bias }
    }

    /// The weight `[n k]`.
    pub fn weight(&self) -> ParamId {
        self.weight
    }

    /// The bias `[n]`.
    pub fn bias(&self) -> Option<ParamId> {
        self.bias
    }

    /// y `[.. n]` of x `[.. k]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var> {
        cx.observe(self.weight, x)?;
        ops::linear(x, &cx.param(self.weight), self.bias.map(|id| cx.param(id)).as_ref())
    }

    /// [`forward`](Self::forward), whose y no operation stores: the backward pass recomputes it, bit for bit. For a product
    /// with a small inner dimension that is cheap compared with storing its output.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_recomputed(&self, cx: &Cx, x: &Var) -> Result<Var> {
        cx.observe(self.weight, x)?;
        ops::linear_recomputed(x, &cx.param(self.weight), self.bias.map(|id| cx.param(id)).as_ref())
    }
}
