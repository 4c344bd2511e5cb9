//! The loss of a language model, fused with its output projection.

use std::sync::Arc;

use elapid_kernels::cuda::Buffer;
use elapid_kernels::{Array, cross_entropy as kernel, elementwise};
use kernel::{Args, Grads};

use crate::autograd::{Var, record};
use crate::{DType, Device, Error, Result, Tensor};

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

impl<'a> TargetIds<'a> {
    /// Where an operation on `device` reads them: checked against a vocabulary of `v` and uploaded, if they come from the
    /// host and go to a GPU.
    fn on(self, device: Device, v: usize) -> Result<Self> {
        match (self, device) {
            (Self::Host(targets), Device::Cuda(gpu)) => {
                kernel::check_targets(targets, v)?;
                Ok(Self::Device(Arc::new(gpu.upload(targets)?)))
            }
            (Self::Device(_), Device::Cpu) => {
                Err(Error::Argument("targets on a GPU for a loss on the CPU: give those of the host".into()))
            }
            (targets, _) => Ok(targets),
        }
    }

    fn view(&self) -> Array<'_, i32> {
        match self {
            Self::Host(targets) => (*targets).into(),
            Self::Device(targets) => targets.as_ref().into(),
        }
    }
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
/// Logits z become c tanh(z / c) with the `softcap` c, unless that is 0. The logits of a block of rows exist at a time,
/// never all. Under a tape the gradients are computed in the same pass, while the block's logits are there.
///
/// # Errors
/// If shapes do not fit, a target is not in the vocabulary, or the smoothing is not in its range.
pub fn cross_entropy<'a>(h: &Var, weight: &Var, targets: impl Into<Targets<'a>>, softcap: f32) -> Result<Loss> {
    let Targets { ids, smoothing } = targets.into();
    let (value, device) = (h.value(), h.value().device());
    let targets = ids.on(device, weight.value().row_count())?;
    let mut mean = Tensor::output(device, DType::F32, &[1])?;
    let mut nll = Tensor::output(device, DType::F32, &[value.row_count()])?;
    if let (Some(packed), TargetIds::Host(targets)) = (weight.value().packed(), &targets) {
        kernel::forward_packed(value.rows(), packed, (targets, smoothing, softcap), nll.make_mut(), mean.make_mut())?;
        return Ok(Loss { mean: mean.into(), nll: nll.reshape(&h.shape()[..h.shape().len() - 1]) });
    }
    // With a tape, the gradients of the mean by h and W.
    let mut saved = None;
    if h.wants_grad() || weight.wants_grad() {
        let dh = Tensor::output(device, value.dtype(), h.shape())?;
        saved = Some((dh, Tensor::output(device, DType::F32, weight.shape())?));
    }
    let grads = saved.as_mut().map(|(dh, dw)| Grads { dh: dh.view_mut(), dw: dw.view_mut(), scale: 1.0 });
    let args = Args { h: value.view(), w: weight.value().view(), targets: targets.view(), smoothing, softcap };
    kernel::forward(args, nll.view_mut(), mean.view_mut(), grads)?;
    let nll = nll.reshape(&h.shape()[..h.shape().len() - 1]);
    let Some((mut dh, mut dw)) = saved else { return Ok(Loss { mean: mean.into(), nll }) };
    let (kept_h, kept_weight) = (h.without_numbers(), weight.without_numbers());
    let [mean] = record(&[h, weight], [mean], move |grads, [mean]| {
        let Some(seed) = grads.take_seed(mean)? else { return Ok(()) };
        let seed = seed.to_vec()?[0];
        if seed != 1.0 {
            for gradient in [&mut dh, &mut dw] {
                elementwise::scale(gradient.view_mut(), seed)?;
            }
        }
        grads.give(&kept_weight, dw)?;
        grads.give(&kept_h, dh)
    });
    Ok(Loss { mean, nll })
}
