//! Mamba (Gu and Dao 2023): the selective state space model S6 in a gated block, figure 3 and algorithm 2.

use elapid_kernels::mamba1_step::cuda as step;
use elapid_kernels::selective_scan::Discretisation;

use super::{Cost, Cx, Mixer, StateTensor};
use crate::autograd::Var;
use crate::config::{AInit, DtInit, Mamba1Config, ModelConfig};
use crate::ops::{ScanArgs, causal_conv1d, linear, linear_recomputed, neg_exp, repeat, selective_scan};
use crate::params::{Decay, Init, ParamBuilder, ParamId, Params};
use crate::trace::DELTA;
use crate::{Error, Result, Tensor};

/// The parameters and sizes of one Mamba mixer.
#[derive(Debug)]
pub struct Mamba1 {
    d_model: usize,
    d_inner: usize,
    d_state: usize,
    d_conv: usize,
    dt_rank: usize,
    rule: Discretisation,
    in_proj: Projection,
    conv1d: Projection,
    /// Δ before its projection, B and C, those that depend on the input, side by side.
    x_proj: Option<ParamId>,
    dt_proj: Option<ParamId>,
    dt_bias: ParamId,
    /// B and C where they are constants, `[n]`.
    b: Option<ParamId>,
    c: Option<ParamId>,
    gate: bool,
    a_log: ParamId,
    d: ParamId,
    out_proj: Projection,
}

#[derive(Debug)]
struct Projection {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Projection {
    fn forward(&self, cx: &Cx, x: &Var) -> Result<Var> {
        linear(x, &cx.param(self.weight), self.bias.map(|id| cx.param(id)).as_ref())
    }
}

impl Mamba1 {
    /// The mixer of `config`, its parameters taken from `params` under names that start with `prefix`.
    ///
    /// # Errors
    /// If the source of parameters lacks one.
    pub fn new(
        config: &ModelConfig,
        mamba: &Mamba1Config,
        prefix: &str,
        params: &mut ParamBuilder<'_>,
    ) -> Result<Self> {
        let (d_model, d_inner) = (config.d_model, mamba.d_inner(config.d_model));
        let (n, k, r) = (mamba.d_state, mamba.d_conv, mamba.delta_rank());
        // PyTorch's default for linear and convolution layers: uniform in ±1/√fan_in, for biases too.
        let fan_in = |inputs: usize| Init::Uniform(1.0 / (inputs as f32).sqrt());
        let mut param =
            |name: &str, shape: &[usize], init, decay| params.param(format!("{prefix}.{name}"), shape, init, decay);
        let mut projection = |name: &str, shape: &[usize], init, bias: Option<Init>| -> Result<Projection> {
            let weight = param(&format!("{name}.weight"), shape, init, Decay::Yes)?;
            let bias = bias.map(|init| param(&format!("{name}.bias"), &shape[..1], init, Decay::No)).transpose()?;
            Ok(Projection { weight, bias })
        };
        let proj_bias = mamba.proj_bias.then_some(Init::Constant(0.0));
        let in_proj =
            projection("in_proj", &[if mamba.gate { 2 } else { 1 } * d_inner, d_model], fan_in(d_model), proj_bias)?;
        let conv1d = projection("conv1d", &[d_inner, 1, k], fan_in(k), mamba.conv_bias.then_some(fan_in(k)))?;
        let Init::Uniform(bound) = fan_in(d_inner) else { unreachable!("fan_in is uniform") };
        let rescaled = if config.rescale_prenorm_residual { bound / (config.n_layer as f32).sqrt() } else { bound };
        let out_proj = projection("out_proj", &[d_model, d_inner], Init::Uniform(rescaled), proj_bias)?;
        let dt_std = (r.max(1) as f32).powf(-0.5) * mamba.dt_scale;
        let dt_init = match mamba.dt_init {
            DtInit::Random => Init::Uniform(dt_std),
            DtInit::Constant => Init::Constant(dt_std),
        };
        let dt_bias =
            Init::SoftplusInverseLogUniform { min: mamba.dt_min, max: mamba.dt_max, floor: mamba.dt_init_floor };
        let a_init = match mamba.a_init {
            AInit::Arange => Init::LogArange,
            AInit::Half => Init::Constant(0.5f32.ln()),
            AInit::ExpNormal => Init::Normal(1.0),
        };
        Ok(Self {
            d_model,
            d_inner,
            d_state: n,
            d_conv: k,
            dt_rank: r,
            rule: mamba.rule,
            in_proj,
            conv1d,
            x_proj: match r + n * (usize::from(mamba.selective.b) + usize::from(mamba.selective.c)) {
                0 => None,
                rows => Some(param("x_proj.weight", &[rows, d_inner], fan_in(d_inner), Decay::Yes)?),
            },
            dt_proj: match r {
                0 => None,
                r => Some(param("dt_proj.weight", &[d_inner, r], dt_init, Decay::Yes)?),
            },
            dt_bias: param("dt_proj.bias", &[d_inner], dt_bias, Decay::No)?,
            // As S4D begins (Gu et al. 2022): B = 1, C normal.
            b: match mamba.selective.b {
                true => None,
                false => Some(param("B", &[n], Init::Constant(1.0), Decay::No)?),
            },
            c: match mamba.selective.c {
                true => None,
                false => Some(param("C", &[n], Init::Normal(1.0), Decay::No)?),
            },
            gate: mamba.gate,
            a_log: param("A_log", &[d_inner, n], a_init, Decay::No)?,
            d: param("D", &[d_inner], Init::Constant(1.0), Decay::No)?,
            out_proj,
        })
    }

    /// What a step in one launch needs of this layer, if it does all that this one does; the sizes are all but the batch and
    /// the vocabulary.
    pub(crate) fn on_device<'a>(
        &self,
        params: &'a Params,
        norm: ParamId,
        state: &'a [Var],
    ) -> Option<(step::Dims, step::Layer<'a>)> {
        if self.rule != Discretisation::ExpEuler || self.in_proj.bias.is_some() || self.out_proj.bias.is_some() {
            return None;
        }
        // All of Δ, B and C from the input, and a gate.
        let (None, None, Some(x_proj), Some(dt_proj), true) = (self.b, self.c, self.x_proj, self.dt_proj, self.gate)
        else {
            return None;
        };
        let (ed, n, r, k) = (self.d_inner, self.d_state, self.dt_rank, self.d_conv);
        let matrix = |id: ParamId| params.value(id).mat();
        let vector = |id: ParamId| params.value(id).flat();
        let layer = step::Layer {
            norm: vector(norm),
            in_proj: matrix(self.in_proj.weight),
            conv: vector(self.conv1d.weight),
            conv_bias: self.conv1d.bias.map(vector),
            x_proj: matrix(x_proj),
            dt_proj: matrix(dt_proj),
            dt_bias: vector(self.dt_bias),
            a_log: vector(self.a_log),
            skip: vector(self.d),
            out_proj: matrix(self.out_proj.weight),
            conv_state: state[0].value().flat(),
            ssm_state: state[1].value().flat(),
        };
        Some((step::Dims { b: 0, d: self.d_model, ed, n, r, k, v: 0 }, layer))
    }
}

/// Δ as the scan has it, softplus(Δ + bias), on the processor.
fn step_sizes(delta: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (mut numbers, bias) = (delta.to_vec()?, bias.to_vec()?);
    for row in numbers.chunks_mut(bias.len()) {
        for (x, bias) in row.iter_mut().zip(&bias) {
            *x += bias;
            *x = x.max(0.0) + (-x.abs()).exp().ln_1p();
        }
    }
    Ok(Tensor::new(numbers, delta.shape()))
}

impl Mixer for Mamba1 {
    fn forward(&self, cx: &Cx, input: &Var, state: &[Var]) -> Result<(Var, Vec<Var>)> {
        let (ed, n, r) = (self.d_inner, self.d_state, self.dt_rank);
        let xz = self.in_proj.forward(cx, input)?; // [b l 2ed], or [b l ed] without a gate
        let (x, z) = (xz.columns(0, ed), self.gate.then(|| xz.columns(ed, ed)));

        let conv_bias = self.conv1d.bias.map(|id| cx.param(id));
        let (x, conv) =
            causal_conv1d(&x, &cx.param(self.conv1d.weight), conv_bias.as_ref(), &state[0], cx.in_place(), &cx.layout)?;

        // [b l r+2n], less by what is constant
        let dbc = self.x_proj.map(|weight| linear(&x, &cx.param(weight), None)).transpose()?;
        let mut at = 0;
        let mut next = |columns: usize, constant: Option<ParamId>| match (constant, &dbc) {
            (None, Some(dbc)) => {
                at += columns;
                Ok(dbc.columns(at - columns, columns))
            }
            (Some(constant), _) => repeat(&cx.param(constant), &x),
            (None, None) => Err(Error::Argument("a block without x_proj has a constant B and C".into())),
        };
        let delta = match self.dt_proj {
            Some(weight) => linear_recomputed(&next(r, None)?, &cx.param(weight), None)?, // [b l ed]
            None => Tensor::zeros_on(x.value().device(), x.value().dtype(), x.shape())?.into(),
        };
        cx.trace(DELTA, || step_sizes(delta.value(), cx.param(self.dt_bias).value()))?;
        let (b, c) = (next(n, self.b)?, next(n, self.c)?); // [b l n]
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
                initial: state[1].clone(),
                rule: self.rule,
                in_place: cx.in_place(),
            },
            &cx.layout,
        )?;
        Ok((self.out_proj.forward(cx, &y)?, vec![conv, ssm]))
    }

    fn as_mamba1(&self) -> Option<&Mamba1> {
        Some(self)
    }

    fn state(&self) -> Vec<StateTensor> {
        vec![
            StateTensor { name: "conv", shape: vec![self.d_conv - 1, self.d_inner] },
            StateTensor { name: "ssm", shape: vec![self.d_inner, self.d_state] },
        ]
    }

    fn cost(&self) -> Cost {
        let [d, ed, n, k, r] = [self.d_model, self.d_inner, self.d_state, self.d_conv, self.dt_rank].map(|x| x as u64);
        let halves = 1 + u64::from(self.gate);
        let constants = u64::from(self.b.is_some()) + u64::from(self.c.is_some());
        let products = d * halves * ed + ed * (r + (2 - constants) * n) + r * ed + ed * d;
        // A state element: ΔA, exp, ΔB u, and two fused multiply-adds; a channel: softplus, Δu, D u, gate.
        let scan = ed * n * 7 + ed * 12;
        let biases = [&self.in_proj, &self.out_proj]
            .iter()
            .zip([halves * ed, d])
            .map(|(projection, size)| projection.bias.map_or(0, |_| size))
            .sum::<u64>();
        let conv_bias = self.conv1d.bias.map_or(0, |_| ed);
        Cost {
            flops: 2 * products + 2 * ed * k + 4 * ed + scan,
            params: products + ed * k + conv_bias + biases + 2 * ed + ed * n + constants * n,
            state: ed * (k - 1) + ed * n,
            // [x z], x after the convolution, [Δ B C] before the projection, y; a state every 32 positions.
            kept: (halves + 2) * ed + r + (2 - constants) * n + ed * n / 32,
        }
    }
}
