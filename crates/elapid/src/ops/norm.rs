//! The norms of a model, fused with the residual sum before them.

use elapid_kernels::reuse::List;
use elapid_kernels::{elementwise, layer_norm as kernel};
use kernel::{Args, Residual, Saved};
use serde::{Deserialize, Serialize};

use super::add_norm::add_norm;
use super::pointwise::{add_constant, add_scaled, cast};
use crate::autograd::{Grads, Var, Want, record};
use crate::{DType, Result, Tensor};

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

/// s = keep r + scale x and y = norm(s); returns (y, s). Without a residual r, s is x. On a GPU x and y are of the
/// activations' format and a sum is f32.
///
/// The sum and the norm are one pass over memory, unless an RMSNorm has factors other than 1.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn norm(x: &Var, r: Option<&Var>, (keep, scale): (f32, f32), norm: &Norm<'_>) -> Result<(Var, Var)> {
    // A stream that began as an activation.
    let r = r.map(|r| cast(r, DType::F32)).transpose()?;
    let plain = r.is_none() || (keep, scale) == (1.0, 1.0);
    match norm.kind {
        NormKind::Rms | NormKind::Rms1 if plain => rms(x, r.as_ref(), norm),
        NormKind::Layer | NormKind::LayerNoBias => layer_norm(x, r.as_ref(), (keep, scale), norm),
        kind => {
            let s = match &r {
                None => x.clone(),
                Some(r) => add_scaled(r, keep, x, scale)?,
            };
            let y = if kind == NormKind::None { s.clone() } else { rms(&s, None, norm)?.0 };
            Ok((cast(&y, x.value().dtype())?, s))
        }
    }
}

fn rms(x: &Var, r: Option<&Var>, norm: &Norm<'_>) -> Result<(Var, Var)> {
    let weight = match (norm.weight, norm.kind) {
        (Some(weight), NormKind::Rms1) => add_constant(weight, 1.0)?,
        (Some(weight), _) => weight.clone(),
        (None, _) => {
            let mut ones = Tensor::output(x.value().device(), DType::F32, &[x.value().cols()])?;
            elementwise::fill(ones.view_mut(), 1.0)?;
            ones.into()
        }
    };
    add_norm(x, r, &weight, norm.eps)
}

/// y = (s - mean) / sqrt(variance + eps) · weight + bias, row by row, and s.
fn layer_norm(x: &Var, r: Option<&Var>, (keep, scale): (f32, f32), norm: &Norm<'_>) -> Result<(Var, Var)> {
    let (device, dtype, eps) = (x.value().device(), x.value().dtype(), norm.eps);
    let mut y = Tensor::output(device, dtype, x.shape())?;
    let mut sum = r.map(|_| Tensor::output(device, DType::F32, x.shape())).transpose()?;
    let mut statistics = Tensor::output(device, DType::F32, &[x.value().row_count(), 2])?;
    let [weight, bias] = [norm.weight, norm.bias].map(|v| v.map(|v| v.value().view_flat()));
    let residual = r.map(|r| Residual { r: r.value().view(), keep, scale });
    let args = Args { x: x.value().view(), residual, weight, bias, eps };
    kernel::forward(args, y.view_mut(), sum.as_mut().map(Tensor::view_mut), statistics.view_mut())?;
    let inputs: List<&Var> = [x].into_iter().chain(r).chain(norm.weight).chain(norm.bias).collect();
    let (weight, bias) = (norm.weight.cloned(), norm.bias.cloned());
    let (input, residual) = (x.without_numbers(), r.map(Var::without_numbers));
    let saved_s = sum.clone().unwrap_or_else(|| x.value().clone());
    let factors = if r.is_some() { (keep, scale) } else { (1.0, 1.0) };
    let back = move |grads: &mut Grads, y: &Var, sum: Option<&Var>| {
        let dsum = sum.map(|sum| grads.take(sum)).transpose()?.flatten();
        let dy = grads.take_or_zeros(y)?;
        let wants =
            [Want::Set(&input), Want::set(residual.as_ref()), Want::add(weight.as_ref()), Want::add(bias.as_ref())];
        let saved = Saved {
            s: saved_s.view(),
            weight: weight.as_ref().map(|weight| weight.value().view_flat()),
            statistics: statistics.view_flat(),
            factors,
        };
        grads.write(wants, |[dx, dresidual, dweight, dbias]| {
            let Some(dx) = dx else { return Ok(()) };
            let outputs = kernel::Grads { dx, dresidual, dweight, dbias };
            kernel::backward(saved, dy.view(), dsum.as_ref().map(Tensor::view), outputs)
        })
    };
    match sum {
        None => {
            let [y] = record(&inputs, [y], move |grads, [y]| back(grads, y, None));
            Ok((y, x.clone()))
        }
        Some(sum) => {
            let [y, sum] = record(&inputs, [y, sum], move |grads, [y, sum]| back(grads, y, Some(sum)));
            Ok((y, sum))
        }
    }
}
