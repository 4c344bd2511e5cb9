//! The feed-forward layer: a projection to a wider space, an activation, an optional gate, and a projection back.
//!
//! y = W₂ f(W₁ x), or with a gate y = W₂ (f(W x) ⊙ V x) (Shazeer 2020, arXiv 2002.05202: SwiGLU with silu, GeGLU with gelu).

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{Function, Map, glu, map};
use crate::params::{Bias, Init, ParamBuilder};
use crate::pass::Cx;
use crate::settings::{Auto, Problem, Size};
use crate::state::LayerState;

crate::settings! {
    /// A feed-forward layer.
    pub struct Settings {
        /// Inner width; "auto" is 8/3 d_model with a gate, rounded up to a multiple of 8, and 4 d_model without.
        width: Auto<Size> = Auto::Auto,
        /// Activation: "silu", "gelu", "gelu-tanh", "relu", "squared-relu".
        activation: Activation = Activation::Silu,
        /// Factor a of the activation's input: with a gate, y = W₂ (f(a W x) ⊙ V x) (Falcon-H1).
        activation_scale: f32 = 1.0,
        /// Whether a second projection of the input gates the activation: SwiGLU with silu, GeGLU with gelu.
        gate: bool = true,
        /// Whether the projections have biases.
        bias: bool = false,
    }
}

/// The activations to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names of functions")]
pub enum Activation {
    Silu,
    Gelu,
    GeluTanh,
    Relu,
    SquaredRelu,
}

impl Activation {
    pub(super) fn function(self) -> Function {
        match self {
            Self::Silu => Function::Silu,
            Self::Gelu => Function::Gelu,
            Self::GeluTanh => Function::GeluTanh,
            Self::Relu => Function::Relu,
            Self::SquaredRelu => Function::SquaredRelu,
        }
    }
}

/// The parameters of one feed-forward layer.
#[derive(Debug)]
pub struct Mlp {
    d_model: usize,
    width: usize,
    activation: Function,
    activation_scale: f32,
    gate: bool,
    /// `[2 width d]` with a gate, the rows of W before those of V; else `[width d]`.
    up: Linear,
    /// `[d width]`.
    down: Linear,
}

impl Settings {
    fn width(&self, d_model: usize) -> usize {
        let auto = if self.gate { (8 * d_model).div_ceil(3).next_multiple_of(8) } else { 4 * d_model };
        self.width.or(Size::new(auto)).get()
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        Self { width: Auto::Is(Size::new(self.width(at.d_model))), ..self.clone() }
    }

    pub(super) fn check(&self, _at: &At<'_>) -> Result<(), Problem> {
        Problem::unless_positive("activation_scale", self.activation_scale)
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Mlp> {
        let (d, width) = (at.d_model, self.width(at.d_model));
        let rows = if self.gate { 2 * width } else { width };
        let bias = || Bias::zeros(self.bias);
        Ok(Mlp {
            d_model: d,
            width,
            activation: self.activation.function(),
            activation_scale: self.activation_scale,
            gate: self.gate,
            up: p.linear("up", [rows, d], &Init::fan_in(d), bias())?,
            down: p.linear("down", [d, width], &at.into_stream(width), bias())?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let gelu = Self { activation: Activation::Gelu, gate: false, bias: true, ..Self::default() };
        let scaled = Self { activation_scale: 0.7, ..Self::default() };
        vec![Self { width: Auto::Is(Size::new(12)), ..Self::default() }, gelu, scaled]
    }
}

impl Layer for Mlp {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let up = self.up.forward(cx, x)?; // [b l 2w] with a gate, else [b l w]
        let f = Map { alpha: self.activation_scale, ..self.activation.into() };
        let inner = if self.gate { glu(f, &up)? } else { map(f, &up)? }; // [b l w]
        Ok((self.down.forward(cx, &inner)?, state)) // [b l d]
    }

    fn cost(&self, _context: u64) -> Cost {
        let (d, w) = (self.d_model as u64, self.width as u64);
        let rows = if self.gate { 2 * w } else { w };
        let biases = self.up.bias().map_or(0, |_| rows) + self.down.bias().map_or(0, |_| d);
        let params = d * rows + w * d;
        Cost { flops: 2 * params + biases + 8 * w, params: params + biases, state: 0, kept: rows + w }
    }
}
