//! The norms of a model, fused with the residual sum before them.

use elapid_kernels::{RowsMut, layer_norm as kernel};
use serde::{Deserialize, Serialize};

use super::add_norm::add_norm;
use super::place::on_cpu;
use super::pointwise::{add_constant, add_scaled};
use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// A kind of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// s / rms(s) · w (Zhang and Sennrich 2019).
    #[default]
    Rms,
    /// s / rms(s) · (1 + w): weight decay pulls towards the identity (Gemma, Qwen3-Next).
    Rms1,
    /// (s - mean) / deviation · w + b (Ba et al. 2016).
    Layer,
    /// The same without b.
    LayerNoBias,
    /// None: s itself.
    None,
}

impl NormKind {
    /// Whether it has a weight.
    pub fn has_weight(self) -> bool {
        self != Self::None
    }

    /// Whether it has a bias.
    pub fn has_bias(self) -> bool {
        self == Self::Layer
    }
}

/// A norm and its parameters, each `[d]`; an absent weight is 1, an absent bias 0.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Its kind.
    pub kind: NormKind,
    /// Its weight.
    pub weight: Option<&'a Var>,
    /// Its bias.
    pub bias: Option<&'a Var>,
    /// Added to the mean square or the variance.
    pub eps: f32,
}

/// s = keep r + scale x and y = norm(s); returns (y, s). Without a residual r, s is x.
///
/// A plain sum and an RMSNorm are one pass over memory.
///
/// # Errors
/// If shapes do not fit.
pub fn norm(x: &Var, r: Option<&Var>, (keep, scale): (f32, f32), norm: &Norm<'_>) -> Result<(Var, Var)> {
    let plain = r.is_none() || (keep, scale) == (1.0, 1.0);
    let fused = matches!(norm.kind, NormKind::Rms | NormKind::Rms1);
    if !(plain && fused) {
        let s = match r {
            None => x.clone(),
            Some(r) => add_scaled(r, keep, x, scale)?,
        };
        return Ok((of_sum(&s, norm)?, s));
    }
    rms(x, r, norm)
}

fn of_sum(s: &Var, norm: &Norm<'_>) -> Result<Var> {
    match norm.kind {
        NormKind::Rms | NormKind::Rms1 => Ok(rms(s, None, norm)?.0),
        NormKind::Layer | NormKind::LayerNoBias => layer_norm(s, norm.weight, norm.bias, norm.eps),
        NormKind::None => Ok(s.clone()),
    }
}

fn rms(x: &Var, r: Option<&Var>, norm: &Norm<'_>) -> Result<(Var, Var)> {
    let weight = match (norm.weight, norm.kind) {
        (Some(weight), NormKind::Rms1) => add_constant(weight, 1.0)?,
        (Some(weight), _) => weight.clone(),
        (None, _) => {
            let ones = Tensor::new(vec![1.0; x.value().cols()], &[x.value().cols()]);
            ones.to(x.value().device(), elapid_kernels::DType::F32)?.into()
        }
    };
    add_norm(x, r, &weight, norm.eps)
}

/// y = (x - mean) / sqrt(variance + eps) · weight + bias, row by row.
///
/// # Errors
/// If shapes do not fit.
fn layer_norm(x: &Var, weight: Option<&Var>, bias: Option<&Var>, eps: f32) -> Result<Var> {
    on_cpu("layer_norm", x)?;
    let m = x.value().row_count();
    let mut statistics = Tensor::zeros(&[m, 2])?;
    let [w, b] = [weight, bias].map(|v| v.map(|v| v.value().as_slice()));
    let rows = RowsMut::new(statistics.make_mut(), 2);
    let y = Tensor::filled(x.shape(), |y| kernel::forward(x.value().rows(), w, b, eps, y, rows))?;
    let inputs: Vec<&Var> = [x].into_iter().chain(weight).chain(bias).collect();
    let (x, weight, bias) = (x.clone(), weight.cloned(), bias.cloned());
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let wants = [Want::Set(&x), Want::add(weight.as_ref()), Want::add(bias.as_ref())];
        grads.write_rows(wants, |[dx, dweight, dbias]| {
            let wanted = |var: &Option<Var>| var.as_ref().is_some_and(Var::wants_grad);
            let dweight = wanted(&weight).then(|| dweight.into_slice());
            let dbias = wanted(&bias).then(|| dbias.into_slice());
            let w = weight.as_ref().map(|w| w.value().as_slice());
            kernel::backward(x.value().rows(), w, statistics.rows(), dy.rows(), dx, dweight, dbias)
        })
    });
    Ok(y)
}
