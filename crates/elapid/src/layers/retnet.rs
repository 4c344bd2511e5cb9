//! Multi-scale retention (RetNet, Sun et al. 2023, arXiv 2307.08621): linear attention whose state decays by a constant of each head,
//! γ_h = 1 - 2^(-5-h), with rotary positions, a norm of each head, and a gate.
//!
//! The factors by which the paper's code keeps its state in range are left out: each is one positive number for a head and a
//! position, which the norm of that head removes. The official code is `torchscale/component/multiscale_retention.py`.

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::layers::attention::Rope;
use crate::linear::Linear;
use crate::ops::{
    Decay, GatePlace, GroupNorm, LinearAttentionArgs, Pairs, Rotary, Scaling, group_norm, linear_attention, rotate,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// Multi-scale retention.
    pub struct Settings {
        /// Number of heads.
        heads: Size = Size::new(4),
        /// Columns per head of queries and keys; "auto" is d_model / heads.
        key_dim: Auto<Size> = Auto::Auto,
        /// Columns per head of values; "auto" is twice key_dim.
        value_dim: Auto<Size> = Auto::Auto,
        /// Rotary positions: "none", "pairs" (columns 2i and 2i + 1), "halves" (i and i + key_dim / 2, as flash-linear-attention).
        rope: Rope = Rope::Pairs,
        /// Base of the rotary frequencies, ...
        rope_base: f32 = 10000.0,
        /// ... the lowest of which is 1 / base (RetNet), not base^(2/key_dim - 1).
        rope_to_base: bool = true,
        /// Whether the output is multiplied by silu of a projection of the input.
        gate: bool = true,
        /// Whether the norm of each head has a weight for its columns.
        norm_weight: bool = false,
        /// Its epsilon; "auto" is the model's norm_eps.
        norm_eps: Auto<f32> = Auto::Auto,
    }
}

/// The parameters of one layer.
#[derive(Debug)]
pub struct Retnet {
    d_model: usize,
    heads: usize,
    key: usize,
    value: usize,
    rotary: Option<Rotary>,
    /// log γ, `[h]`.
    decay: ParamId,
    gate: bool,
    /// `[heads (2 key + 2 value) d]`: q, k, v, g; without a gate q, k, v.
    qkvg: Linear,
    norm: Option<ParamId>,
    norm_eps: f32,
    out_proj: Linear,
}

impl Settings {
    fn dims(&self, d_model: usize) -> (usize, usize) {
        let key = self.key_dim.or(Size::new((d_model / self.heads.get()).max(1))).get();
        (key, self.value_dim.or(Size::new(2 * key)).get())
    }

    fn rotary(&self, key: usize) -> Option<Rotary> {
        let (pairs, base) = match self.rope {
            Rope::None => return None,
            Rope::Halves => (Pairs::Halves, f64::from(self.rope_base)),
            Rope::Pairs => (Pairs::Interleaved, f64::from(self.rope_base)),
        };
        let plain = Rotary::new(key, key, base, Scaling::None, pairs);
        let last = (key / 2).saturating_sub(1).max(1) as f64;
        let frequencies = (0..key / 2).map(|j| base.powf(-(j as f64) / last)).collect();
        Some(if self.rope_to_base { Rotary { frequencies, ..plain } } else { plain })
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        let (key, value) = self.dims(at.d_model);
        let rotates = self.rope != Rope::None;
        Self {
            key_dim: Auto::Is(Size::new(key)),
            value_dim: Auto::Is(Size::new(value)),
            rope_base: if rotates { self.rope_base } else { 0.0 },
            rope_to_base: rotates && self.rope_to_base,
            norm_eps: Auto::Is(self.norm_eps.or(at.norm_eps)),
            ..self.clone()
        }
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let (key, _) = self.dims(at.d_model);
        if self.rope != Rope::None {
            Problem::unless_positive("rope_base", self.rope_base)?;
            if !key.is_multiple_of(2) {
                return Err(Problem::value("key_dim", "an even number, as its columns are rotated in pairs", key));
            }
        }
        Problem::unless_not_negative("norm_eps", self.norm_eps.or(0.0))
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Retnet> {
        let (d, heads, (key, value)) = (at.d_model, self.heads.get(), self.dims(at.d_model));
        // Xavier's bound times 2^-2.5.
        let small =
            |inputs: usize, outputs: usize| Init::Uniform((6.0 / (inputs + outputs) as f32).sqrt() * 2.0f32.powf(-2.5));
        let gamma = Init::drawn(|_, h, _| (-(2.0f32.powf(-5.0 - h as f32))).ln_1p());
        let norm = match self.norm_weight {
            true => Some(p.param("norm.weight", &[value], &Init::Constant(1.0), Traits::VECTOR)?),
            false => None,
        };
        let rows = heads * (2 * key + if self.gate { 2 * value } else { value });
        Ok(Retnet {
            d_model: d,
            heads,
            key,
            value,
            rotary: self.rotary(key),
            decay: p.param("decay", &[heads], &gamma, Traits::BUFFER)?,
            gate: self.gate,
            qkvg: p.linear("qkvg", [rows, d], &small(d, heads * key), Bias::No)?,
            norm,
            norm_eps: self.norm_eps.or(at.norm_eps),
            out_proj: p.linear("out_proj", [d, heads * value], &at.into_stream(heads * value), Bias::No)?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // Outputs are small at first, where a norm bends so much that a difference quotient is not the gradient.
        let plain = Self { heads: Size::new(2), norm_eps: Auto::Is(0.1), ..Self::default() };
        let other = Self { rope: Rope::Halves, rope_to_base: false, norm_weight: true, ..plain.clone() };
        let none = Self { rope: Rope::None, value_dim: Auto::Is(Size::new(3)), gate: false, ..plain.clone() };
        vec![plain, other, none]
    }
}

impl Layer for Retnet {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [initial] = state.into_fixed()?; // [b h k v]
        let (key, value) = (self.heads * self.key, self.heads * self.value);
        let all = self.qkvg.forward(cx, x)?; // [b l h(2k+2v)]
        let rotated = |x: Var| match &self.rotary {
            None => Ok(x),
            Some(rotary) => rotate(&x, rotary, &cx.layout),
        };
        let args = LinearAttentionArgs {
            q: rotated(all.columns(0, key))?,
            k: rotated(all.columns(key, key))?,
            v: all.columns(2 * key, value),
            groups: self.heads,
            heads: self.heads,
            scale: (self.key as f32).powf(-0.5),
            decay: Decay::Head(cx.param(self.decay)),
            write: None,
            bonus: None,
            skip: None,
            normaliser: None,
            initial,
            in_place: cx.in_place(),
        };
        let (y, last) = linear_attention(args, &cx.layout)?; // [b l hv]
        let gate = self.gate.then(|| (all.columns(2 * key + value, value), GatePlace::After));
        let weight = self.norm.map(|id| cx.param(id));
        let norm = GroupNorm { gate, groups: self.heads, centred: false, weight, bias: None, eps: self.norm_eps };
        Ok((self.out_proj.forward(cx, &group_norm(&y, norm)?)?, LayerState::of([last]))) // [b l d]
    }

    fn reads_positions(&self) -> bool {
        self.rotary.is_some()
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("ssm", &[self.heads, self.key, self.value])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let [d, h, key, value] = [self.d_model, self.heads, self.key, self.value].map(|x| x as u64);
        let values = if self.gate { 2 * value } else { value };
        let products = d * h * (2 * key + values) + d * h * value;
        let norm = self.norm.map_or(0, |_| value);
        Cost {
            // Per element of the state a decay, a write and a read; rotations, the norm and the gate.
            flops: 2 * products + 5 * h * key * value + 12 * h * key + 10 * h * value,
            params: products + norm + h,
            state: h * key * value,
            // [q k v g], q and k rotated, y before and after the norm; a state every 64 positions.
            kept: h * (4 * key + values + 2 * value) + h * key * value / 64,
        }
    }

    fn promises(&self) -> Promises {
        Promises { split: Split::Rounded, ..Promises::ALL }
    }
}
