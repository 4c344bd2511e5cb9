//! BaseConv of zoology (Arora et al. 2023, arXiv 2312.04927, section 4): a short causal convolution times a projection, with its
//! input added: y = f(conv(x)) ⊙ f(W x + b) + x, where f is nothing or silu.

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{Function, add_scaled, causal_conv1d, gated, map};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// BaseConv: a short convolution times a projection, plus its input.
    pub struct Settings {
        /// Taps of the causal convolution, including the current position.
        d_conv: Size = Size::new(3),
        /// Whether silu is applied to both factors.
        silu: bool = false,
    }
}

/// The parameters of one BaseConv.
#[derive(Debug)]
pub struct BaseConv {
    d_model: usize,
    d_conv: usize,
    silu: bool,
    /// Taps `[d 1 k]` and bias `[d]`.
    conv1d: (ParamId, ParamId),
    /// `[d d]`.
    proj: Linear,
}

impl Settings {
    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, _at: &At<'_>) -> Self {
        self.clone()
    }

    #[allow(clippy::unnecessary_wraps, reason = "every kind has this signature")]
    pub(super) fn check(&self, _at: &At<'_>) -> Result<(), Problem> {
        Ok(())
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<BaseConv> {
        let (d, k) = (at.d_model, self.d_conv.get());
        let taps = p.param("conv1d.weight", &[d, 1, k], &Init::fan_in(k), Traits::TAPS)?;
        let bias = p.param("conv1d.bias", &[d], &Init::fan_in(k), Traits::VECTOR)?;
        let proj = p.linear("proj", [d, d], &Init::fan_in(d), Bias::zeros(true))?;
        Ok(BaseConv { d_model: d, d_conv: k, silu: self.silu, conv1d: (taps, bias), proj })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        vec![Self::default(), Self { silu: true, d_conv: Size::new(4) }]
    }
}

impl Layer for BaseConv {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [window] = state.into_fixed()?; // [b k-1 d]
        let (taps, bias) = (cx.param(self.conv1d.0), cx.param(self.conv1d.1));
        let (near, last) = causal_conv1d(x, &taps, Some(&bias), (&window, self.silu), cx.in_place(), &cx.layout)?; // [b l d]
        let proj = self.proj.forward(cx, x)?; // [b l d]
        let proj = if self.silu { map(Function::Silu, &proj)? } else { proj };
        let y = gated(Function::Identity, &near, &proj)?;
        Ok((add_scaled(&y, 1.0, x, 1.0)?, LayerState::of([last])))
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("conv", &[self.d_conv - 1, self.d_model])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let (d, k) = (self.d_model as u64, self.d_conv as u64);
        let silu = if self.silu { 8 * d } else { 0 };
        Cost {
            flops: 2 * d * d + d + 2 * d * k + d + silu + 2 * d,
            params: d * d + d + d * k + d,
            state: d * (k - 1),
            // The convolution, the projection before and after silu, and the product.
            kept: if self.silu { 4 * d } else { 3 * d },
        }
    }
}
