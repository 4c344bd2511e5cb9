//! What the vanilla RNN, the LSTM and the GRU share: one projection of the input to all gates, the cell, and a projection
//! back where the cell is not as wide as the stream.
//!
//! | here | PyTorch | |
//! |---|---|---|
//! | `in_proj` | `weight_ih`, `bias_ih` | `[(gate w) d]`, gates in PyTorch's order |
//! | `recurrent` | `weight_hh`, `bias_hh` | `[(gate w) w]` |

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{CellArgs, CellKind, cell};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::state::{LayerState, StateSpec};

/// The parameters of one layer.
#[derive(Debug)]
pub struct Recurrent {
    kind: CellKind,
    d_model: usize,
    width: usize,
    in_proj: Linear,
    /// U `[(gate w) w]`, and what is added to U h.
    recurrent: (ParamId, Option<ParamId>),
    /// `[d w]`, if w is not d.
    out_proj: Option<Linear>,
}

impl Recurrent {
    /// A layer with a cell of this width. All is uniform in ±1/√width, as in PyTorch.
    pub(super) fn build(
        kind: CellKind,
        width: usize,
        bias: bool,
        at: &At<'_>,
        p: &mut ParamBuilder<'_>,
    ) -> Result<Self> {
        let (d, init) = (at.d_model, Init::fan_in(width));
        let rows = kind.gates() * width;
        let in_bias = if bias { Bias::Yes(init.clone()) } else { Bias::No };
        let in_proj = p.linear("in_proj", [rows, d], &init, in_bias)?;
        let weight = p.param("recurrent.weight", &[rows, width], &init, Traits::MATRIX)?;
        let bias = match bias {
            true => Some(p.param("recurrent.bias", &[rows], &init, Traits::VECTOR)?),
            false => None,
        };
        let out_proj = match width == d {
            true => None,
            false => Some(p.linear("out_proj", [d, width], &at.into_stream(width), Bias::No)?),
        };
        Ok(Self { kind, d_model: d, width, in_proj, recurrent: (weight, bias), out_proj })
    }
}

impl Layer for Recurrent {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [initial] = state.into_fixed()?; // [b s w]
        let x = self.in_proj.forward(cx, x)?; // [b l (gate w)]
        let (weight, bias) = self.recurrent;
        let (recurrent, bias) = (cx.param(weight), bias.map(|id| cx.param(id)));
        let (y, last) = cell(CellArgs { kind: self.kind, heads: 1, x, recurrent, bias, initial }, &cx.layout)?; // [b l w]
        let y = match &self.out_proj {
            None => y,
            Some(proj) => proj.forward(cx, &y)?, // [b l d]
        };
        Ok((y, LayerState::of([last])))
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("cell", &[self.kind.states(), self.width])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let [d, w, gates, states] = [self.d_model, self.width, self.kind.gates(), self.kind.states()].map(|x| x as u64);
        let products = gates * w * (d + w) + self.out_proj.as_ref().map_or(0, |_| d * w);
        let biases = self.recurrent.1.map_or(0, |_| 2 * gates * w);
        Cost {
            // Per gate: the sum, an exponential, and about 6 for the state.
            flops: 2 * products + biases + 8 * gates * w,
            params: products + biases,
            state: states * w,
            // The gates' inputs, what the cell saves of them and of the states, and y.
            kept: (2 * gates + states) * w,
        }
    }
}
