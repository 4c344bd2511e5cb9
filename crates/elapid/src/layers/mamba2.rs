//! Mamba-2 (Dao and Gu 2024, arXiv 2405.21060): one decay for each head of a state space model, which makes it linear attention with
//! decay (SSD, section 3.2), in the parallel block of figure 6.
//!
//! | here | paper | |
//! |---|---|---|
//! | `inner` | E D | channels of the state space model, `h p` (`d_inner`, or less beside a gated MLP) |
//! | `h`, `p` | H, P | heads and their width (`head_dim`) |
//! | `n` | N | rows of a head's state (`d_state`), the width of B and C |
//! | `g` | G | groups of heads with one B and C (`groups`) |
//!
//! The official code is `mamba_ssm/modules/mamba2.py`; its state is `[b h p n]`, here it is `[b h n p]`.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::linear::Linear;
use crate::ops::{
    Decay, Function, GatePlace, GroupNorm, LinearAttentionArgs, add_constant, add_scaled, causal_conv1d, gated,
    group_norm, linear, linear_attention, repeat, scaled, step_sizes, weighed,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// A Mamba-2 block: a state space model with one decay for each head, gated and normed.
    pub struct Settings {
        /// Rows of a head's state: the N of the paper.
        d_state: Size = Size::new(128),
        /// Taps of the causal convolution, including the current position.
        d_conv: Size = Size::new(4),
        /// Channels inside a block, in units of d_model, ...
        expand: Size = Size::new(2),
        /// ... or their number; "auto" is expand * d_model.
        d_inner: Auto<Size> = Auto::Auto,
        /// Channels of the state space model; "auto" is all. The others are a gated MLP of silu.
        d_ssm: Auto<Size> = Auto::Auto,
        /// Channels per head: the P of the paper.
        head_dim: Size = Size::new(64),
        /// Groups of neighbouring heads that share B and C.
        groups: Size = Size::new(1),
        /// Whether D has a value for each channel, not for each head.
        skip_per_channel: bool = false,
        /// RMSNorm before the output projection: "gate-first" (of what the gate silu(z) has multiplied), "norm-first" (the gate
        /// multiplies it), "none" (the gate alone).
        gated_norm: GatedNorm = GatedNorm::GateFirst,
        /// Groups of neighbouring channels that are normed by themselves; "auto" is groups.
        norm_groups: Auto<Size> = Auto::Auto,
        /// Added to the mean square; "auto" is the model's norm_eps.
        norm_eps: Auto<f32> = Auto::Auto,
        /// Step sizes Δ are at least this ...
        dt_limit_min: f32 = 0.0,
        /// ... and at most this; 0: any.
        dt_limit_max: f32 = 0.0,
        /// Whether the convolution has a bias.
        conv_bias: bool = true,
        /// Whether the projection into a block has a bias, ...
        in_bias: bool = false,
        /// ... and the one out of it.
        out_bias: bool = false,
        /// Whether the state before the first position is learned.
        learned_start: bool = false,
        /// Initial A is -uniform from this ...
        @init a_min: f32 = 1.0,
        /// ... to this.
        @init a_max: f32 = 16.0,
        /// Initial step sizes are log-uniform from this ...
        @init dt_min: f32 = 1e-3,
        /// ... to this, ...
        @init dt_max: f32 = 0.1,
        /// ... and raised to this.
        @init dt_init_floor: f32 = 1e-4,
    }
}

/// The norm before the output projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatedNorm {
    /// None: the gate alone.
    None,
    /// Of what the gate has multiplied.
    GateFirst,
    /// Multiplied by the gate.
    NormFirst,
}

/// The parameters and sizes of one Mamba-2 block.
#[derive(Debug)]
pub struct Mamba2 {
    pub(crate) sizes: Sizes,
    pub(crate) limits: (f32, f32),
    /// `[z₀ x₀] z x B C Δ`, packed.
    pub(crate) in_proj: Linear,
    /// Taps `[inner+2gn 1 k]` and bias.
    pub(crate) conv1d: (ParamId, Option<ParamId>),
    /// `[h]` each.
    pub(crate) dt_bias: ParamId,
    pub(crate) a_log: ParamId,
    /// `[h]`, or `[inner]`.
    pub(crate) d: ParamId,
    pub(crate) norm: Norm,
    /// `[h n p]`.
    pub(crate) start: Option<ParamId>,
    pub(crate) out_proj: Linear,
}

/// The sizes of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) d_model: usize,
    /// Channels of the gated MLP.
    pub(crate) mlp: usize,
    pub(crate) inner: usize,
    pub(crate) h: usize,
    pub(crate) n: usize,
    pub(crate) g: usize,
    pub(crate) k: usize,
    pub(crate) skip_per_channel: bool,
}

/// What is between the state space model and the output projection.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `[inner]`; none: the gate alone.
    pub(crate) weight: Option<ParamId>,
    pub(crate) groups: usize,
    pub(crate) gate: GatePlace,
    pub(crate) eps: f32,
}

impl Sizes {
    /// Channels of the convolution: x, B and C.
    pub(crate) fn conv(self) -> usize {
        self.inner + 2 * self.g * self.n
    }

    /// Rows of the projection into the block.
    pub(crate) fn rows(self) -> usize {
        2 * self.mlp + self.inner + self.conv() + self.h
    }
}

impl Settings {
    fn d_inner(&self, d_model: usize) -> usize {
        self.d_inner.map_or(self.expand.get() * d_model, Size::get)
    }

    fn sizes(&self, at: &At<'_>) -> Sizes {
        let all = self.d_inner(at.d_model);
        let inner = self.d_ssm.map_or(all, Size::get);
        Sizes {
            d_model: at.d_model,
            mlp: all.saturating_sub(inner),
            inner,
            h: inner / self.head_dim.get(),
            n: self.d_state.get(),
            g: self.groups.get(),
            k: self.d_conv.get(),
            skip_per_channel: self.skip_per_channel,
        }
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        let (all, normed) = (self.d_inner(at.d_model), self.gated_norm != GatedNorm::None);
        Self {
            expand: Size::new(1),
            d_inner: Auto::Is(Size::new(all)),
            d_ssm: Auto::Is(self.d_ssm.or(Size::new(all))),
            norm_groups: Auto::Is(if normed { self.norm_groups.or(self.groups) } else { Size::new(1) }),
            norm_eps: Auto::Is(if normed { self.norm_eps.or(at.norm_eps) } else { 0.0 }),
            ..self.clone()
        }
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let all = self.d_inner(at.d_model);
        let inner = self.d_ssm.map_or(all, Size::get);
        if inner > all {
            return Err(Problem::value("d_ssm", format!("at most d_inner, which is {all}"), inner));
        }
        if !inner.is_multiple_of(self.head_dim.get()) {
            return Err(Problem::value("head_dim", format!("a divisor of {inner} channels"), self.head_dim));
        }
        let heads = inner / self.head_dim.get();
        if !heads.is_multiple_of(self.groups.get()) {
            return Err(Problem::value("groups", format!("a divisor of {heads} heads"), self.groups));
        }
        let norm_groups = self.norm_groups.or(self.groups).get();
        if self.gated_norm != GatedNorm::None && !inner.is_multiple_of(norm_groups) {
            return Err(Problem::value("norm_groups", format!("a divisor of {inner} channels"), norm_groups));
        }
        let positive = [("a_min", self.a_min), ("a_max", self.a_max), ("dt_min", self.dt_min), ("dt_max", self.dt_max)];
        positive.into_iter().try_for_each(|(field, x)| Problem::unless_positive(field, x))?;
        let others = [
            ("dt_init_floor", self.dt_init_floor),
            ("dt_limit_min", self.dt_limit_min),
            ("dt_limit_max", self.dt_limit_max),
            ("norm_eps", self.norm_eps.or(0.0)),
        ];
        others.into_iter().try_for_each(|(field, x)| Problem::unless_not_negative(field, x))?;
        for (field, low, high) in [("a_min", self.a_min, self.a_max), ("dt_min", self.dt_min, self.dt_max)] {
            if low > high {
                return Err(Problem::value(field, format!("at most {high}"), low));
            }
        }
        if self.dt_limit_max > 0.0 && self.dt_limit_min > self.dt_limit_max {
            return Err(Problem::value("dt_limit_min", format!("at most {}", self.dt_limit_max), self.dt_limit_min));
        }
        Ok(())
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Mamba2> {
        let sizes = self.sizes(at);
        let Sizes { d_model: d, mlp, inner, h, n, k, .. } = sizes;
        let in_proj = p.linear("in_proj", [sizes.rows(), d], &Init::fan_in(d), Bias::zeros(self.in_bias))?;
        let taps = p.param("conv1d.weight", &[sizes.conv(), 1, k], &Init::fan_in(k), Traits::TAPS)?;
        let conv_bias = match self.conv_bias {
            true => Some(p.param("conv1d.bias", &[sizes.conv()], &Init::fan_in(k), Traits::VECTOR)?),
            false => None,
        };
        let ones = Init::Constant(1.0);
        let norm = match self.gated_norm {
            GatedNorm::None => None,
            _ => Some(p.param("norm.weight", &[inner], &ones, Traits::VECTOR)?),
        };
        let start = match self.learned_start {
            true => Some(p.param("start", &[h, n, inner / h.max(1)], &Init::Constant(0.0), Traits::VECTOR)?),
            false => None,
        };
        let skips = if self.skip_per_channel { inner } else { h };
        Ok(Mamba2 {
            sizes,
            limits: (self.dt_limit_min, if self.dt_limit_max > 0.0 { self.dt_limit_max } else { f32::INFINITY }),
            in_proj,
            conv1d: (taps, conv_bias),
            dt_bias: p.param(
                "dt_bias",
                &[h],
                &Init::step_sizes(self.dt_min, self.dt_max, self.dt_init_floor),
                Traits::PRECISE,
            )?,
            a_log: p.param("A_log", &[h], &self.a_log(), Traits::PRECISE)?,
            d: p.param("D", &[skips], &ones, Traits::PRECISE)?,
            norm: Norm {
                weight: norm,
                groups: self.norm_groups.or(self.groups).get(),
                gate: if self.gated_norm == GatedNorm::NormFirst { GatePlace::After } else { GatePlace::Before },
                eps: self.norm_eps.or(at.norm_eps),
            },
            start,
            out_proj: if mlp == 0 {
                p.linear("out_proj", [d, inner], &at.into_stream(inner), Bias::zeros(self.out_bias))?
            } else {
                // Read in two parts.
                let (shape, init) = ([d, mlp + inner], at.into_stream(mlp + inner));
                let weight = p.param("out_proj.weight", &shape, &init, Traits::MATRIX)?;
                let zeros = Init::Constant(0.0);
                let bias = self.out_bias.then(|| p.param("out_proj.bias", &[d], &zeros, Traits::VECTOR)).transpose()?;
                Linear::new(weight, bias)
            },
        })
    }

    /// ln of uniform A.
    fn a_log(&self) -> Init {
        let (min, max) = (self.a_min, self.a_max);
        Init::drawn(move |draw, _, _| (min + draw.uniform() * (max - min)).ln())
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // Step sizes with which the state decays within some positions; outputs are small at first, where a norm bends so much that
        // a difference quotient is not the gradient.
        let plain = Self {
            d_state: Size::new(6),
            head_dim: Size::new(4),
            norm_eps: Auto::Is(0.1),
            dt_min: 0.02,
            dt_max: 0.2,
            ..Self::default()
        };
        let groups = Self { groups: Size::new(2), gated_norm: GatedNorm::NormFirst, ..plain.clone() };
        let mlp = Self { d_ssm: Auto::Is(Size::new(16)), in_bias: true, out_bias: true, ..plain.clone() };
        let bare = Self {
            gated_norm: GatedNorm::None,
            skip_per_channel: true,
            dt_limit_min: 0.05,
            dt_limit_max: 0.15,
            conv_bias: false,
            ..plain.clone()
        };
        vec![plain, groups, mlp, bare]
    }
}

impl Layer for Mamba2 {
    fn forward(&self, cx: &Cx, input: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let Sizes { mlp, inner, h, n, g, .. } = self.sizes;
        let mut slots = state.into_slots();
        let rest = LayerState::new(slots.split_off(2));
        let [window, initial] = LayerState::new(slots).into_fixed()?; // [b k-1 inner+2gn], [b h n p]
        let (initial, rest) = self.started(cx, initial, rest)?;

        let packed = self.in_proj.forward(cx, input)?; // [b l 2mlp+2inner+2gn+h]
        let z = packed.columns(2 * mlp, inner);
        let xbc = packed.columns(2 * mlp + inner, self.sizes.conv());
        let dt = packed.columns(2 * mlp + inner + self.sizes.conv(), h);
        let (taps, bias) = (cx.param(self.conv1d.0), self.conv1d.1.map(|id| cx.param(id)));
        let (xbc, conv) = causal_conv1d(&xbc, &taps, bias.as_ref(), (&window, true), cx.in_place(), &cx.layout)?;
        let (delta, decay) = step_sizes(&dt, &cx.param(self.dt_bias), &cx.param(self.a_log), self.limits)?; // [b l h]
        let args = LinearAttentionArgs {
            q: xbc.columns(inner + g * n, g * n), // C
            k: xbc.columns(inner, g * n),         // B
            v: xbc.columns(0, inner),             // x
            groups: g,
            heads: h,
            scale: 1.0,
            decay: Decay::HeadVarying(decay),
            write: Some(delta),
            bonus: None,
            skip: Some(cx.param(self.d)),
            normaliser: None,
            initial,
            in_place: cx.in_place(),
        };
        let (y, ssm) = linear_attention(args, &cx.layout)?; // [b l inner]
        let y = self.gated(cx, &y, &z)?;
        let mut next = LayerState::of([conv, ssm]);
        next.extend(rest);
        if mlp == 0 {
            return Ok((self.out_proj.forward(cx, &y)?, next)); // [b l d]
        }
        let mixed = gated(Function::Silu, &packed.columns(0, mlp), &packed.columns(mlp, mlp))?; // [b l mlp]
        let weight = cx.param(self.out_proj.weight());
        let bias = self.out_proj.bias().map(|id| cx.param(id));
        let mixed = linear(&mixed, &weight.columns(0, mlp), bias.as_ref())?;
        let y = linear(&y, &weight.columns(mlp, inner), None)?;
        Ok((add_scaled(&mixed, 1.0, &y, 1.0)?, next))
    }

    fn state(&self) -> Vec<StateSpec> {
        let Sizes { inner, h, n, k, .. } = self.sizes;
        let mut all = vec![
            StateSpec::fixed("conv", &[k - 1, self.sizes.conv()]),
            StateSpec::fixed("ssm", &[h, n, inner / h.max(1)]),
        ];
        if self.start.is_some() {
            all.push(StateSpec::fixed("started", &[1]));
        }
        all
    }

    fn cost(&self, _context: u64) -> Cost {
        let Sizes { d_model, mlp, inner, h, n, g, k, skip_per_channel } = self.sizes;
        let [d, mlp, inner, h, n, g, k] = [d_model, mlp, inner, h, n, g, k].map(|x| x as u64);
        let conv = inner + 2 * g * n;
        let rows = 2 * mlp + inner + conv + h;
        let products = d * rows + d * (mlp + inner);
        let biases = self.in_proj.bias().map_or(0, |_| rows) + self.out_proj.bias().map_or(0, |_| d);
        let conv_bias = self.conv1d.1.map_or(0, |_| conv);
        let skips = if skip_per_channel { inner } else { h };
        let norm = self.norm.weight.map_or(0, |_| inner);
        let start = self.start.map_or(0, |_| inner * n);
        Cost {
            // Per element of the state a decay, a write and a read; the gate, D and the norm.
            flops: 2 * products
                + biases
                + 2 * conv * k
                + conv_bias
                + 4 * conv
                + 5 * inner * n
                + 12 * h
                + 11 * inner
                + 5 * mlp,
            params: products + biases + conv * k + conv_bias + 2 * h + skips + norm + start,
            state: conv * (k - 1) + inner * n,
            // The projection, the convolution, Δ and ΔA, y before and after the norm, the MLP; a state every 64 positions.
            kept: rows + conv + 2 * h + 2 * inner + mlp + inner * n / 64,
        }
    }

    fn promises(&self) -> Promises {
        Promises { split: Split::Rounded, resets: self.start.is_none(), lengths: true }
    }
}

impl Mamba2 {
    /// What is between the state space model and the output projection.
    fn gated(&self, cx: &Cx, y: &Var, z: &Var) -> Result<Var> {
        let Some(weight) = self.norm.weight else { return gated(Function::Silu, z, y) };
        let norm = GroupNorm {
            gate: Some((z.clone(), self.norm.gate)),
            groups: self.norm.groups,
            centred: false,
            weight: Some(cx.param(weight)),
            bias: None,
            eps: self.norm.eps,
        };
        group_norm(y, norm)
    }

    /// The state to begin with: the learned one of rows that have read nothing, and that they have begun.
    fn started(&self, cx: &Cx, initial: Var, rest: LayerState) -> Result<(Var, LayerState)> {
        let Some(start) = self.start else { return Ok((initial, rest)) };
        let [started] = rest.into_fixed()?; // [b 1]
        let (b, shape) = (cx.layout.b, initial.shape().to_vec());
        let flat = initial.reshape(&[b, 1, initial.value().len() / b.max(1)]);
        let missing = add_constant(&scaled(&started, -1.0)?, 1.0)?;
        let learned = weighed(&repeat(&cx.param(start).reshape(&[flat.value().cols()]), &flat)?, &missing)?;
        let initial = add_scaled(&flat, 1.0, &learned, 1.0)?.reshape(&shape);
        Ok((initial, LayerState::of([add_constant(&scaled(&started, 0.0)?, 1.0)?])))
    }
}
