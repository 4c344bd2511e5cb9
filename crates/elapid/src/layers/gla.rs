//! Gated linear attention (Yang et al. 2023, arXiv 2312.06635): linear attention whose state decays row by row, by a function of the
//! input: S_t = diag(α_t) S_{t-1} + k_t v_tᵀ, log α_t = log σ(W₂ W₁ x_t + b) / 16, a norm of each head, and a gate.
//!
//! The official code is `fla/layers/gla.py`.

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::linear::Linear;
use crate::ops::{Decay, Function, GatePlace, GroupNorm, LinearAttentionArgs, Map, group_norm, linear_attention, map};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// Gated linear attention.
    pub struct Settings {
        /// Number of heads.
        heads: Size = Size::new(4),
        /// Columns per head of queries and keys; "auto" is d_model / heads / 2.
        key_dim: Auto<Size> = Auto::Auto,
        /// Columns per head of values; "auto" is d_model / heads.
        value_dim: Auto<Size> = Auto::Auto,
        /// Rank of the projection that makes the decay.
        decay_rank: Size = Size::new(16),
        /// What log σ of it is divided by.
        decay_divisor: f32 = 16.0,
        /// Whether the output is multiplied by silu of a projection of the input.
        gate: bool = true,
        /// Epsilon of the norm of each head; "auto" is the model's norm_eps.
        norm_eps: Auto<f32> = Auto::Auto,
    }
}

/// The parameters of one layer.
#[derive(Debug)]
pub struct Gla {
    d_model: usize,
    heads: usize,
    key: usize,
    value: usize,
    rank: usize,
    divisor: f32,
    gate: bool,
    /// `[heads (2 key + 2 value) d]`: q, k, v, g; without a gate q, k, v.
    qkvg: Linear,
    /// `[rank d]`, then `[heads key rank]` with a bias.
    decay: [Linear; 2],
    norm: (ParamId, f32),
    out_proj: Linear,
}

impl Settings {
    fn dims(&self, d_model: usize) -> (usize, usize) {
        let value = self.value_dim.or(Size::new((d_model / self.heads.get()).max(1))).get();
        let key = self.key_dim.or(Size::new((d_model / self.heads.get() / 2).max(1))).get();
        (key, value)
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        let (key, value) = self.dims(at.d_model);
        Self {
            key_dim: Auto::Is(Size::new(key)),
            value_dim: Auto::Is(Size::new(value)),
            norm_eps: Auto::Is(self.norm_eps.or(at.norm_eps)),
            ..self.clone()
        }
    }

    pub(super) fn check(&self, _at: &At<'_>) -> Result<(), Problem> {
        Problem::unless_positive("decay_divisor", self.decay_divisor)?;
        Problem::unless_not_negative("norm_eps", self.norm_eps.or(0.0))
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Gla> {
        let (d, heads, (key, value)) = (at.d_model, self.heads.get(), self.dims(at.d_model));
        let rank = self.decay_rank.get();
        let values = if self.gate { 2 * value } else { value };
        let qkvg = p.linear("qkvg", [heads * (2 * key + values), d], &Init::fan_in(d), Bias::No)?;
        let down = p.linear("decay.down", [rank, d], &Init::fan_in(d), Bias::No)?;
        let up = p.linear("decay.up", [heads * key, rank], &Init::fan_in(rank), Bias::zeros(true))?;
        let weight = p.param("norm.weight", &[value], &Init::Constant(1.0), Traits::VECTOR)?;
        Ok(Gla {
            d_model: d,
            heads,
            key,
            value,
            rank,
            divisor: self.decay_divisor,
            gate: self.gate,
            qkvg,
            decay: [down, up],
            norm: (weight, self.norm_eps.or(at.norm_eps)),
            out_proj: p.linear("out_proj", [d, heads * value], &at.into_stream(heads * value), Bias::No)?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // A state that decays within a few positions. Outputs are small at first, where a norm bends so much that a difference
        // quotient is not the gradient.
        let plain = Self {
            heads: Size::new(2),
            decay_rank: Size::new(3),
            decay_divisor: 4.0,
            norm_eps: Auto::Is(0.1),
            ..Self::default()
        };
        let bare = Self { gate: false, value_dim: Auto::Is(Size::new(5)), ..plain.clone() };
        vec![plain, bare]
    }
}

impl Layer for Gla {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [initial] = state.into_fixed()?; // [b h k v]
        let (key, value) = (self.heads * self.key, self.heads * self.value);
        let all = self.qkvg.forward(cx, x)?; // [b l h(2k+2v)]
        let [down, up] = &self.decay;
        let decay = up.forward(cx, &down.forward(cx, x)?)?; // [b l hk]
        let args = LinearAttentionArgs {
            q: all.columns(0, key),
            k: all.columns(key, key),
            v: all.columns(2 * key, value),
            groups: self.heads,
            heads: self.heads,
            scale: (self.key as f32).powf(-0.5),
            decay: Decay::KeyVarying(map(Map { beta: 1.0 / self.divisor, ..Function::LogSigmoid.into() }, &decay)?),
            write: None,
            bonus: None,
            skip: None,
            normaliser: None,
            initial,
            in_place: cx.in_place(),
        };
        let (y, last) = linear_attention(args, &cx.layout)?; // [b l hv]
        let gate = self.gate.then(|| (all.columns(2 * key + value, value), GatePlace::After));
        let (weight, eps) = (Some(cx.param(self.norm.0)), self.norm.1);
        let norm = GroupNorm { gate, groups: self.heads, centred: false, weight, bias: None, eps };
        Ok((self.out_proj.forward(cx, &group_norm(&y, norm)?)?, LayerState::of([last]))) // [b l d]
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("ssm", &[self.heads, self.key, self.value])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let [d, h, key, value, rank] = [self.d_model, self.heads, self.key, self.value, self.rank].map(|x| x as u64);
        let values = if self.gate { 2 * value } else { value };
        let products = d * h * (2 * key + values) + rank * (d + h * key) + d * h * value;
        Cost {
            // Per element of the state a decay, a write and a read; the decay's function, the norm and the gate.
            flops: 2 * products + h * key + 5 * h * key * value + 10 * h * key + 10 * h * value,
            params: products + h * key + value,
            state: h * key * value,
            // [q k v g], the decay before and after its function, y before and after the norm; a state every 64 positions.
            kept: h * (4 * key + values + 2 * value) + rank + h * key * value / 64,
        }
    }

    fn promises(&self) -> Promises {
        Promises { split: Split::Rounded, ..Promises::ALL }
    }
}
