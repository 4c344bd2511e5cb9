//! Mamba (Gu and Dao 2023): the selective state space model S6 in a gated block, figure 3 and algorithm 2.
//!
//! | here | paper | |
//! |---|---|---|
//! | `b l d` | B L D | batch, positions, width of the stream (`d_model`) |
//! | `ed` | E D | channels of the block (`d_inner`) |
//! | `n` | N | state elements per channel (`d_state`) |
//! | `r` | R | rank of the projection of Δ (`dt_rank`) |
//! | `k` | | taps of the convolution (`d_conv`) |
//!
//! The official code is `mamba_ssm/modules/mamba_simple.py`.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{
    Discretisation, Norm, NormKind, ScanArgs, causal_conv1d, neg_exp, norm as norm_of, repeat, selective_scan,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Count, Problem, Size};
use crate::state::{LayerState, StateSpec};
use crate::trace::DELTA;
use crate::{Error, Result, Tensor};

crate::settings! {
    /// A Mamba block: the selective scan S6 with a diagonal state per channel, gated.
    pub struct Settings {
        /// State elements per channel: the N of the paper.
        d_state: Size = Size::new(16),
        /// Taps of the causal convolution, including the current position.
        d_conv: Size = Size::new(4),
        /// Channels inside a block, in units of d_model, ...
        expand: Size = Size::new(2),
        /// ... or their number; "auto" is expand * d_model.
        d_inner: Auto<Size> = Auto::Auto,
        /// Rank of the projection that makes the step sizes Δ; "auto" is d_model / 16, rounded up. 0: Δ is constant.
        dt_rank: Auto<Count> = Auto::Auto,
        /// Which of Δ, B and C depend on the input; the others are learned constants. [] is a time-invariant system.
        selective: Selective = Selective::default(),
        /// Initial A: "arange" is -(n + 1) for n from 0, "half" is -1/2, "exp-normal" is -exp(x) with normal x.
        @init a_init: AInit = AInit::Arange,
        /// Whether the scan's output is multiplied by silu(z), where z is a projection of the block's input.
        gate: bool = true,
        /// Whether the convolution has a bias.
        conv_bias: bool = true,
        /// Whether the projections into and out of a block have biases.
        proj_bias: bool = false,
        /// Initial step sizes are log-uniform from this ...
        @init dt_min: f32 = 1e-3,
        /// ... to this, ...
        @init dt_max: f32 = 0.1,
        /// ... and raised to this.
        @init dt_init_floor: f32 = 1e-4,
        /// Scale of the initial step-size projection, in units of dt_rank^-1/2, ...
        @init dt_scale: f32 = 1.0,
        /// ... which is "random" (uniform) or "constant".
        @init dt_init: DtInit = DtInit::Random,
        /// Discretisation of the continuous system: "exp-euler" (the released models), "zoh" or "bilinear".
        discretisation: Rule = Rule::default(),
        /// RMSNorm of Δ before its projection, of B and of C: "none", "rms" (Jamba), "rms-no-weight" (Falcon-Mamba).
        inner_norm: InnerNorm = InnerNorm::None,
        /// Its epsilon.
        inner_norm_eps: f32 = 1e-6,
    }
}

/// Which of Δ, B and C depend on the input; the others are parameters (Mamba, table 7; none: an LTI system).
///
/// A constant B or C is one vector `[n]` for all channels, like a selective one at each position. In files this is a list of
/// names, `["delta", "B", "C"]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selective {
    /// Δ, the step sizes.
    pub delta: bool,
    /// B, the input matrix.
    pub b: bool,
    /// C, the output matrix.
    pub c: bool,
}

impl Default for Selective {
    fn default() -> Self {
        Self { delta: true, b: true, c: true }
    }
}

impl Serialize for Selective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let all = [("delta", self.delta), ("B", self.b), ("C", self.c)];
        serializer.collect_seq(all.into_iter().filter(|(_, selective)| *selective).map(|(name, _)| name))
    }
}

impl<'de> Deserialize<'de> for Selective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut selective = Self { delta: false, b: false, c: false };
        for name in Vec::<String>::deserialize(deserializer)? {
            match name.as_str() {
                "delta" => selective.delta = true,
                "B" => selective.b = true,
                "C" => selective.c = true,
                _ => {
                    return Err(D::Error::custom(format!(
                        "wanted a list of some of \"delta\", \"B\", \"C\", got \"{name}\""
                    )));
                }
            }
        }
        Ok(selective)
    }
}

/// RMSNorm of Δ before its projection, of B and of C (Jamba, Lieber et al. 2024, section 6.4): large models train steadily with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InnerNorm {
    /// None.
    #[default]
    None,
    /// Each with a weight.
    Rms,
    /// The same without weights.
    RmsNoWeight,
}

/// How A is initialised (Mamba, table 8). The same in every channel, except for the last variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AInit {
    /// A_n = -(n + 1), as S4D-real.
    #[default]
    Arange,
    /// A_n = -1/2.
    Half,
    /// A_n = -exp(x), x normal.
    ExpNormal,
}

impl AInit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Arange, Self::Half, Self::ExpNormal];
}

/// How the weights of the step-size projection are initialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DtInit {
    /// Uniform in plus or minus `dt_scale * dt_rank^-1/2`.
    #[default]
    Random,
    /// All `dt_scale * dt_rank^-1/2`.
    Constant,
}

/// The discretisation; in files by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule(pub Discretisation);

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let wanted = || Discretisation::ALL.map(Discretisation::name).join(", ");
        name.parse().map(Self).map_err(|_| D::Error::custom(format!("wanted one of {}, got \"{name}\"", wanted())))
    }
}

/// The parameters and sizes of one Mamba block.
#[derive(Debug)]
pub struct Mamba1 {
    pub(crate) d_model: usize,
    pub(crate) d_inner: usize,
    pub(crate) d_state: usize,
    pub(crate) d_conv: usize,
    pub(crate) dt_rank: usize,
    pub(crate) rule: Discretisation,
    /// Projection to x and the gate z, packed, or to x alone.
    pub(crate) in_proj: Linear,
    /// Taps `[ed 1 k]` and bias `[ed]`.
    pub(crate) conv1d: (ParamId, Option<ParamId>),
    /// Projection to Δ before its own projection, B and C, packed: those of them that depend on the input.
    pub(crate) x_proj: Option<Linear>,
    /// Projection from rank r to Δ; none if Δ is constant.
    pub(crate) dt_proj: Option<Linear>,
    /// Added to Δ before the softplus, `[ed]`.
    pub(crate) dt_bias: ParamId,
    pub(crate) b: Source,
    pub(crate) c: Source,
    pub(crate) gate: bool,
    /// Norms of Δ before its projection, of B and of C.
    pub(crate) inner_norm: Option<InnerNorms>,
    pub(crate) a_log: ParamId,
    pub(crate) d: ParamId,
    pub(crate) out_proj: Linear,
}

/// Norms of Δ before its projection, of B and of C: their weights, absent where a norm has none or there is nothing to norm.
#[derive(Debug)]
pub(crate) struct InnerNorms {
    weights: [Option<ParamId>; 3],
    eps: f32,
}

/// The source of B or C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Columns of x_proj's output, starting here: selective.
    Columns(usize),
    /// A parameter `[n]`, the same at every position.
    Constant(ParamId),
}

impl Settings {
    /// Number of channels.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.d_inner.map_or(self.expand.get() * d_model, Size::get)
    }

    /// Rank of the projection that makes the step sizes; 0 if they are constants.
    pub fn delta_rank(&self, d_model: usize) -> usize {
        if self.selective.delta { self.dt_rank(d_model) } else { 0 }
    }

    /// The setting `dt_rank`.
    pub fn dt_rank(&self, d_model: usize) -> usize {
        self.dt_rank.map_or(d_model.div_ceil(16), Count::get)
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        Self {
            expand: Size::new(1),
            d_inner: Auto::Is(Size::new(self.d_inner(at.d_model))),
            dt_rank: Auto::Is(Count::new(self.delta_rank(at.d_model))),
            inner_norm_eps: if self.inner_norm == InnerNorm::None { 0.0 } else { self.inner_norm_eps },
            ..self.clone()
        }
    }

    pub(super) fn check(&self, _at: &At<'_>) -> Result<(), Problem> {
        let positive = [("dt_min", self.dt_min), ("dt_max", self.dt_max), ("dt_scale", self.dt_scale)];
        positive.into_iter().try_for_each(|(field, x)| Problem::unless_positive(field, x))?;
        Problem::unless_not_negative("dt_init_floor", self.dt_init_floor)?;
        if self.inner_norm != InnerNorm::None {
            Problem::unless_positive("inner_norm_eps", self.inner_norm_eps)?;
        }
        if self.dt_min > self.dt_max {
            let wanted = format!("at most the largest step size, {}", self.dt_max);
            return Err(Problem::value("dt_min", wanted, self.dt_min));
        }
        Ok(())
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Mamba1> {
        let (d, ed, n, k) = (at.d_model, self.d_inner(at.d_model), self.d_state.get(), self.d_conv.get());
        let (r, selective) = (self.delta_rank(d), self.selective);
        let halves = if self.gate { 2 } else { 1 };
        let in_proj = p.linear("in_proj", [halves * ed, d], &Init::fan_in(d), Bias::zeros(self.proj_bias))?;
        let taps = p.param("conv1d.weight", &[ed, 1, k], &Init::fan_in(k), Traits::TAPS)?;
        let conv_bias = match self.conv_bias {
            true => Some(p.param("conv1d.bias", &[ed], &Init::fan_in(k), Traits::VECTOR)?),
            false => None,
        };
        let out_proj = p.linear("out_proj", [d, ed], &at.into_stream(ed), Bias::zeros(self.proj_bias))?;
        let x_proj = match r + n * (usize::from(selective.b) + usize::from(selective.c)) {
            0 => None,
            rows => Some(p.linear("x_proj", [rows, ed], &Init::fan_in(ed), Bias::No)?),
        };
        let dt_proj = match r {
            0 => None,
            r => Some(p.linear("dt_proj", [ed, r], &self.dt_weight(r), Bias::No)?),
        };
        let dt_bias = p.param(
            "dt_proj.bias",
            &[ed],
            &Init::step_sizes(self.dt_min, self.dt_max, self.dt_init_floor),
            Traits::VECTOR,
        )?;
        // As in S4D's initialisation (Gu et al. 2022): B = 1, C normal.
        let b = match selective.b {
            true => Source::Columns(r),
            false => Source::Constant(p.param("B", &[n], &Init::Constant(1.0), Traits::VECTOR)?),
        };
        let c = match selective.c {
            true => Source::Columns(r + if selective.b { n } else { 0 }),
            false => Source::Constant(p.param("C", &[n], &Init::Normal(1.0), Traits::VECTOR)?),
        };
        Ok(Mamba1 {
            d_model: d,
            d_inner: ed,
            d_state: n,
            d_conv: k,
            dt_rank: r,
            rule: self.discretisation.0,
            in_proj,
            conv1d: (taps, conv_bias),
            x_proj,
            dt_proj,
            dt_bias,
            b,
            c,
            gate: self.gate,
            inner_norm: self.inner_norms(r, p)?,
            a_log: p.param("A_log", &[ed, n], &self.a_log(), Traits::PRECISE)?,
            d: p.param("D", &[ed], &Init::Constant(1.0), Traits::PRECISE)?,
            out_proj,
        })
    }

    fn inner_norms(&self, r: usize, p: &mut ParamBuilder<'_>) -> Result<Option<InnerNorms>> {
        let (n, selective) = (self.d_state.get(), self.selective);
        let sizes = [
            ("dt_norm.weight", r),
            ("b_norm.weight", if selective.b { n } else { 0 }),
            ("c_norm.weight", if selective.c { n } else { 0 }),
        ];
        let mut weights = [None; 3];
        match self.inner_norm {
            InnerNorm::None => return Ok(None),
            InnerNorm::RmsNoWeight => {}
            InnerNorm::Rms => {
                for (weight, (name, size)) in weights.iter_mut().zip(sizes).filter(|(_, (_, size))| *size > 0) {
                    *weight = Some(p.param(name, &[size], &Init::Constant(1.0), Traits::VECTOR)?);
                }
            }
        }
        Ok(Some(InnerNorms { weights, eps: self.inner_norm_eps }))
    }

    /// ln 1, ln 2, … ln n in every row, so that A_n = -n (S4D-real), and the other initialisations of table 8.
    fn a_log(&self) -> Init {
        match self.a_init {
            AInit::Arange => Init::drawn(|_, _, n| ((n + 1) as f32).ln()),
            AInit::Half => Init::Constant(0.5f32.ln()),
            AInit::ExpNormal => Init::Normal(1.0),
        }
    }

    fn dt_weight(&self, r: usize) -> Init {
        let std = (r as f32).powf(-0.5) * self.dt_scale;
        match self.dt_init {
            DtInit::Random => Init::Uniform(std),
            DtInit::Constant => Init::Constant(std),
        }
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let plain = Self { d_state: Size::new(4), ..Self::default() };
        let lti = Selective { delta: false, b: false, c: false };
        let rule = Rule(Discretisation::Zoh);
        let constant = Self { selective: lti, gate: false, proj_bias: true, discretisation: rule, ..plain.clone() };
        // B and C are small at first, where the norm bends so much that a difference quotient is not the gradient.
        let plain = Self { inner_norm_eps: 0.1, ..plain };
        let normed = Self { inner_norm: InnerNorm::Rms, ..plain.clone() };
        let some = Selective { c: false, ..Selective::default() };
        let plainly_normed = Self { inner_norm: InnerNorm::RmsNoWeight, selective: some, ..plain.clone() };
        vec![plain, constant, normed, plainly_normed]
    }
}

impl Layer for Mamba1 {
    fn forward(&self, cx: &Cx, input: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [window, initial] = state.into_fixed()?; // [b k-1 ed], [b ed n]
        let (ed, r) = (self.d_inner, self.dt_rank);
        let xz = self.in_proj.forward(cx, input)?; // [b l 2ed], or [b l ed] without a gate
        let (x, z) = (xz.columns(0, ed), self.gate.then(|| xz.columns(ed, ed)));
        let (taps, bias) = (cx.param(self.conv1d.0), self.conv1d.1.map(|id| cx.param(id)));
        let (x, conv) = causal_conv1d(&x, &taps, bias.as_ref(), (&window, true), cx.in_place(), &cx.layout)?; // [b l ed]

        let dbc = self.x_proj.as_ref().map(|proj| proj.forward(cx, &x)).transpose()?; // [b l r+2n], less constants
        let delta = match (&self.dt_proj, &dbc) {
            (Some(proj), Some(dbc)) => proj.forward_recomputed(cx, &self.normed(cx, 0, dbc.columns(0, r))?)?, // [b l ed]
            _ => Tensor::zeros_on(x.value().device(), x.value().dtype(), x.shape())?.into(),
        };
        cx.trace(DELTA, || step_sizes(delta.value(), cx.param(self.dt_bias).value()))?;
        let b = self.read(self.b, 1, cx, &dbc, &x)?; // [b l n]
        let c = self.read(self.c, 2, cx, &dbc, &x)?; // [b l n]
        let (y, ssm) = selective_scan(
            ScanArgs {
                u: x,
                delta,
                delta_bias: Some(cx.param(self.dt_bias)),
                a: cx.derived(self.a_log, neg_exp)?, // [ed n]
                b,
                c,
                skip: Some(cx.param(self.d)),
                z,
                initial,
                rule: self.rule,
                in_place: cx.in_place(),
            },
            &cx.layout,
        )?;
        Ok((self.out_proj.forward(cx, &y)?, LayerState::of([conv, ssm]))) // [b l d]
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![
            StateSpec::fixed("conv", &[self.d_conv - 1, self.d_inner]),
            StateSpec::fixed("ssm", &[self.d_inner, self.d_state]),
        ]
    }

    fn cost(&self, _context: u64) -> Cost {
        let [d, ed, n, k, r] = [self.d_model, self.d_inner, self.d_state, self.d_conv, self.dt_rank].map(|x| x as u64);
        let halves = 1 + u64::from(self.gate);
        let constants = [self.b, self.c].iter().filter(|source| matches!(source, Source::Constant(_))).count() as u64;
        let products = d * halves * ed + ed * (r + (2 - constants) * n) + r * ed + ed * d;
        // Per state element: ΔA, exp, ΔB u, and two fused multiply-adds. Per channel: softplus, Δu, D u, gate.
        let scan = ed * n * 7 + ed * 12;
        let biases = self.in_proj.bias().map_or(0, |_| halves * ed) + self.out_proj.bias().map_or(0, |_| d);
        let conv_bias = self.conv1d.1.map_or(0, |_| ed);
        let dbc = r + (2 - constants) * n;
        let normed = self.inner_norm.as_ref().map_or(0, |_| dbc);
        let weights = self.inner_norm.as_ref().map_or(0, |norms| if norms.weights == [None; 3] { 0 } else { dbc });
        Cost {
            flops: 2 * products + 2 * ed * k + 4 * ed + scan + 4 * normed,
            params: products + ed * k + conv_bias + biases + 2 * ed + ed * n + constants * n + weights,
            state: ed * (k - 1) + ed * n,
            // [x z], x after the convolution, [Δ B C] before the projection, y; a state every 32 positions.
            kept: (halves + 2) * ed + dbc + normed + ed * n / 32,
        }
    }
}

impl Mamba1 {
    /// Δ before its projection, B or C, normed if the block has such norms.
    fn normed(&self, cx: &Cx, which: usize, x: Var) -> Result<Var> {
        let Some(norms) = &self.inner_norm else { return Ok(x) };
        let weight = norms.weights[which].map(|id| cx.param(id));
        let norm = Norm { kind: NormKind::Rms, weight: weight.as_ref(), bias: None, eps: norms.eps };
        Ok(norm_of(&x, None, (1.0, 1.0), &norm)?.0)
    }

    /// B (`which` 1) or C (2).
    fn read(&self, source: Source, which: usize, cx: &Cx, dbc: &Option<Var>, x: &Var) -> Result<Var> {
        match (source, dbc) {
            (Source::Columns(from), Some(dbc)) => self.normed(cx, which, dbc.columns(from, self.d_state)),
            (Source::Constant(id), _) => repeat(&cx.param(id), x),
            (Source::Columns(_), None) => Err(Error::Argument("a selective B or C needs x_proj".into())),
        }
    }
}

/// Δ inside the scan, softplus(Δ + bias), on the CPU.
fn step_sizes(delta: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (mut values, bias) = (delta.to_vec()?, bias.to_vec()?);
    for row in values.chunks_mut(bias.len()) {
        for (x, bias) in row.iter_mut().zip(&bias) {
            *x += bias;
            *x = x.max(0.0) + (-x.abs()).exp().ln_1p();
        }
    }
    Ok(Tensor::new(values, delta.shape()))
}
