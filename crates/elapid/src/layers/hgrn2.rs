//! HGRN2 (Qin et al. 2024, arXiv 2404.07904): linear attention whose forget gate f decays the state row by row, and whose keys are what
//! is left: S_t = diag(f_t) S_{t-1} + (1 - f_t) v_tᵀ, with q through swish, f = lb + (1 - lb) σ(W_f x) above a lower bound lb, and one
//! norm over all channels.
//!
//! The official code is `fla/layers/hgrn2.py`. There the bounds of all layers come from one parameter; here each layer has its
//! own, or none (as the first layer there).

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::linear::Linear;
use crate::ops::{
    Decay, Function, GroupNorm, LinearAttentionArgs, Map, add_constant, gated, group_norm, linear_attention, map,
    repeat, scaled,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// HGRN2's mixer.
    pub struct Settings {
        /// Rows of a head's state: columns per head of queries and keys. There are d_model / key_dim heads.
        key_dim: Size = Size::new(128),
        /// Whether the forget gate has a learned lower bound for each channel.
        lower_bound: bool = false,
        /// Epsilon of the norm; "auto" is the model's norm_eps.
        norm_eps: Auto<f32> = Auto::Auto,
    }
}

/// The parameters of one layer.
#[derive(Debug)]
pub struct Hgrn2 {
    d_model: usize,
    key: usize,
    /// `[3 d d]`: q, f, v.
    qfv: Linear,
    /// `[d]`.
    lower_bound: Option<ParamId>,
    norm: (ParamId, f32),
    out_proj: Linear,
}

impl Settings {
    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        Self { norm_eps: Auto::Is(self.norm_eps.or(at.norm_eps)), ..self.clone() }
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        if !at.d_model.is_multiple_of(self.key_dim.get()) {
            return Err(Problem::value(
                "key_dim",
                format!("a divisor of d_model, which is {}", at.d_model),
                self.key_dim,
            ));
        }
        Problem::unless_not_negative("norm_eps", self.norm_eps.or(0.0))
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Hgrn2> {
        let d = at.d_model;
        let qfv = p.linear("qfv", [3 * d, d], &Init::fan_in(d), Bias::No)?;
        let lower_bound = match self.lower_bound {
            true => Some(p.param("lower_bound", &[d], &Init::Constant(0.0), Traits::PRECISE)?),
            false => None,
        };
        let weight = p.param("norm.weight", &[d], &Init::Constant(1.0), Traits::VECTOR)?;
        Ok(Hgrn2 {
            d_model: d,
            key: self.key_dim.get(),
            qfv,
            lower_bound,
            norm: (weight, self.norm_eps.or(at.norm_eps)),
            out_proj: p.linear("out_proj", [d, d], &at.into_stream(d), Bias::No)?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // Outputs are small at first, where a norm bends so much that a difference quotient is not the gradient.
        let plain = Self { key_dim: Size::new(4), norm_eps: Auto::Is(0.1), ..Self::default() };
        vec![plain.clone(), Self { key_dim: Size::new(8), lower_bound: true, ..plain }]
    }
}

impl Layer for Hgrn2 {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [initial] = state.into_fixed()?; // [b h k v]
        let d = self.d_model;
        let all = self.qfv.forward(cx, x)?; // [b l 3d]
        let raw = all.columns(d, d);
        // 1 - σ(x) = σ(-x).
        let rest = Map { alpha: -1.0, ..Function::Sigmoid.into() };
        let (k, decay) = match self.lower_bound {
            None => (map(rest, &raw)?, map(Function::LogSigmoid, &raw)?),
            Some(bound) => {
                let above = add_constant(&scaled(&cx.param(bound), -1.0)?, 1.0)?;
                let k = gated(rest, &raw, &repeat(&above, &raw)?)?;
                let decay = map(Function::LogOneMinus, &k)?;
                (k, decay)
            }
        };
        let heads = d / self.key;
        let args = LinearAttentionArgs {
            q: map(Function::Silu, &all.columns(0, d))?,
            k,
            v: all.columns(2 * d, d),
            groups: heads,
            heads,
            scale: (self.key as f32).powf(-0.5),
            decay: Decay::KeyVarying(decay),
            write: None,
            bonus: None,
            skip: None,
            normaliser: None,
            initial,
            in_place: cx.in_place(),
        };
        let (y, last) = linear_attention(args, &cx.layout)?; // [b l d]
        let (weight, eps) = (Some(cx.param(self.norm.0)), self.norm.1);
        let y = group_norm(&y, GroupNorm { gate: None, groups: 1, centred: false, weight, bias: None, eps })?;
        Ok((self.out_proj.forward(cx, &y)?, LayerState::of([last]))) // [b l d]
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("ssm", &[self.d_model / self.key, self.key, self.key])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let (d, k) = (self.d_model as u64, self.key as u64);
        let products = 4 * d * d;
        let bound = self.lower_bound.map_or(0, |_| d);
        Cost {
            // Per element of the state a decay, a write and a read; the gates, swish and the norm.
            flops: 2 * products + 5 * d * k + 20 * d + 4 * d,
            params: products + d + bound,
            state: d * k,
            // [q f v], q, k and the decay, y before and after the norm; a state every 64 positions.
            kept: 8 * d + d * k / 64,
        }
    }

    fn promises(&self) -> Promises {
        Promises { split: Split::Rounded, ..Promises::ALL }
    }
}
