//! The gated short convolution of Based (Arora et al. 2024, arXiv 2402.18668): [u₁ u₂] = W_in x + b, y = W_out(silu(conv(u₁)) ⊙ u₂)
//! + b. The official code is `based/models/mixers/convolution.py`, class `BaseConv`.

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{Function, causal_conv1d, gated};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// The gated short convolution of Based.
    pub struct Settings {
        /// Taps of the causal convolution, including the current position.
        d_conv: Size = Size::new(3),
        /// Channels of the convolution, in units of d_model.
        expand: Size = Size::new(2),
        /// Whether the convolution has a bias.
        conv_bias: bool = false,
        /// Whether the projections have biases.
        bias: bool = true,
    }
}

/// The parameters of one gated convolution.
#[derive(Debug)]
pub struct GatedConv {
    d_model: usize,
    inner: usize,
    d_conv: usize,
    /// `[2 inner d]`: u₁, then u₂.
    in_proj: Linear,
    /// Taps `[inner 1 k]` and bias `[inner]`.
    conv1d: (ParamId, Option<ParamId>),
    /// `[d inner]`.
    out_proj: Linear,
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

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<GatedConv> {
        let (d, inner, k) = (at.d_model, self.expand.get() * at.d_model, self.d_conv.get());
        let in_proj = p.linear("in_proj", [2 * inner, d], &Init::fan_in(d), Bias::zeros(self.bias))?;
        let taps = p.param("conv1d.weight", &[inner, 1, k], &Init::fan_in(k), Traits::TAPS)?;
        let conv_bias = match self.conv_bias {
            true => Some(p.param("conv1d.bias", &[inner], &Init::fan_in(k), Traits::VECTOR)?),
            false => None,
        };
        let out_proj = p.linear("out_proj", [d, inner], &at.into_stream(inner), Bias::zeros(self.bias))?;
        Ok(GatedConv { d_model: d, inner, d_conv: k, in_proj, conv1d: (taps, conv_bias), out_proj })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let other = Self { d_conv: Size::new(2), expand: Size::new(1), conv_bias: true, bias: false };
        vec![Self::default(), other]
    }
}

impl Layer for GatedConv {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [window] = state.into_fixed()?; // [b k-1 inner]
        let u = self.in_proj.forward(cx, x)?; // [b l 2 inner]
        let (u1, u2) = (u.columns(0, self.inner), u.columns(self.inner, self.inner));
        let (taps, bias) = (cx.param(self.conv1d.0), self.conv1d.1.map(|id| cx.param(id)));
        let (near, last) = causal_conv1d(&u1, &taps, bias.as_ref(), (&window, true), cx.in_place(), &cx.layout)?;
        let y = gated(Function::Identity, &near, &u2)?; // [b l inner]
        Ok((self.out_proj.forward(cx, &y)?, LayerState::of([last])))
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("conv", &[self.d_conv - 1, self.inner])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let (d, inner, k) = (self.d_model as u64, self.inner as u64, self.d_conv as u64);
        let products = 3 * inner * d;
        let biases = self.in_proj.bias().map_or(0, |_| 2 * inner) + self.out_proj.bias().map_or(0, |_| d);
        let conv_bias = self.conv1d.1.map_or(0, |_| inner);
        Cost {
            flops: 2 * products + biases + 2 * inner * k + conv_bias + 4 * inner + inner,
            params: products + biases + inner * k + conv_bias,
            state: inner * (k - 1),
            // [u₁ u₂], the convolution, and the product.
            kept: 4 * inner,
        }
    }
}
