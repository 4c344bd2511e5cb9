//! The trait of layers, their cost, their promises, and their place in a model. Independent of any family.

use std::any::Any;
use std::sync::Arc;

use crate::Result;
use crate::autograd::Var;
use crate::params::{Init, ParamBuilder};
use crate::pass::Cx;
use crate::settings::Problem;
use crate::state::{LayerState, StateSpec};

/// The cost of one position in the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Additions, multiplications and exponentials.
    pub flops: u64,
    /// Parameters read.
    pub params: u64,
    /// Elements of the state of one sequence, read and written.
    pub state: u64,
    /// Elements in memory at the same time: in training those stored for the backward pass, else those of one layer.
    pub kept: u64,
}

impl std::ops::Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            params: self.params + other.params,
            state: self.state + other.state,
            kept: self.kept + other.kept,
        }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |sum, cost| sum + cost)
    }
}

/// What splitting a sequence into chunks changes, in increasing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// Nothing: outputs and states have the same bits without a tape, gradients the same values.
    Exact,
    /// The last bits: a chunked algorithm sums in an order that depends on the chunks.
    Rounded,
    /// A sequence cannot be split: the layer is not causal.
    Whole,
}

/// Promises of a layer, each tested by the contract suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// What splitting changes.
    pub split: Split,
    /// Whether a reset inside a row begins a document that sees nothing of the previous one.
    pub resets: bool,
    /// Whether padding after a row's length changes nothing.
    pub lengths: bool,
}

impl Promises {
    /// All promises.
    pub const ALL: Self = Self { split: Split::Exact, resets: true, lengths: true };
}

/// A map from sequences to sequences that carries a state: a mixer, an MLP, a mixture of experts, a wrapper of others.
///
/// For any split of a sequence, `forward(a ++ b, S)` equals `forward(b, state of forward(a, S))` in outputs, final state and
/// gradients, up to its [`promises`](Self::promises). A row of a batch equals the row alone.
pub trait Layer: Any + std::fmt::Debug + Send + Sync {
    /// y `[b l d_model]` and the state after the last position, from x `[b l d_model]` and the state before the first.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)>;

    /// The entries of its state.
    fn state(&self) -> Vec<StateSpec> {
        Vec::new()
    }

    /// The cost of the position after `context` others.
    fn cost(&self, context: u64) -> Cost;

    /// Its promises.
    fn promises(&self) -> Promises {
        Promises::ALL
    }

    /// Whether what it computes depends on the position in a document, though its state has no cache. A step on a GPU then
    /// keeps the positions on the device, where a captured graph reads them.
    fn reads_positions(&self) -> bool {
        false
    }
}

/// The place of a layer in a model, from which defaults of its settings follow.
#[derive(Clone, Copy)]
pub struct At<'a> {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Index of the layer, from 0; the mixer and the feed-forward of one layer have the same.
    pub index: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of additions to the stream in the whole model.
    pub additions: usize,
    /// The epsilon of the model's norms.
    pub norm_eps: f32,
    /// Whether the initialisation of projections into the stream is scaled down with their number.
    pub rescale: bool,
    /// The other layers, which a wrapper can name.
    pub layers: &'a dyn Layers,
    /// In how many wrappers it is.
    pub depth: usize,
}

/// More wrappers in wrappers than any model has: names in a circle.
const MAX_DEPTH: usize = 8;

/// Layers by name, for those that wrap others. A name without settings of its own is a kind.
pub trait Layers {
    /// Checks that there is a layer of a name, and its settings.
    ///
    /// # Errors
    /// If there is none, or a setting's value cannot be.
    fn check(&self, name: &str, at: &At<'_>) -> Result<(), Problem>;

    /// Builds the layer of a name, its parameters under the builder's prefix.
    ///
    /// # Errors
    /// If there is no such name, names form a cycle, or the source of parameters lacks one.
    fn build(&self, name: &str, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>>;
}

impl At<'_> {
    /// Where the layers are that a wrapper here names; none if wrappers are nested too deeply.
    pub fn inside(&self) -> Option<Self> {
        (self.depth < MAX_DEPTH).then_some(Self { depth: self.depth + 1, ..*self })
    }

    /// The initialisation of a projection from `inputs` values into the stream: uniform in ±1/√inputs, divided by the root
    /// of the number of additions if the model says so (GPT-2; Mamba's rescale_prenorm_residual).
    pub fn into_stream(&self, inputs: usize) -> Init {
        let bound = 1.0 / (inputs as f32).sqrt();
        Init::Uniform(if self.rescale { bound / (self.additions as f32).sqrt() } else { bound })
    }
}
