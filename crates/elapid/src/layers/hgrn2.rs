//! HGRN2 (Qin et al. 2024, arXiv 2404.07904): linear attention whose forget gate f decays the state row by row, and whose keys are what
//! is left: S_t = diag(f_t) S_{t-1} + (1 - f_t) v_tᵀ, with q through swish, f = lb + (1 - lb) σ(W_f x) above a lower bound lb, and one
//! norm over all channels.
//!
//! The bounds of all layers may come from one parameter γ `[n_layer d]`: layer i has Σ_{1 ≤ m ≤ i} softmax(γ)_m, so that bounds rise
//! from 0 in the first layer (HGRN, arXiv 2311.04823, section 3.2).
//!
//! The official code is `fla/layers/hgrn2.py` and `fla/models/hgrn2/modeling_hgrn2.py`.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::linear::Linear;
use crate::ops::{
    Decay, Function, GroupNorm, LinearAttentionArgs, Map, add_constant, cumulative_softmax, gated, group_norm,
    linear_attention, map, repeat, scaled,
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
        /// Learned lower bound of the forget gate, for each channel: "none", "layer" (a parameter of the layer), "model" (one parameter
        /// for all layers, with bounds that rise from 0 in the first layer).
        lower_bound: LowerBound = LowerBound::None,
        /// Epsilon of the norm; "auto" is the model's norm_eps.
        norm_eps: Auto<f32> = Auto::Auto,
    }
}

/// Where the lower bound of the forget gate is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LowerBound {
    /// There is none.
    None,
    /// A parameter of the layer.
    Layer,
    /// A parameter of all layers of the model.
    Model,
}

/// The parameter of all layers' bounds, and the prefix of its name.
const SHARED: (&str, &str) = ("hgrn2", "lower_bounds");

/// The parameters of one layer.
#[derive(Debug)]
pub struct Hgrn2 {
    d_model: usize,
    key: usize,
    /// `[3 d d]`: q, f, v.
    qfv: Linear,
    bound: Bound,
    norm: (ParamId, f32),
    out_proj: Linear,
}

/// The lower bound of a layer.
#[derive(Debug)]
enum Bound {
    None,
    /// `[d]`.
    Own(ParamId),
    /// `[n_layer d]`, and the number of the layer.
    Shared(ParamId, usize),
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
        let zeros = Init::Constant(0.0);
        let bound = match self.lower_bound {
            LowerBound::None => Bound::None,
            LowerBound::Layer => Bound::Own(p.param("lower_bound", &[d], &zeros, Traits::PRECISE)?),
            LowerBound::Model => {
                let shape = [at.n_layer, d];
                let all = p.shared_scope(SHARED.0, |p| p.param(SHARED.1, &shape, &zeros, Traits::PRECISE))?;
                Bound::Shared(all, at.index)
            }
        };
        let weight = p.param("norm.weight", &[d], &Init::Constant(1.0), Traits::VECTOR)?;
        Ok(Hgrn2 {
            d_model: d,
            key: self.key_dim.get(),
            qfv,
            bound,
            norm: (weight, self.norm_eps.or(at.norm_eps)),
            out_proj: p.linear("out_proj", [d, d], &at.into_stream(d), Bias::No)?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // Outputs are small at first, where a norm bends so much that a difference quotient is not the gradient.
        let plain = Self { key_dim: Size::new(4), norm_eps: Auto::Is(0.1), ..Self::default() };
        let own = Self { key_dim: Size::new(8), lower_bound: LowerBound::Layer, ..plain.clone() };
        vec![plain, Self { lower_bound: LowerBound::Model, ..own.clone() }, own]
    }
}

impl Hgrn2 {
    /// `[d]`; none for a bound of 0.
    fn bound(&self, cx: &Cx) -> Result<Option<Var>> {
        match self.bound {
            Bound::None | Bound::Shared(_, 0) => Ok(None),
            Bound::Own(bound) => Ok(Some(cx.param(bound))),
            Bound::Shared(all, index) => cumulative_softmax(&cx.param(all), index).map(Some),
        }
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
        let (k, decay) = match self.bound(cx)? {
            None => (map(rest, &raw)?, map(Function::LogSigmoid, &raw)?),
            Some(bound) => {
                let above = add_constant(&scaled(&bound, -1.0)?, 1.0)?;
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
        let bound = match self.bound {
            Bound::None => 0,
            // Of the shared parameter every layer counts one row.
            Bound::Own(_) | Bound::Shared(..) => d,
        };
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
