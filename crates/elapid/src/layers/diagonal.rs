//! What the LRU and S5 share: one linear system of n complex modes for all channels, x_t = ā x_{t-1} + b̄ u_t, its output
//! y_t = c Re(C x_t) + D ⊙ u_t, and a gate at every position. They differ in the parameters of ā and b̄ ([`SystemForm`]).
//!
//! The states are conjugates, as [`discretise`] writes them, real parts before imaginary ones: y = x [Re C, Im C]ᵀ then is one
//! product. A bidirectional layer has a second scan of the same inputs in reverse, with columns of C of its own.

use serde::{Deserialize, Serialize};

use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::linear::Linear;
use crate::ops::{
    DiagonalScanArgs, Factors, Field, Function, SystemForm, add_scaled, diagonal_scan, discretise, gated, linear, map,
    repeat,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::state::{LayerState, StateSpec};
use crate::{Result, Tensor};

/// What becomes of the output y of the system, with g = gelu(y) in its tanh form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// y itself.
    None,
    /// g.
    Gelu,
    /// g ⊙ σ(W g + b).
    HalfGlu1,
    /// y ⊙ σ(W g + b).
    HalfGlu2,
    /// (W₁ g + b₁) ⊙ σ(W₂ g + b₂).
    FullGlu,
}

/// What a layer is built from.
pub(super) struct Spec<'a> {
    /// How ā and b̄ follow from the parameters.
    pub(super) form: SystemForm,
    /// Modes.
    pub(super) n: usize,
    /// Names and initial values of the three parameters.
    pub(super) params: [(&'a str, Init); 3],
    /// Of B `[2n d]`.
    pub(super) b: Init,
    /// Of C `[d 2n]`, `[d 4n]` if bidirectional.
    pub(super) c: Init,
    /// The factor c of Re(C x): 2 where conjugate modes are left out.
    pub(super) factor: f32,
    pub(super) bidirectional: bool,
    pub(super) activation: Activation,
    /// Factor of the learning rate of the parameters and B.
    pub(super) lr: f32,
}

/// The parameters of one layer.
#[derive(Debug)]
pub struct Diagonal {
    form: SystemForm,
    d_model: usize,
    n: usize,
    factor: f32,
    bidirectional: bool,
    activation: Activation,
    /// `[n]` each.
    params: [ParamId; 3],
    /// `[2n d]`: real parts, then imaginary ones.
    b: ParamId,
    /// `[d 2n]`, for each direction.
    c: ParamId,
    /// `[d]`.
    d: ParamId,
    /// W `[d d]`, or W₁ and W₂ `[2d d]`.
    out_proj: Option<Linear>,
}

impl Diagonal {
    pub(super) fn build(spec: Spec<'_>, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Self> {
        let Spec { form, n, params, b, c, factor, bidirectional, activation, lr } = spec;
        let (d, precise) = (at.d_model, Traits { lr, ..Traits::PRECISE });
        let [one, two, three] = params;
        let mut vector = |(name, init): (&str, Init)| p.param(name, &[n], &init, precise);
        let params = [vector(one)?, vector(two)?, vector(three)?];
        let b = p.param("B", &[2 * n, d], &b, precise)?;
        let c = p.param("C", &[d, 2 * n * (1 + usize::from(bidirectional))], &c, Traits::MATRIX)?;
        let skip = p.param("D", &[d], &Init::Normal(1.0), Traits::PRECISE)?;
        let rows = match activation {
            Activation::None | Activation::Gelu => 0,
            Activation::HalfGlu1 | Activation::HalfGlu2 => d,
            Activation::FullGlu => 2 * d,
        };
        let init = Init::Normal((d as f32).powf(-0.5));
        let out_proj = (rows > 0).then(|| p.linear("out_proj", [rows, d], &init, Bias::zeros(true))).transpose()?;
        Ok(Self { form, d_model: d, n, factor, bidirectional, activation, params, b, c, d: skip, out_proj })
    }

    /// y `[b l d]` of the states `[b l 2n]` of each direction.
    fn output(&self, cx: &Cx, u: &Var, states: &[Var]) -> Result<Var> {
        let (c, columns) = (cx.param(self.c), 2 * self.n);
        let mut sum: Option<Var> = None;
        for (i, x) in states.iter().enumerate() {
            let c = if states.len() == 1 { c.clone() } else { c.columns(i * columns, columns) };
            let product = linear(x, &c, None)?; // b l n, d n -> b l d
            sum = Some(match sum {
                None => product,
                Some(sum) => add_scaled(&sum, 1.0, &product, 1.0)?,
            });
        }
        let skip = gated(Function::Identity, &repeat(&cx.param(self.d), u)?, u)?;
        match sum {
            Some(sum) => add_scaled(&sum, self.factor, &skip, 1.0),
            None => Ok(skip),
        }
    }

    fn activated(&self, cx: &Cx, y: Var) -> Result<Var> {
        if self.activation == Activation::None {
            return Ok(y);
        }
        let g = map(Function::GeluTanh, &y)?;
        let Some(out_proj) = &self.out_proj else { return Ok(g) };
        let gate = out_proj.forward(cx, &g)?; // [b l d] or [b l 2d]
        match self.activation {
            Activation::HalfGlu2 => gated(Function::Sigmoid, &gate, &y),
            Activation::FullGlu => {
                let d = self.d_model;
                gated(Function::Sigmoid, &gate.columns(d, d), &gate.columns(0, d))
            }
            _ => gated(Function::Sigmoid, &gate, &g),
        }
    }
}

impl Layer for Diagonal {
    fn forward(&self, cx: &Cx, u: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let params = self.params.map(|id| cx.param(id));
        let (device, dtype) = (u.value().device(), u.value().dtype());
        let (a, b) = discretise(self.form, params.each_ref(), &cx.param(self.b), dtype)?;
        let inputs = linear(u, &b, None)?; // b l d, n d -> b l n
        let scan = |initial: Var, reverse: bool| {
            let args = DiagonalScanArgs {
                field: Field::Complex,
                x: inputs.clone(),
                factors: Factors::Constant(a.clone()),
                initial,
                reverse,
                in_place: cx.in_place() && !self.bidirectional,
            };
            diagonal_scan(args, &cx.layout) // [b l 2n], [b 2n]
        };
        let (states, last) = if self.bidirectional {
            let zeros = || -> Result<Var> {
                Ok(Tensor::zeros_on(device, crate::DType::F32, &[cx.layout.b, 2 * self.n])?.into())
            };
            (vec![scan(zeros()?, false)?.0, scan(zeros()?, true)?.0], LayerState::default())
        } else {
            let [initial] = state.into_fixed()?; // [b 2n]
            let (x, last) = scan(initial, false)?;
            (vec![x], LayerState::of([last]))
        };
        let y = self.output(cx, u, &states)?;
        Ok((self.activated(cx, y)?, last))
    }

    fn state(&self) -> Vec<StateSpec> {
        if self.bidirectional { Vec::new() } else { vec![StateSpec::fixed("ssm", &[2 * self.n])] }
    }

    fn promises(&self) -> Promises {
        let split = if self.bidirectional { Split::Whole } else { Split::Exact };
        Promises { split, ..Promises::ALL }
    }

    fn cost(&self, _context: u64) -> Cost {
        let (d, n, scans) = (self.d_model as u64, self.n as u64, 1 + u64::from(self.bidirectional));
        let rows = match self.activation {
            Activation::None | Activation::Gelu => 0,
            Activation::HalfGlu1 | Activation::HalfGlu2 => d,
            Activation::FullGlu => 2 * d,
        };
        let gelu = if self.activation == Activation::None { 0 } else { d };
        let matrices = 2 * n * d * (1 + scans) + rows * d;
        Cost {
            flops: 2 * matrices + scans * (8 * n + d) + 2 * d + 12 * gelu + 6 * rows,
            params: matrices + 3 * n + d + rows,
            state: if self.bidirectional { 0 } else { 2 * n },
            // Inputs and states of the scans, D ⊙ u, y, g, the gate, and their product.
            kept: 2 * n * (1 + scans) + 2 * d + gelu + rows + if rows > 0 { d } else { 0 },
        }
    }
}
