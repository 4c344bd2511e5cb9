//! The loss of a language model, fused with its output projection.

use std::sync::Arc;

use elapid_kernels::RowsMut;
use elapid_kernels::cross_entropy as kernel;
use elapid_kernels::cuda::{self, Buffer, Gpu};

use crate::autograd::{Var, record};
use crate::{DType, Error, Result, Tensor};

/// The loss of a batch of predictions.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Mean negative log-likelihood over the targets that are not ignored, in nats; a scalar to differentiate. With label
    /// smoothing, the loss of each target is the cross-entropy with its smoothed distribution ([`Targets::smoothed`]).
    pub mean: Var,
    /// Negative log-likelihood of every target in nats, 0 where it is ignored; in the shape of the positions.
    pub nll: Tensor,
}

impl Loss {
    /// The mean as a number; waits for the device.
    ///
    /// # Errors
    /// If the device failed.
    pub fn value(&self) -> Result<f32> {
        Ok(self.mean.value().to_vec()?[0])
    }
}

/// The targets; negative ones are ignored.
#[derive(Debug, Clone)]
pub struct Targets<'a> {
    ids: TargetIds<'a>,
    smoothing: f32,
}

#[derive(Debug, Clone)]
enum TargetIds<'a> {
    Host(&'a [i32]),
    /// i32 in a GPU's memory.
    Device(Arc<Buffer>),
}

impl Targets<'_> {
    /// i32 in a GPU's memory, checked by the caller.
    pub fn on_device(ids: Arc<Buffer>) -> Self {
        Self { ids: TargetIds::Device(ids), smoothing: 0.0 }
    }

    /// Label smoothing (Szegedy et al. 2016, section 7): the share `part` of each target, from 0 to below 1, is spread over
    /// all tokens of the vocabulary. Losses are then cross-entropies with the smoothed targets.
    #[must_use]
    pub fn smoothed(self, part: f32) -> Self {
        Self { smoothing: part, ..self }
    }
}

impl<'a> From<&'a [i32]> for Targets<'a> {
    fn from(targets: &'a [i32]) -> Self {
        Self { ids: TargetIds::Host(targets), smoothing: 0.0 }
    }
}

impl<'a, const N: usize> From<&'a [i32; N]> for Targets<'a> {
    fn from(targets: &'a [i32; N]) -> Self {
        targets[..].into()
    }
}

impl<'a> From<&'a Vec<i32>> for Targets<'a> {
    fn from(targets: &'a Vec<i32>) -> Self {
        targets[..].into()
    }
}

/// -log softmax(h Wᵀ) at the target, h `[.. d]`, W `[v d]`; negative targets are ignored.
///
/// Logits z become c tanh(z / c) with the `softcap` c, unless that is 0. Only the logits of one block of rows are in memory
/// at a time. Under a tape the gradients are computed in the same pass, from the block's logits.
///
/// # Errors
/// If shapes do not fit, a target is not in the vocabulary, or the smoothing is not in its range; if logits are capped on a
/// GPU.
pub fn cross_entropy<'a>(h: &Var, weight: &Var, targets: impl Into<Targets<'a>>, softcap: f32) -> Result<Loss> {
    let Targets { ids, smoothing } = targets.into();
    if softcap != 0.0 {
        super::place::on_cpu("cross_entropy with a soft cap", h)?;
    }
    let (loss, saved) = match (h.value().gpu(), ids) {
        (None, TargetIds::Host(targets)) => on_cpu(h, weight, targets, (smoothing, softcap))?,
        (None, TargetIds::Device(_)) => {
            return Err(Error::Argument("targets on a GPU for a loss on the CPU".into()));
        }
        (Some(gpu), TargetIds::Device(targets)) => on_cuda(gpu, h, weight, &targets, smoothing)?,
        (Some(gpu), TargetIds::Host(targets)) => {
            kernel::check_targets(targets, weight.value().row_count())?;
            on_cuda(gpu, h, weight, &gpu.upload(targets)?, smoothing)?
        }
    };
    let Some((mut dh, mut dw)) = saved else { return Ok(loss) };
    let (kept_h, kept_weight) = (h.without_numbers(), weight.without_numbers());
    let [mean] = record(&[h, weight], [loss.mean.value().clone()], move |grads, [mean]| {
        let Some(seed) = grads.take(mean)? else { return Ok(()) };
        let seed = seed.to_vec()?[0];
        if seed != 1.0 {
            for gradient in [&mut dh, &mut dw] {
                match gradient.gpu() {
                    None => gradient.make_mut().iter_mut().for_each(|x| *x *= seed),
                    Some(gpu) => cuda::elementwise::scale(&gpu, gradient.mat_mut(), seed)?,
                }
            }
        }
        grads.give(&kept_weight, dw)?;
        grads.give(&kept_h, dh)
    });
    Ok(Loss { mean, nll: loss.nll })
}

/// The loss, and with a tape the gradients of its mean with respect to h and W.
type Computed = (Loss, Option<(Tensor, Tensor)>);

fn on_cpu(h: &Var, weight: &Var, targets: &[i32], (smoothing, softcap): (f32, f32)) -> Result<Computed> {
    let count = targets.iter().filter(|&&target| target >= 0).count();
    let args = kernel::Args { h: h.value().rows(), w: weight.value().rows(), targets, smoothing, softcap };
    let mut nll = elapid_kernels::zeros(targets.len())?;
    let scale = 1.0 / count.max(1) as f32;
    let recorded = h.wants_grad() || weight.wants_grad();
    let saved = if recorded {
        let (mut dh, mut dw) = (Tensor::zeros(h.shape())?, Tensor::zeros(weight.shape())?);
        let grads = kernel::Grads {
            dh: RowsMut::new(dh.make_mut(), h.value().cols()),
            dw: RowsMut::new(dw.make_mut(), h.value().cols()),
            scale,
        };
        kernel::forward(&args, &mut nll, Some(grads))?;
        Some((dh, dw))
    } else {
        kernel::forward(&args, &mut nll, None)?;
        None
    };
    let mean = nll.iter().map(|&x| f64::from(x)).sum::<f64>() / count.max(1) as f64;
    let mean = Tensor::new(vec![mean as f32], &[1]);
    let nll = Tensor::new(nll, &h.shape()[..h.shape().len() - 1]);
    Ok((Loss { mean: mean.into(), nll }, saved))
}

fn on_cuda(gpu: Gpu, h: &Var, weight: &Var, targets: &Buffer, smoothing: f32) -> Result<Computed> {
    let mut mean = Tensor::uninit(gpu, DType::F32, &[1])?;
    let mut nll = Tensor::uninit(gpu, DType::F32, &[h.value().row_count()])?;
    let mut saved = None;
    if h.wants_grad() || weight.wants_grad() {
        let dh = Tensor::uninit(gpu, h.value().dtype(), h.shape())?;
        saved = Some((dh, Tensor::uninit(gpu, DType::F32, weight.shape())?));
    }
    let grads = saved.as_mut().map(|(dh, dw)| kernel::cuda::Grads { dh: dh.mat_mut(), dw: dw.mat_mut(), scale: 1.0 });
    let args = kernel::cuda::Args { h: h.value().mat(), w: weight.value().mat(), targets, smoothing };
    kernel::cuda::forward(&gpu, &args, nll.mat_mut(), mean.mat_mut(), grads)?;
    let nll = nll.reshape(&h.shape()[..h.shape().len() - 1]);
    Ok((Loss { mean: mean.into(), nll }, saved))
}
