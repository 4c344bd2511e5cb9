//! The loss of a language model, fused with its output projection.

use elapid_kernels::RowsMut;
use elapid_kernels::cross_entropy as kernel;

use crate::autograd::{Var, record};
use crate::{Result, Tensor};

/// What a batch of predictions came to.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Mean negative log-likelihood over the targets that count, in nats; a scalar to differentiate.
    pub mean: Var,
    /// Negative log-likelihood of every target in nats, 0 where it does not count; shaped as the positions.
    pub nll: Tensor,
    /// Number of targets that count.
    pub count: usize,
}

impl Loss {
    /// The mean as a number.
    pub fn value(&self) -> f32 {
        self.mean.value().as_slice()[0]
    }
}

/// -log softmax(h Wᵀ) at the target, h `[.. d]`, W `[v d]`; negative targets do not count.
///
/// The logits of a block of rows exist at a time, never all. Under a tape the gradients are computed in the same pass,
/// while the block's logits are there.
///
/// # Errors
/// If shapes do not fit or a target is not in the vocabulary.
pub fn cross_entropy(h: &Var, weight: &Var, targets: &[i32]) -> Result<Loss> {
    let count = targets.iter().filter(|&&target| target >= 0).count();
    let args = kernel::Args { h: h.value().rows(), w: weight.value().rows(), targets };
    let mut nll = vec![0.0; targets.len()];
    let scale = 1.0 / count.max(1) as f32;
    let recorded = h.wants_grad() || weight.wants_grad();
    let saved = if recorded {
        let (mut dh, mut dw) = (Tensor::zeros(h.shape()), Tensor::zeros(weight.shape()));
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
    let Some((mut dh, mut dw)) = saved else { return Ok(Loss { mean: mean.into(), nll, count }) };
    let (kept_h, kept_weight) = (h.clone(), weight.clone());
    let [mean] = record(&[h, weight], [mean], move |grads, [mean]| {
        let Some(seed) = grads.take(mean) else { return Ok(()) };
        let seed = seed.as_slice()[0];
        if seed != 1.0 {
            dh.make_mut().iter_mut().chain(dw.make_mut()).for_each(|x| *x *= seed);
        }
        grads.give(&kept_weight, dw);
        grads.give(&kept_h, dh);
        Ok(())
    });
    Ok(Loss { mean, nll, count })
}
