//! The sLSTM layer of xLSTM (Beck et al. 2024, arXiv 2405.04517): a convolution before the gates i and f, maps and recurrent
//! matrices that are block-diagonal by head, exponential gates with a stabiliser, and a norm of each head. There is no
//! projection back.
//!
//! | here | official code (`xlstm/blocks/slstm`) | |
//! |---|---|---|
//! | `i_proj`, `f_proj` | `fgate`, `igate` | crossed: there the input gate reads `fgate` and the forget gate `igate` |
//! | `z_proj`, `o_proj` | `zgate`, `ogate` | `[heads c c]`, c = d / heads |
//! | `recurrent.weight` | `slstm_cell._recurrent_kernel_` | `[heads 4c c]`, gates i, f, z, o |
//! | `recurrent.bias` | `slstm_cell._bias_` | `[4 d]`: gate, head, channel |
//! | `norm.weight` | `group_norm.weight` | the factor is 1 + weight |

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::ops::{CellArgs, CellKind, add_constant, block_linear, causal_conv1d, cell, head_norm};
use crate::params::{Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// An sLSTM layer.
    pub struct Settings {
        /// Heads: blocks of the maps and of the recurrent matrices.
        heads: Size = Size::new(4),
        /// Taps of the causal convolution before the input and forget gates, including the current position.
        d_conv: Size = Size::new(4),
        /// Epsilon of the norm of each head.
        norm_eps: f32 = 1e-5,
    }
}

/// The parameters of one sLSTM layer.
#[derive(Debug)]
pub struct Slstm {
    d_model: usize,
    heads: usize,
    d_conv: usize,
    norm_eps: f32,
    /// Taps `[d 1 k]` and bias `[d]`.
    conv1d: (ParamId, ParamId),
    /// `[heads c c]` each: i, f, z, o.
    gates: [ParamId; 4],
    /// `[heads 4c c]` and `[4 d]`.
    recurrent: (ParamId, ParamId),
    norm: ParamId,
}

impl Settings {
    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, _at: &At<'_>) -> Self {
        self.clone()
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        if !at.d_model.is_multiple_of(self.heads.get()) {
            let wanted = format!("a divisor of d_model, which is {}", at.d_model);
            return Err(Problem::value("heads", wanted, self.heads.get()));
        }
        Problem::unless_not_negative("norm_eps", self.norm_eps)
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Slstm> {
        let (d, heads, k) = (at.d_model, self.heads.get(), self.d_conv.get());
        let c = d / heads;
        let taps = p.param("conv1d.weight", &[d, 1, k], &Init::fan_in(k), Traits::TAPS)?;
        let conv_bias = p.param("conv1d.bias", &[d], &Init::fan_in(k), Traits::VECTOR)?;
        let small = Init::Normal((2.0 / (5.0 * d as f32)).sqrt());
        let mut gate = |name: &str| p.param(&format!("{name}_proj.weight"), &[heads, c, c], &small, Traits::MATRIX);
        let gates = [gate("i")?, gate("f")?, gate("z")?, gate("o")?];
        let zeros = Init::Constant(0.0);
        let weight = p.param("recurrent.weight", &[heads, 4 * c, c], &zeros, Traits::MATRIX)?;
        let bias = p.param("recurrent.bias", &[4 * d], &forget_bias(d, c, at), Traits::VECTOR)?;
        let norm = p.param("norm.weight", &[d], &zeros, Traits::VECTOR)?;
        Ok(Slstm {
            d_model: d,
            heads,
            d_conv: k,
            norm_eps: self.norm_eps,
            conv1d: (taps, conv_bias),
            gates,
            recurrent: (weight, bias),
            norm,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        vec![Self::default(), Self { heads: Size::new(1), d_conv: Size::new(2), ..Self::default() }]
    }
}

/// Of the forget gate 5 - 12 (j / (c - 1))^p over the channels j of a head, with p from 0.3 in the first layer to 1.6 in the
/// last; 0 of the other gates.
fn forget_bias(d: usize, c: usize, at: &At<'_>) -> Init {
    let depth = at.index as f32 / at.n_layer.saturating_sub(1).max(1) as f32;
    let power = 0.3 + 1.3 * depth;
    Init::drawn(move |_, i, _| {
        let along = (i % d % c) as f32 / c.saturating_sub(1).max(1) as f32;
        if i / d == 1 { 5.0 - 12.0 * along.powf(power) } else { 0.0 }
    })
}

impl Layer for Slstm {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [window, initial] = state.into_fixed()?; // [b k-1 d], [b 4 d]
        let (taps, bias) = (cx.param(self.conv1d.0), cx.param(self.conv1d.1));
        let (smooth, conv) = causal_conv1d(x, &taps, Some(&bias), (&window, true), cx.in_place(), &cx.layout)?; // [b l d]
        let [i, f, z, o] = self.gates.map(|id| cx.param(id));
        let gates = [(smooth.clone(), i), (smooth, f), (x.clone(), z), (x.clone(), o)];
        let x = block_linear(&gates)?; // [b l 4d]
        let (recurrent, bias) = (cx.param(self.recurrent.0), Some(cx.param(self.recurrent.1)));
        let args = CellArgs { kind: CellKind::Slstm, heads: self.heads, x, recurrent, bias, initial };
        let (y, last) = cell(args, &cx.layout)?; // [b l d]
        let weight = add_constant(&cx.param(self.norm), 1.0)?;
        Ok((head_norm(&y, &weight, self.heads, self.norm_eps)?, LayerState::of([conv, last])))
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("conv", &[self.d_conv - 1, self.d_model]), StateSpec::fixed("cell", &[4, self.d_model])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let [d, k, c] = [self.d_model, self.d_conv, self.d_model / self.heads].map(|x| x as u64);
        let products = 8 * d * c;
        Cost {
            // The gates with their 5 exponentials, and the norm.
            flops: 2 * products + 2 * d * k + 4 * d + 40 * d + 8 * d,
            params: products + d * k + d + 4 * d + d,
            state: d * (k - 1) + 4 * d,
            // The convolution, the gates' inputs, what the cell saves, its output and its norm.
            kept: (1 + 4 + 7 + 1 + 1) * d,
        }
    }
}
